"""The model card (README.md) of a trained model: its lineage, training settings and metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from ual_ray import __version__
from ual_ray.config import TrainConfig
from ual_ray.config.keys import affecting
from ual_ray.train.progress import Progress

PAPER = "https://arxiv.org/abs/2406.04854"


def model_card(
    base_model: str, config: TrainConfig, progress: Progress, lineage: Mapping[str, str], metrics: Mapping[str, float]
) -> str:
    """Write the model card in Markdown with the YAML header that model hubs read.

    lineage: names and digests of the model's inputs. metrics: of the exported step; nats per token, unsmoothed.
    """
    header = {"library_name": "transformers", "base_model": base_model, "tags": ["uncertainty-aware-learning", "ual_ray"]}
    lines = [
        f"---\n{yaml.safe_dump(header, sort_keys=False)}---\n",
        f"# {base_model}, fine-tuned by Uncertainty-Aware Learning\n",
        f"Trained with ual_ray {__version__}: label smoothing per sample, set by its uncertainty ([paper]({PAPER})).",
        f"These are the weights after step {progress.step}: {progress.samples:,} samples, {progress.tokens:,} tokens seen.\n",
        *_table("Lineage", lineage),
        *_table("Metrics", {name: f"{value:.4g}" for name, value in sorted(metrics.items())}),
        *_table("Settings", affecting(config, "card")),
    ]
    return "\n".join(lines) + "\n"


def _table(title: str, rows: Mapping[str, Any]) -> list[str]:
    if not rows:
        return []
    return [f"## {title}\n", "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items()), ""]
