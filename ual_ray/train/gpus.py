"""GPUs by data sheet: their speed for MFU and estimates, and the memory of those that are not in this machine."""

from typing import NamedTuple


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
    return next((gpu.tflops * 1e12 for name, gpu in GPUS.items() if name in device_name), None)
