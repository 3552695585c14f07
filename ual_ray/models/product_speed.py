"""The speed of devices: GPUs by data sheet, with the memory of those that are not in this machine, and CPUs by measuring.

Processor flags do not show whether bfloat16 is faster than float32. With AMX or AVX512-BF16 it is several times faster, without
them half as fast, or, with AVX2 alone, 50 times slower. Nothing is measured on GPUs, where low precision is always faster.
"""

import re
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import NamedTuple

import torch

# Takes milliseconds, and is large enough that a product's fixed costs are negligible.
SIZE, SECONDS = 512, 0.02


class Gpu(NamedTuple):
    """Dense bfloat16 matrix products in TFLOP/s, and memory in GiB as drivers report it (of several sizes the smallest)."""

    tflops: float
    gib: int


# The first name contained in a device's name counts. B300 and AMD's are from vendors' pages, not seen on a machine: B300's 288
# GB are taken as 10^9 bytes each, the least that they can be.
GPUS = {
    **{"B300": Gpu(2250, 268), "B200": Gpu(2250, 178), "GH200": Gpu(989, 95), "H200": Gpu(989, 139)},
    **{"H100 PCIe": Gpu(756, 79), "H100 NVL": Gpu(835, 93), "H100": Gpu(989, 79), "H800": Gpu(989, 79)},
    **{"A100-80GB": Gpu(312, 79), "A100-40GB": Gpu(312, 39), "A100": Gpu(312, 39), "A800": Gpu(312, 39)},
    **{"A40": Gpu(150, 44), "A30": Gpu(165, 23), "A10G": Gpu(70, 22), "A10": Gpu(125, 22)},
    **{"L40S": Gpu(362, 44), "L40": Gpu(181, 44), "L4": Gpu(121, 22)},
    **{"RTX 6000 Ada": Gpu(182, 47), "RTX A6000": Gpu(155, 47), "RTX 4090": Gpu(165, 23), "RTX 3090": Gpu(71, 23)},
    **{"MI355X": Gpu(2500, 287), "MI325X": Gpu(1307, 255), "MI300X": Gpu(1307, 191), "MI250": Gpu(181, 63)},
}


def peak_flops(device_name: str, dtype: str, known: float | None = None) -> float | None:
    """A worker's peak in operations per second: `known` (TFLOP/s) if given, else that of a known GPU, else None."""
    if known is not None:
        return known * 1e12
    if dtype != "bfloat16":
        return None
    # An A4000 is not an A40.
    return next((gpu.tflops * 1e12 for name, gpu in GPUS.items() if re.search(rf"{name}(?!\d)", device_name)), None)


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


def faster_dtype() -> str:
    """Name the faster of bfloat16 and float32 on the CPUs of this machine."""
    return "float32" if slower_than_float32(torch.bfloat16, torch.device("cpu")) else "bfloat16"


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
