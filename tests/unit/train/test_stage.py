"""Waiting for training: a signal is heard at once, the workers are told, and have their time."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pyarrow as pa
import pytest
import torch.distributed as dist

from ual_ray.config import Config, TrainConfig
from ual_ray.parquet import write_table
from ual_ray.run.side_by_side import side_by_side
from ual_ray.train import stage
from ual_ray.train.loop import Outcome
from ual_ray.train.stage import _backend, _in_thread, _last_and_exported, _run_name, _storage, _traces

FINISHED = Outcome("finished", 10)


def interrupt_after(seconds: float) -> None:
    threading.Timer(seconds, signal.raise_signal, [signal.SIGINT]).start()


def test_what_the_work_gives_or_raises_comes_through() -> None:
    assert _in_thread(lambda: FINISHED, lambda: None, 0) is FINISHED

    def fail() -> Outcome:
        raise OSError("a worker died")

    with pytest.raises(OSError, match="a worker died"):
        _in_thread(fail, lambda: None, 0)


@pytest.mark.slow
def test_an_interrupt_leaves_time_to_save() -> None:
    stop, saved = threading.Event(), threading.Event()

    def work() -> Outcome:
        assert stop.wait(20)
        time.sleep(0.3)
        saved.set()
        return Outcome("stopped", 5)

    interrupt_after(0.2)
    with pytest.raises(KeyboardInterrupt):
        _in_thread(work, stop.set, grace_seconds=20)
    assert saved.is_set()


@pytest.mark.slow
def test_but_no_more_than_was_granted() -> None:
    forever = threading.Event()

    def work() -> Outcome:
        forever.wait()
        return FINISHED

    interrupt_after(0.2)
    try:
        with pytest.raises(KeyboardInterrupt):
            _in_thread(work, lambda: None, grace_seconds=0.5)
    finally:
        forever.set()


@pytest.mark.slow
def test_training_in_a_thread_of_its_own_is_told_when_the_command_ends() -> None:
    stop, saved = threading.Event(), threading.Event()

    def work() -> Outcome:
        assert stop.wait(20)
        saved.set()
        return Outcome("stopped", 5)

    interrupt_after(0.3)
    with pytest.raises(KeyboardInterrupt):
        side_by_side({"one": lambda: _in_thread(work, stop.set, grace_seconds=20)}, lambda: 1, lambda *_: None, 20)
    assert saved.is_set()


@pytest.mark.slow
def test_a_failure_while_saving_does_not_hide_the_interrupt() -> None:
    stop = threading.Event()

    def work() -> Outcome:
        assert stop.wait(20)
        raise OSError("no space left on device")

    interrupt_after(0.2)
    with pytest.raises(KeyboardInterrupt):
        _in_thread(work, stop.set, grace_seconds=20)


def test_checkpoints_lie_in_the_output_folder_or_where_they_are_wanted(tmp_path: Path) -> None:
    assert _storage(TrainConfig(), tmp_path) == str(tmp_path)
    assert _storage(TrainConfig(storage="s3://bucket/runs"), tmp_path) == "s3://bucket/runs"
    assert _storage(TrainConfig(storage=str(tmp_path / "a" / "..")), tmp_path) == str(tmp_path)


def test_checkpoints_of_an_output_that_the_driver_alone_has_lie_beside_its_uri(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "checkpoints_uri", lambda: "s3://bucket/first-checkpoints")
    assert _storage(TrainConfig(), tmp_path) == "s3://bucket/first-checkpoints"
    assert _storage(TrainConfig(storage="s3://bucket/runs"), tmp_path) == "s3://bucket/runs"
    assert _traces(TrainConfig(gpus_per_worker=1), tmp_path) == "" and not [*tmp_path.iterdir()], "no folder that all ranks see"


def test_a_storage_that_runs_share_has_a_part_for_each(tmp_path: Path) -> None:
    folders = [tmp_path / name / "trained" for name in ("one", "two")]
    for folder in folders:
        folder.mkdir(parents=True)
    first, second = map(_run_name, folders)
    assert first != second
    assert _run_name(folders[0]) == first, "a run finds its own again"
    assert first.startswith("trained-")


def test_the_exported_step_is_the_one_that_left_even_if_no_step_beat_the_beginning() -> None:
    lines = [{"step": 0, "validation_nll": 1.0}, {"step": 1, "validation_nll": 2.0}, {"step": 2, "nll": 0.5}]
    lines[0]["system/rank_0/cpu_utilization_percentage"] = 50.0  # a matter of the moment
    last, exported = _last_and_exported(lines, 1)
    assert last == {"step": 2, "validation_nll": 2.0, "nll": 0.5} and exported == lines[1]
    assert _last_and_exported(lines, 2) == (last, last)


@pytest.mark.parametrize(
    ("gpus", "offload", "backend"),
    [(0, False, "gloo"), (0, True, "gloo"), (1, False, "nccl"), (1, True, "cpu:gloo,cuda:nccl")],
)
def test_the_backend_reaches_where_the_weights_are(gpus: int, offload: bool, backend: str) -> None:
    assert _backend(TrainConfig(gpus_per_worker=gpus, cpu_offload=offload)) == backend
    # torch parses it, and knows a backend for both devices where both are needed.
    devices = dist.distributed_c10d.BackendConfig(dist.Backend(backend)).get_device_backend_map()
    assert "cpu" not in devices or devices["cpu"] == "gloo"
    assert not gpus or devices["cuda"] == "nccl"
    assert ("cpu" in devices) == (not gpus or offload)


def test_collectives_of_a_hang_on_gpus_are_written_to_the_output_folder(tmp_path: Path) -> None:
    assert _traces(TrainConfig(), tmp_path) == "" and not any(tmp_path.iterdir())
    for _ in range(2):
        assert _traces(TrainConfig(gpus_per_worker=1), tmp_path) == str(tmp_path / "nccl")
    assert (tmp_path / "nccl").is_dir()


@pytest.mark.parametrize(("most", "apart"), [(2, False), (1, True)])
def test_the_plan_of_many_rows_is_not_held_by_the_driver_during_training(
    most: int, apart: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def told(name: str) -> Callable[..., dict[str, int]]:
        def call(*_: object) -> dict[str, int]:
            asked.append(name)
            return {"steps": 7}

        return call

    alphas = tmp_path / "smoothed.parquet"
    write_table(pa.table({"id": ["a", "b"]}), alphas)
    for name in ("render_all", "check_store", "planned", "in_a_process", "fit"):
        monkeypatch.setattr(stage, name, told(name))
    monkeypatch.setattr(stage, "PLANNED_HERE", most)
    meter = Mock(side_effect=InterruptedError)
    with pytest.raises(InterruptedError):
        stage.train(Config(), alphas, None, tmp_path / "out", meter, Mock(), {})
    meter.assert_called_once_with(7)
    assert asked == ["render_all", "check_store", "in_a_process" if apart else "planned"]
