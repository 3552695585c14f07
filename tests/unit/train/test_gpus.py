"""The table of GPUs: the name of a device is found in it, and every name has both a speed and a memory."""

from __future__ import annotations

import pytest

from ual_ray.config.load import load
from ual_ray.models.product_speed import GPUS, peak_flops
from ual_ray.train.estimate.devices import find_device


@pytest.mark.parametrize(
    ("name", "dtype", "known", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", "bfloat16", None, 989e12),
        ("NVIDIA H100 PCIe", "bfloat16", None, 756e12),
        ("NVIDIA A100-SXM4-80GB", "bfloat16", None, 312e12),
        ("NVIDIA A10G", "bfloat16", None, 70e12),
        ("NVIDIA L40S", "bfloat16", None, 362e12),
        ("NVIDIA L4", "bfloat16", None, 121e12),
        ("NVIDIA B300 SXM6 AC", "bfloat16", None, 2250e12),
        ("AMD Instinct MI325X", "bfloat16", None, 1307e12),
        ("NVIDIA H100 80GB HBM3", "float32", None, None),
        # Others whose names begin like those of A40, A30 and A10.
        ("NVIDIA RTX A4000", "bfloat16", None, None),
        ("NVIDIA RTX A3000 Laptop GPU", "bfloat16", None, None),
        ("NVIDIA RTX A1000", "bfloat16", None, None),
        ("", "bfloat16", None, None),
        ("a new one", "float32", 2.5, 2.5e12),
    ],
)
def test_the_peak_of_a_device(name: str, dtype: str, known: float | None, peak: float | None) -> None:
    assert peak_flops(name, dtype, known) == peak


@pytest.mark.parametrize("name", GPUS)
def test_every_gpu_that_can_be_named_has_a_speed_and_a_memory(name: str) -> None:
    found = find_device(load(None, ["train.gpus_per_worker=1"]), name)
    assert found.memory and 20 < found.memory / 2**30 < 300 and found.flops > 1e13
    # A name within another one, such as A10 in A100, must come behind it.
    assert peak_flops(f"NVIDIA {name}", "bfloat16") == GPUS[name].tflops * 1e12
