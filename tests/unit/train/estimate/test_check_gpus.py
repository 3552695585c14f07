"""What does not fit GPUs is refused before there are rows: by this machine's GPU, or else by the largest that is known."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from small_llama import settings

from ual_ray.config.load import load
from ual_ray.errors import UserError
from ual_ray.models import product_speed
from ual_ray.train.estimate import devices, dry_run
from ual_ray.train.estimate.dry_run import micro_batch


def known(monkeypatch: pytest.MonkeyPatch, gib: float) -> None:
    """Let there be one kind of GPU, of so much memory."""
    monkeypatch.setattr(product_speed, "GPUS", table := {"H100": product_speed.Gpu(989, gib)})  # type: ignore[arg-type]
    for module in (devices, dry_run):
        monkeypatch.setattr(module, "GPUS", table)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ([], None),
        (["train.packing=true"], r"train does not fit.*\n.*per worker.*train\.micro_batch_size=1"),
        (["train.host_gib_per_worker=1"], "GiB of host memory per worker, there are 1.0 GiB"),
    ],
)
@pytest.mark.slow
def test_gpus_without_room_are_refused_before_there_are_rows(
    model: str, monkeypatch: pytest.MonkeyPatch, changes: list[str], says: str | None
) -> None:
    full = ["train.gpus_per_worker=1", "train.num_workers=1", "train.max_length=250", "train.micro_batch_size=4"]
    config = settings(model, *full, "train.global_batch_size=4", *changes)
    # Room for short rows, not for those of train.max_length, which there may be none of without packing.
    peaks = [dry_run.Model(config).memory(config.train, micro_batch(config.train, 4, size)).peak for size in (16, 250)]
    known(monkeypatch, sum(peaks) / 2 / 2**30 / devices.USABLE)
    if says is None:
        dry_run.check_gpus(config)
        return
    with pytest.raises(UserError, match=says) as before:
        dry_run.check_gpus(config)
    # Only `ual train` has rows to estimate more by, and only arms that differ are named.
    with pytest.raises(UserError, match=says) as alone:
        dry_run.check_gpus(config, arms=False)
    assert ["ual train SMOOTHED --dry-run" in str(error.value) for error in (before, alone)] == [False, True]
    assert "of the arm" not in str(before.value)


@pytest.mark.slow
def test_an_arm_is_judged_by_its_own_settings(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settled = ["train.gpus_per_worker=1", "train.num_workers=1", "train.max_length=250", "train.packing=true"]
    config = settings(model, *settled, "train.lora.rank=2", "arms.towards.map=constant", "arms.towards.prior=base")
    batch = micro_batch(config.train, config.train.global_batch_size, 250)
    trains = config.train, config.arms["towards"].training(config.train)
    plain, towards = (dry_run.Model(config).memory(train, batch).peak for train in trains)
    assert towards > plain
    known(monkeypatch, (plain + towards) / 2 / 2**30 / devices.USABLE)
    with pytest.raises(UserError, match="does not fit into memory of the arm towards"):
        dry_run.check_gpus(config)
    dry_run.check_gpus(config, arms=False)


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_model_that_evaluating_gpus_cannot_hold_is_refused_before_training(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(model, "train.gpus_per_worker=1", "engine.gpus_per_actor=1", "evaluate.dtype=float32")
    weights = dry_run.Model(config).parameters(config.train).total * 4
    monkeypatch.setattr(dry_run, "_about_memory", lambda *_: iter(()))
    known(monkeypatch, 0.9 * weights / 2**30)
    with pytest.raises(UserError, match=r"(?s)evaluate does not fit.*set evaluate\.dtype=bfloat16"):
        dry_run.check_gpus(config)
    dry_run.check_gpus(config, evaluated=False)
    for change in ("engine.gpus_per_actor=2", "evaluate.dtype=bfloat16", "engine.gpus_per_actor=0"):
        dry_run.check_gpus(
            settings(model, "train.gpus_per_worker=1", "engine.gpus_per_actor=1", "evaluate.dtype=float32", change)
        )
