"""What does not fit GPUs is refused before there are rows: by this machine's GPU, or else by the largest that is known."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from small_llama import settings

from ual_ray.config.load import load
from ual_ray.errors import UserError
from ual_ray.train.estimate import devices, dry_run
from ual_ray.train.estimate.dry_run import micro_batch


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ([], None),
        (["train.packing=true"], r"train does not fit.*\n.*per worker.*train\.micro_batch_size=1"),
        (["train.host_gib_per_worker=1"], "GiB of host memory per worker, there are 1.0 GiB"),
    ],
)
def test_gpus_without_room_are_refused_before_there_are_rows(
    model: str, monkeypatch: pytest.MonkeyPatch, changes: list[str], says: str | None
) -> None:
    full = ["train.gpus_per_worker=1", "train.num_workers=1", "train.max_length=250", "train.micro_batch_size=4"]
    config = settings(model, *full, "train.global_batch_size=4", *changes)
    # Room for short rows, not for those of train.max_length, which there may be none of without packing.
    peaks = [dry_run.Model(config).memory(config.train, micro_batch(config.train, 4, size)).peak for size in (16, 250)]
    for module in (devices, dry_run):
        monkeypatch.setattr(module, "GPU_GIB", {"H100": sum(peaks) / 2 / 2**30 / devices.USABLE})
    if says is None:
        dry_run.check_gpus(config)
        return
    with pytest.raises(UserError, match=says):
        dry_run.check_gpus(config)


def test_a_gpu_of_unknown_speed_is_judged_by_its_memory(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Voodoo 2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    config = load(None, [f"model={model}", "train.gpus_per_worker=1"])
    for memory, fits in ((2**40, True), (2**20, False)):
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _, memory=memory: SimpleNamespace(total_memory=memory))
        if fits:
            dry_run.check_gpus(config)
            continue
        with pytest.raises(UserError, match="can be used on Voodoo 2"):
            dry_run.check_gpus(config)
        # The workers of another cluster have other GPUs.
        dry_run.check_gpus(load(None, [f"model={model}", "train.gpus_per_worker=1", "runtime.address=ray://other:10001"]))
        with monkeypatch.context() as other:
            other.setenv("RAY_ADDRESS", "other:6379")
            dry_run.check_gpus(config)


def test_a_model_that_evaluating_gpus_cannot_hold_is_refused_before_training(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(model, "train.gpus_per_worker=1", "engine.gpus_per_actor=1", "evaluate.dtype=float32")
    weights = dry_run.Model(config).parameters(config.train).total * 4
    monkeypatch.setattr(dry_run, "_about_memory", lambda *_: iter(()))
    monkeypatch.setattr(devices, "GPU_GIB", {**devices.GPU_GIB, "H100": 0.9 * weights / 2**30})
    monkeypatch.setattr(dry_run, "GPU_GIB", {"H100": 1})
    with pytest.raises(UserError, match=r"(?s)evaluate does not fit.*set evaluate\.dtype=bfloat16"):
        dry_run.check_gpus(config)
    dry_run.check_gpus(config, evaluated=False)
    for change in ("engine.gpus_per_actor=2", "evaluate.dtype=bfloat16", "engine.gpus_per_actor=0"):
        dry_run.check_gpus(
            settings(model, "train.gpus_per_worker=1", "engine.gpus_per_actor=1", "evaluate.dtype=float32", change)
        )
