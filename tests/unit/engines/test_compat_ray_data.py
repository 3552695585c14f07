"""Canaries for private parts of Ray Data. When one fails after an upgrade of Ray, its message says what to adapt."""

from __future__ import annotations

import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet
import pytest
import ray
from ray.data._internal.execution.backpressure_policy import BackpressurePolicy, get_backpressure_policies
from ray.data._internal.execution.interfaces.op_runtime_metrics import OpRuntimeMetrics
from ray.data._internal.planner import plan_write_op
from ray.data.checkpoint import CheckpointConfig
from ray.data.checkpoint.checkpoint_filter import IdColumnCheckpointManager, _clean_pending_checkpoints_task
from ray.data.checkpoint.checkpoint_writer import CheckpointWriter

from ual_ray.engines import compat_ray_data
from ual_ray.engines.compat_ray_data import (
    PENDING_SUFFIX,
    WRITE_OPERATOR,
    FinishedIds,
    WriteFirst,
    _finished_ids,
    checkpointing,
    complete_files,
)
from ual_ray.parquet import write_table

FILES = (
    "Ray Data changed how it names or renames its checkpoint files. Read ray/data/checkpoint/checkpoint_writer.py and "
    "adapt complete_files() in ual_ray/engines/compat_ray_data.py: it must leave out files that a crash left half written."
)
IDS = (
    "Ray Data changed how it loads checkpoints. Read ray/data/checkpoint/checkpoint_filter.py and adapt FinishedIds in "
    "ual_ray/engines/compat_ray_data.py: finished rows would be sent again, where ids are damaged or on one machine alone."
)
POLICY = (
    "Ray Data changed its backpressure policies. Adapt WriteFirst in ual_ray/engines/compat_ray_data.py: without it a crash "
    "costs more than two blocks per actor. tests/faults/test_kills.py measures that."
)


def test_checkpoint_files(tmp_path: Path) -> None:
    """Go through a write with Ray Data's own code: pending ids, rows, ids; and through its cleaning after a crash."""
    data, checkpoint = tmp_path / "data", tmp_path / "checkpoint"
    data.mkdir()
    writer = CheckpointWriter.create(CheckpointConfig(id_column="id", checkpoint_path=str(checkpoint)))
    pending = writer.write_pending_checkpoint(pa.array(["a"]), "uuid_000000")
    file = data / "uuid_000000-0.parquet"
    file.write_bytes(b"PAR1 half")
    other = data / "other_000000-0.parquet"
    other.write_bytes(b"whole")
    assert complete_files(data, checkpoint) == [other], FILES
    assert pending is not None, FILES
    writer.commit_checkpoint(pending)
    assert complete_files(data, checkpoint) == [other, file], FILES

    writer.write_pending_checkpoint(pa.array(["b"]), "other_000000")
    kept = complete_files(data, checkpoint)
    local = pyarrow.fs.LocalFileSystem()
    _clean_pending_checkpoints_task._function(str(checkpoint), local, str(data), local)
    assert kept == complete_files(data, checkpoint) == [*data.iterdir()] == [file], FILES


