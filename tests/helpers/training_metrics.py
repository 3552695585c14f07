"""What of a training's metrics a repetition has to repeat."""

from __future__ import annotations

from ual_ray.train.metrics import GOODPUT, HIGHEST_MEMORY, LOWEST_MEMORY, MFU, SECONDS, STRAGGLER, TOKENS_PER_SECOND, Metrics
from ual_ray.train.timing import PREFIX

CLOCK = (TOKENS_PER_SECOND, MFU, GOODPUT, STRAGGLER, HIGHEST_MEMORY, LOWEST_MEMORY)


def without_clock(metrics: Metrics) -> Metrics:
    """Leave out what a repetition of the same training need not repeat: times, memory, use of nodes."""
    return {
        name: value for name, value in metrics.items() if name not in CLOCK and not name.startswith((f"{SECONDS}/", PREFIX))
    }
