"""Tiny models of several families, and jobs of the probe on them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ual_ray.calibrate.rows import ProbeJob
from ual_ray.config import EvaluateConfig

COMMON = {
    **{"vocab_size": 620, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "max_position_embeddings": 256, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1},
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": True},
    "llama_untied": {"model_type": "llama", "tie_word_embeddings": False},
    "gemma2": {"head_dim": 8, "sliding_window": 6, "final_logit_softcapping": 0.5},
    "granite": {"logits_scaling": 4.0},
    "cohere": {"logit_scale": 4.0},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "bloom": {"n_layer": 2, "n_head": 4},
}
Families = Callable[..., Path]
MEASURED = ("nll", "confidence", "correct", "brier")


def job_of(model: Path, rows: Path, folder: Path, results: Path | None = None, limit: int = 128, **evaluate: Any) -> ProbeJob:
    settings = EvaluateConfig.model_validate({"clustering": {"tokens": 4, "positions": 20}, "resamples": 100, **evaluate})
    return ProbeJob(str(model), str(rows), str(results) if results else None, str(folder), settings, limit)