def test_a_file_that_is_begun_while_they_are_listed_is_not_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by another run, whose store this one shares."""
    data, checkpoint, glob = tmp_path / "data", tmp_path / "checkpoint", Path.glob

    def list_and_begin_a_file(folder: Path, pattern: str) -> list[Path]:
        found = [*glob(folder, pattern)]
        for file in (checkpoint / f"new_000000{PENDING_SUFFIX}", data / "new_000000-0.parquet"):
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(b"PAR1 half")
        return found

    monkeypatch.setattr(Path, "glob", list_and_begin_a_file)
    assert complete_files(data, checkpoint) == []


def test_the_finished_ids_are_those_of_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is in Ray Data's files of ids, which have no checksums."""
    data, checkpoint, where = tmp_path / "data", tmp_path / "checkpoint", {"num_cpus": 0}
    data.mkdir()
    with checkpointing(checkpoint, 4, where):
        context = ray.data.DataContext.get_current().copy()
    config = context.checkpoint_config
    assert config is not None and config.checkpoint_manager_cls is FinishedIds, IDS
    asked: list[Any] = []
    task = SimpleNamespace(remote=_finished_ids._function, options=lambda **options: asked.append(options) or task)
    monkeypatch.setattr(compat_ray_data, "_finished_ids", task)
    monkeypatch.setattr(ray, "get", lambda value: value)
    manager = FinishedIds(checkpoint_config=config, data_context=context)
    assert manager.load_checkpoint(str(data)) == (None, 0)
    writer = CheckpointWriter.create(config)
    for ids, name in ((["c", "a"], "one_000000"), (["b"], "two_000000"), (["lost"], "three_000000")):
        pending = writer.write_pending_checkpoint(pa.array(ids), name)
        write_table(pa.table({"id": ids}), data / f"{name}-0.parquet")
        assert pending is not None
        if name != "three_000000":
            writer.commit_checkpoint(pending)
    for file in checkpoint.iterdir():
        file.write_bytes(b"damaged")
    found, size = manager.load_checkpoint(str(data))
    assert found.tolist() == ["a", "b", "c"] and size > 0 and asked == [where, where], IDS
    assert sorted(file.name for file in data.iterdir()) == ["one_000000-0.parquet", "two_000000-0.parquet"], IDS
    assert issubclass(FinishedIds, IdColumnCheckpointManager)
    parameters = [*inspect.signature(IdColumnCheckpointManager.load_checkpoint).parameters]
    assert [*inspect.signature(FinishedIds.load_checkpoint).parameters] == parameters, IDS


def test_a_folder_that_is_not_there_has_no_files(tmp_path: Path) -> None:
    assert complete_files(tmp_path / "a", tmp_path / "b") == []


def test_the_policy_is_used(tmp_path: Path) -> None:
    context = ray.data.DataContext.get_current()
    with checkpointing(tmp_path, 4):
        configured = context.copy()
    topology: Any = {}
    manager: Any = SimpleNamespace()
    kinds = {type(policy) for policy in policies_of(configured, topology, manager)}
    assert WriteFirst in kinds and len(kinds) > 1, POLICY
    assert WriteFirst not in {type(policy) for policy in policies_of(context, topology, manager)}, "the context is restored"


def policies_of(context: Any, topology: Any, manager: Any) -> list[BackpressurePolicy]:
    try:
        return get_backpressure_policies(context, topology, manager)
    except (AttributeError, TypeError) as error:
        pytest.fail(f"{POLICY} ({error})")


def test_what_the_policy_reads_exists() -> None:
    assert [*inspect.signature(BackpressurePolicy.can_add_input).parameters] == ["self", "op"], POLICY
    counters = {"num_tasks_running", "num_task_outputs_generated", "num_task_inputs_processed"}
    assert counters <= {*OpRuntimeMetrics.__dataclass_fields__}, POLICY
    assert f'name="{WRITE_OPERATOR}"' in inspect.getsource(plan_write_op), POLICY


@pytest.mark.parametrize(
    ("running", "done", "written", "expected"), [(1, 2, 0, True), (2, 2, 0, False), (2, 6, 4, False), (2, 6, 5, True)]
)
def test_engines_wait_for_the_writer(running: int, done: int, written: int, expected: bool) -> None:
    context: Any = SimpleNamespace(get_config=lambda key: 4)
    policy = WriteFirst(context, {}, None)  # type: ignore[arg-type]
    write = SimpleNamespace(name=WRITE_OPERATOR, metrics=SimpleNamespace(num_task_inputs_processed=written))
    metrics = SimpleNamespace(num_tasks_running=running, num_task_outputs_generated=done)
    assert policy.can_add_input(SimpleNamespace(output_dependencies=[write], metrics=metrics)) is expected
    assert policy.can_add_input(SimpleNamespace(output_dependencies=[], metrics=metrics))
