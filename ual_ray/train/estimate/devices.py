"""Memory and speed of the workers' devices: GPUs by data sheet, this machine's CPU by a short measurement."""

import os
from dataclasses import dataclass

import psutil
import torch

from ual_ray.config import Config, TrainConfig
from ual_ray.errors import UserError
from ual_ray.formatting import GIB
from ual_ray.models.product_speed import GPUS, peak_flops, product_rates
from ual_ray.train.sharding import DTYPES

ASSUMED_GPU = "H100"
# OURS: the share of a GPU's memory that is usable despite fragmentation.
USABLE = 0.95
# OURS: the share of the peak that a step reaches: of a data sheet's on GPUs, of a measured matrix product's on CPUs, where
# steps of SmolLM2-135M reached 0.49 in bfloat16 and 0.61 in float32.
GPU_UTILISATION, CPU_UTILISATION = 0.4, 0.5
# Factor by which float32 products, without tensor cores, are slower than bfloat16 (A100: 312 / 19.5).
FLOAT32_SLOWDOWN = 16
PRODUCT_SIZE = 1024
PRODUCT_SECONDS = 0.5


@dataclass(frozen=True)
class Device:
    """One worker's device: usable `memory` in bytes (None = unknown), and the `flops` per second that a step reaches.

    `speed_from` describes the source of the speed. `host`: bytes of host memory for a GPU worker (None = unknown).
    """

    name: str
    memory: int | None
    flops: float
    speed_from: str
    host: int | None = None


def find_device(config: Config, gpu: str | None = None) -> Device:
    """Find the workers' device. gpu: a name of GPUS; None = the GPU of this machine, or else ASSUMED_GPU.

    Raises UserError for a GPU of unknown memory or speed, and for one that no worker uses.
    """
    if gpu is not None and not config.train.gpus_per_worker:
        raise UserError("--gpu: training uses no GPU", got="train.gpus_per_worker=0", fix="set train.gpus_per_worker=1")
    return _find_gpu(config, gpu) if config.train.gpus_per_worker else _this_cpu(config)


def is_here(config: Config) -> bool:
    """Whether this machine is the cluster, so that its devices are those of the workers."""
    return config.runtime.joined is None


def _this_cpu(config: Config) -> Device:
    train, here = config.train, is_here(config)
    memory = psutil.virtual_memory().available // train.num_workers if here else None
    if train.peak_tflops:
        rate, source = train.peak_tflops * 1e12, "train.peak_tflops"
    else:
        threads = max(1, min(os.cpu_count() or 1, round(train.cpus_per_worker * train.num_workers)))
        (rate,) = product_rates((DTYPES[train.dtype],), threads, PRODUCT_SIZE, PRODUCT_SECONDS)
        rate *= train.cpus_per_worker / threads
        source = f"{rate / 1e9:.0f} GFLOP/s of a matrix product measured here"
    cores = f"{train.cpus_per_worker:g} core{'s' * (train.cpus_per_worker != 1)}"
    name = f"CPU, {cores}{'' if here else ' as fast as these here'}"
    return Device(name, memory, rate * CPU_UTILISATION, f"{CPU_UTILISATION:.0%} of {source}")


def _find_gpu(config: Config, gpu: str | None) -> Device:
    train, assumed = config.train, ""
    if gpu is None and torch.cuda.is_available():
        name, memory = torch.cuda.get_device_name(), torch.cuda.get_device_properties(0).total_memory
    elif gpu in (None, *GPUS):
        name = gpu or ASSUMED_GPU
        memory, assumed = GPUS[name].gib * GIB, "" if gpu else " (assumed; set it with --gpu)"
    else:
        raise UserError("--gpu: the GPU is not known", got=gpu, expected=", ".join(GPUS))
    bfloat16 = peak_flops(name, "bfloat16", train.peak_tflops)
    if bfloat16 is None:
        raise UserError("the peak of the GPU is not known", got=name, fix="set train.peak_tflops, or name another --gpu")
    slower = FLOAT32_SLOWDOWN if train.dtype == "float32" and train.peak_tflops is None else 1
    peak = bfloat16 / slower
    source = f"{GPU_UTILISATION:.0%} of its peak of {peak / 1e12:.0f} TFLOP/s"
    return Device(name + assumed, int(memory * USABLE), peak * GPU_UTILISATION, source, _host_memory(train, gpu))


def _host_memory(train: TrainConfig, gpu: str | None) -> int | None:
    """Bytes of host memory per GPU worker: as configured, or this machine's if it has the GPUs."""
    if train.host_gib_per_worker is not None:
        return int(train.host_gib_per_worker * GIB)
    if gpu is None and torch.cuda.is_available():
        return psutil.virtual_memory().total // min(train.num_workers, torch.cuda.device_count())
    return None
