"""Where a training's time goes: in steps or elsewhere, and on which rank, and how busy a rank's node and GPU are.

Pure but for clocks; no collective of its own. How busy a node is, is named as MLflow's system metrics are with the rank in
place of the node. MLflow's own monitor sends to the store by itself, from every worker: it neither waits for an unreachable
store nor has a worker's address. These figures travel with the sums of a step instead, and are logged with its metrics.
"""

import logging
import math
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Literal

import psutil
import torch

from ual_ray.run.memory import peak_memory
from ual_ray.train.metrics import GOODPUT, HIGHEST_MEMORY, LOWEST_MEMORY, SECONDS, STRAGGLER, Metrics

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
Purpose = Literal["step", "data", "validation", "checkpoint"]
PURPOSES: tuple[Purpose, ...] = ("step", "data", "validation", "checkpoint")


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


class Stopwatch:
    """Measures the seconds that go to each purpose; only one runs at a time."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = defaultdict(float)
        self._began = time.monotonic()
        # CPU time of this rank's thread in the last step: without what it waited for others, and for a GPU.
        self.work = 0.0

    @contextmanager
    def __call__(self, purpose: Purpose) -> Iterator[None]:
        """Count the block's time."""
        started, worked = time.monotonic(), time.thread_time()
        try:
            yield
        finally:
            self._seconds[purpose] += time.monotonic() - started
            if purpose == "step":
                self.work = time.thread_time() - worked

    def lap(self) -> Metrics:
        """Return the seconds by purpose since the last lap, and the share of the time that went to steps."""
        now = time.monotonic()
        seconds, total = self._seconds, now - self._began
        self._seconds, self._began = defaultdict(float), now
        parts = {f"{SECONDS}/{purpose}": seconds[purpose] for purpose in PURPOSES}
        return {GOODPUT: seconds["step"] / total if total else 0.0, f"{SECONDS}/total": total, **parts}


class RankReport:
    """What each rank tells all others with the sums of a step: its memory, its work of the step before, its node's use.

    A sum over ranks of vectors that are 0 but for a rank's own entries holds every rank's values.
    """

    def __init__(self, rank: int, ranks: int, device: torch.device, *, system_metrics: bool = False) -> None:
        """Take this rank's number, the device whose memory counts, and whether all ranks report the use of their nodes."""
        self._rank, self._ranks, self._device = rank, ranks, device
        self._use = NodeUse(device) if system_metrics else None
        self._shown, self._fresh = min(MOST_RANKS, ranks), False

    def values(self, work: float) -> list[float]:
        """Return this rank's vector. work: seconds of CPU time in its last step, which does not count where a GPU works."""
        own = (peak_memory(self._device), work if self._device.type == "cpu" else 0.0)
        entries = [0.0] * (len(own) * self._ranks)
        entries[self._rank :: self._ranks] = own
        if self._use is None:
            return entries
        of_nodes = [0.0] * (len(FIGURES) * self._shown)
        if self._rank < self._shown:
            self._fresh, of_nodes[self._rank :: self._shown] = self._use.read()
        return entries + of_nodes

    def metrics(self, summed: Sequence[float]) -> Metrics:
        """Highest and lowest memory of a rank in GiB, and the slowest rank's work over the median (1 = none is slower).

        Also the use of the first ranks' nodes, where this rank has just read that of its own.
        """
        memory, work, of_nodes = summed[: (n := self._ranks)], summed[n : 2 * n], summed[2 * n :]
        metrics = {HIGHEST_MEMORY: max(memory), LOWEST_MEMORY: min(memory)}
        metrics |= by_rank(of_nodes, self._shown) if self._fresh else {}
        return metrics | ({STRAGGLER: max(work) / median(work)} if min(work) > 0 else {})


def summary(lines: Sequence[Metrics]) -> Metrics:
    """Summarize the lines of a training: shares of its time by purpose, extremes of memory, the median of its stragglers."""
    timed = [line for line in lines if line.get(f"{SECONDS}/total")]
    total = sum(line[f"{SECONDS}/total"] for line in timed)
    if not total:
        return {}
    shares = {purpose: sum(line[f"{SECONDS}/{purpose}"] for line in timed) / total for purpose in PURPOSES}
    found = {GOODPUT: shares["step"], **{f"time_share/{purpose}": share for purpose, share in shares.items()}}
    for name, reduced in ((HIGHEST_MEMORY, max), (LOWEST_MEMORY, max), (STRAGGLER, median)):
        if values := [line[name] for line in timed if name in line]:
            found[name] = float(reduced(values))
    return found
