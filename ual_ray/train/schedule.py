"""Learning rate schedule: linear warm-up, then cosine decay to a floor."""

from __future__ import annotations

import math


def learning_rate_share(step: int, total_steps: int, warmup_share: float, floor: float) -> float:
    """Share of the peak learning rate at optimizer step `step`, counted from 0; in (0, 1]."""
    warmup = round(warmup_share * total_steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, total_steps - warmup)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
