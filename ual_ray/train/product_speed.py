"""Measure the speed of matrix products on the CPU, as processor flags do not show whether bfloat16 is faster than float32.

With AMX or AVX512-BF16, bfloat16 is several times faster, without them half as fast. Nothing is measured on GPUs, where low
precision is always faster.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch

from ual_ray.config import TrainConfig

# Takes milliseconds, and is large enough that a product's fixed costs are negligible.
SIZE, SECONDS = 512, 0.02


@cache
def product_rates(
    dtypes: tuple[torch.dtype, ...], threads: int = 1, size: int = SIZE, seconds: float = SECONDS
) -> tuple[float, ...]:
    """Return the FLOP/s of a square matrix product on this CPU for each dtype, measured once per process.

    size: rows and columns. seconds: how long to measure, at least two products per dtype; the fastest of each counts.
    """
    # A new thread does not inherit the caller's autocast, flop counters and other modes.
    with ThreadPoolExecutor(1) as pool:
        fastest = pool.submit(_measure, dtypes, threads, size, seconds).result()
    return tuple(2 * size**3 / best for best in fastest)


def slower_than_float32(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a product in a 16-bit dtype takes longer than in float32 on this device."""
    if device.type != "cpu" or dtype not in (torch.bfloat16, torch.float16):
        return False
    # One thread: the result is the same as for many, and less disturbed by other work on the machine.
    low, float32 = product_rates((dtype, torch.float32))
    return low < float32


def resolve_dtype(train: TrainConfig) -> TrainConfig:
    """Replace train.dtype = auto by the faster of bfloat16 and float32 on this machine; on GPUs bfloat16, unmeasured."""
    if train.dtype != "auto":
        return train
    slow = not train.gpus_per_worker and slower_than_float32(torch.bfloat16, torch.device("cpu"))
    return train.model_copy(update={"dtype": "float32" if slow else "bfloat16"})


def _measure(dtypes: tuple[torch.dtype, ...], threads: int, size: int, seconds: float) -> list[float]:
    """Time products of all dtypes in turn, so that other work slows all equally; returns the fewest seconds of each."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        factors = [torch.ones(2, size, size, dtype=dtype) for dtype in dtypes]
        fastest, rounds, end = [float("inf")] * len(dtypes), 0, time.perf_counter() + seconds
        while rounds < 2 or time.perf_counter() < end:
            for number, (first, second) in enumerate(factors):
                started = time.perf_counter()
                torch.mm(first, second)
                fastest[number] = min(fastest[number], time.perf_counter() - started)
            rounds += 1
    finally:
        torch.set_num_threads(before)
    return fastest
