"""Similarity of texts by an encoder's embeddings: mean-pooled last hidden states, compared by their cosine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from ual_ray.models.resolve import resolve_model

LONGEST_TEXT = 512  # tokens


@dataclass(frozen=True)
class EmbeddingGrouping:
    """Texts whose embeddings have a cosine of at least `similarity` mean the same."""

    model: str
    similarity: float

    def keys(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Embed the texts: unit vectors [hidden size], float32."""
        import torch

        tokenizer, encoder = _encoder(self.model)
        batch = tokenizer(
            [text or " " for text in texts], padding=True, truncation=True, max_length=LONGEST_TEXT, return_tensors="pt"
        )
        with torch.inference_mode():
            hidden = encoder(**batch).last_hidden_state.float()
        mask = batch["attention_mask"].unsqueeze(-1)
        mean = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
        return list(torch.nn.functional.normalize(mean, dim=-1).numpy())

    def same(self, first: np.ndarray, second: np.ndarray) -> bool:
        """Compare two embeddings."""
        return float(first @ second) >= self.similarity


@lru_cache(maxsize=1)
def _encoder(name: str) -> tuple[Any, Any]:
    """Load the encoder once per process; it runs on the CPU, so that the engine keeps its GPU memory."""
    from transformers import AutoModel, AutoTokenizer

    path = resolve_model(name)
    tokenizer = AutoTokenizer.from_pretrained(path)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer, AutoModel.from_pretrained(path).eval()
