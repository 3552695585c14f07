"""How busy a rank's node and GPU are, named as MLflow's system metrics are with the rank in place of the node.

MLflow's own monitor sends to the store by itself, from every worker: it neither waits for an unreachable store nor has a
worker's address. These figures travel with the sums of a step instead, and are logged with its metrics.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence

import psutil
import torch

from ual_ray.train.metrics import Metrics

# Of MLflow's monitor: seconds between readings.
INTERVAL = 10.0
# Ranks whose use is logged, from the first.
MOST_RANKS = 16
PREFIX = "system/"
FIGURES = (
    "cpu_utilization_percentage",
    "system_memory_usage_percentage",
    "system_memory_usage_megabytes",
    "gpu_utilization_percentage",
    "gpu_memory_usage_percentage",
    "gpu_memory_usage_megabytes",
)

logger = logging.getLogger(__name__)


class NodeUse:
    """Reads the use of this rank's node, all its processes together, and of its GPU, every INTERVAL seconds."""

    def __init__(self, device: torch.device) -> None:
        """Start the first interval, over which CPU use is averaged."""
        self._device = device
        self._read_at, self._values = -math.inf, [math.nan] * len(FIGURES)
        self._utilization = device.type == "cuda"
        psutil.cpu_percent()

    def read(self) -> tuple[bool, list[float]]:
        """Return whether the figures are new, and FIGURES: percentages in [0, 100], megabytes of 1e6; NaN = not known."""
        now = time.monotonic()
        fresh = now - self._read_at >= INTERVAL
        if fresh:
            memory = psutil.virtual_memory()
            self._values = [psutil.cpu_percent(), 100 * memory.used / memory.total, memory.used / 1e6, *self._gpu()]
            self._read_at = now
        return fresh, self._values

    def _gpu(self) -> tuple[float, float, float]:
        if self._device.type != "cuda":
            return math.nan, math.nan, math.nan
        free, total = torch.cuda.mem_get_info(self._device)
        return self._gpu_utilization(), 100 * (total - free) / total, (total - free) / 1e6

    def _gpu_utilization(self) -> float:
        """Ask the driver, which takes nvidia-ml-py; after an error training goes on without the figure."""
        if self._utilization:
            try:
                return float(torch.cuda.utilization(self._device))
            except Exception as error:
                self._utilization = False
                logger.warning("GPU utilization is not logged: %s: %s", type(error).__name__, error)
        return math.nan


def by_rank(values: Sequence[float], ranks: int) -> Metrics:
    """Name the figures of the first `ranks` ranks, of which `values` has all of the first figure, then of the second."""
    return {
        f"{PREFIX}rank_{place % ranks}/{FIGURES[place // ranks]}": value
        for place, value in enumerate(values)
        if not math.isnan(value)
    }
