"""Learning rate schedules: linear warm-up, then the decay of `train.schedule` to a floor."""

from __future__ import annotations

import math
from collections.abc import Callable

from ual_ray.config import TrainConfig

# By train.schedule: the share of the way from floor to peak that is left, after a share of the steps behind the warm-up.
# Warmup-stable-decay (arXiv 2404.06395) stays at the peak, and decays over the last steps: see `learning_rate_share`.
DECAYS: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
    "wsd": lambda progress: 1.0 - progress,
}


def learning_rate_share(step: int, total_steps: int, config: TrainConfig) -> float:
    """Share of the peak learning rate at optimizer step `step`, counted from 0; in [0, 1]."""
    warmup = round(config.warmup_share * total_steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    start = warmup
    if config.schedule == "wsd":
        start = max(warmup, total_steps - round(config.decay_share * total_steps))
    progress = (step - start) / max(1, total_steps - start)
    floor = config.min_learning_rate_share
    return floor + (1 - floor) * DECAYS[config.schedule](min(1.0, max(0.0, progress)))
