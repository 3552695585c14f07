"""The pool's parts, without Ray: block sizes, and what an actor does with batches that engines died on."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from driver_only import DRIVER, elsewhere
from hypothesis import example, given
from hypothesis import strategies as st
from pool_actors import ME, SCHEMA, Handle, Row, Task, actor_for, batch_of, job_for

from ual_ray import columns as col
from ual_ray.config import EngineConfig
from ual_ray.engines import EngineSpec, pool
from ual_ray.engines.monitor import Monitor
from ual_ray.engines.pool import (
    BLOCKS_PER_ACTOR,
    LARGEST_BLOCK,
    MAX_BLOCKS,
    MAX_DEATHS,
    SMALLEST_BLOCK,
    EngineActor,
    PoolJob,
    _is_engine_error,
    block_size,
    map_file,
)
from ual_ray.engines.row_store import RowStore
from ual_ray.errors import UserError
from ual_ray.parquet import read_table, write_table

# --- block sizes -----------------------------------------------------------------------------------------------------


@given(total=st.integers(1, 10**9), actors=st.integers(1, 200), batch=st.integers(1, 5000))
@example(total=1, actors=1, batch=64)
@example(total=10**9, actors=1, batch=1)
def test_blocks_are_neither_tiny_nor_huge_nor_too_many(total: int, actors: int, batch: int) -> None:
    block = block_size(total, actors, batch)
    assert SMALLEST_BLOCK <= block <= LARGEST_BLOCK
    assert block <= max(SMALLEST_BLOCK, batch, math.ceil(total / MAX_BLOCKS))
    # Where there are more than wanted, a block cannot be larger, or the actors would not have enough of them.
    blocks = math.ceil(total / block)
    assert blocks <= MAX_BLOCKS or block == LARGEST_BLOCK or blocks <= actors * BLOCKS_PER_ACTOR


@pytest.mark.parametrize(
    ("total", "actors", "batch", "expected"),
    [
        (200, 2, 64, 25),  # four blocks for each of two actors
        (10_000, 2, 64, 64),  # a batch
        (500_000, 2, 64, 500),  # a thousand blocks
        (10**8, 2, 64, LARGEST_BLOCK),
        (10, 2, 64, SMALLEST_BLOCK),
        (10_000, 2, 1, 10),
    ],
)
def test_block_sizes_by_hand(total: int, actors: int, batch: int, expected: int) -> None:
    assert block_size(total, actors, batch) == expected


# --- rows ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "error", "expected"),
    [
        ("ok", None, False),
        ("ok", "engine: another estimator's", False),
        ("quarantined", "engine: too hot", True),
        ("quarantined", "engine: too hot; overlong: 9 tokens", True),
        ("quarantined", "overlong: 9 tokens", False),
        ("quarantined", "unparsable: no usable reply for nll", False),
        ("quarantined", "template: no system role", False),
        ("quarantined", None, False),
    ],
)
def test_rows_that_an_engine_failed_on_deserve_another_try(status: str, error: str | None, expected: bool) -> None:
    assert _is_engine_error({"status": status, "error": error}) is expected


# --- the actor -------------------------------------------------------------------------------------------------------


def test_a_batch_goes_through_the_task_and_leaves_in_the_schema(monitor: Monitor) -> None:
    task = Task()
    done = actor_for(task, monitor)(batch_of("a", "bb"))
    assert done.schema.equals(SCHEMA)
    assert done["value"].to_pylist() == [2, 4]
    assert task.batches == [["a", "bb"]]
    assert (monitor.counts().rows, monitor.counts().failed) == (2, 0)


def test_what_is_finished_is_not_held_against_anybody(monitor: Monitor) -> None:
    task = Task()
    actor = actor_for(task, monitor)
    for _ in range(2 * MAX_DEATHS):
        actor(batch_of("a", "b"))
    assert task.batches == [["a", "b"]] * (2 * MAX_DEATHS)


def test_an_engine_that_died_ends_its_actor_before_anything_is_counted(monitor: Monitor) -> None:
    with pytest.raises(SystemExit) as left:
        actor_for(Task(), monitor)(batch_of("a", "deadly"))
    assert left.value.code == 1
    assert monitor.counts().rows == 0


def test_the_row_that_kills_engines_is_found_and_the_others_are_done(monitor: Monitor, tmp_path: Path) -> None:
    """As Ray has it: after every death another actor is given the same batch."""
    task = Task()
    batch = batch_of("a", "deadly", "b")
    deaths = 0
    while True:
        try:
            done = actor_for(task, monitor, tmp_path)(batch)
            break
        except SystemExit:
            deaths += 1
    assert deaths == 2 * MAX_DEATHS
    whole, rows = [["a", "deadly", "b"]], [["a"], ["deadly"]]
    assert task.batches == whole * MAX_DEATHS + rows * MAX_DEATHS + [["a"], ["b"]]
    assert done["id"].to_pylist() == ["a", "b"]
    (failed,) = read_table(tmp_path / "failed").to_pylist()
    assert (failed["id"], failed["status"], failed["value"]) == ("deadly", "quarantined", 6)
    assert failed["error"] == f"engine: it died or hung on this row {MAX_DEATHS} times"
    assert (monitor.counts().rows, monitor.counts().failed) == (3, 1)
    assert monitor.begin("deadly", "anybody") == 0


def test_a_batch_begun_less_often_is_still_a_batch(monitor: Monitor) -> None:
    task = Task()
    for _ in range(MAX_DEATHS - 1):
        monitor.begin(col.digest(["a", "b"]), "another actor")
    actor_for(task, monitor)(batch_of("a", "b"))
    assert task.batches == [["a", "b"]]


def test_a_job_that_has_to_stop_sends_nothing_more(monitor: Monitor) -> None:
    task = Task()
    actor = actor_for(task, monitor)
    actor(batch_of("a"))
    monitor.scored(100, ["overlong: 9"] * 100)
    assert monitor.stopped()
    done = actor(batch_of("b"))
    assert (len(done), done.schema) == (0, SCHEMA)
    assert task.batches == [["a"]]


def test_an_actor_that_starts_is_not_held_to_its_former_work(monitor: Monitor, monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[Any] = []
    monkeypatch.setattr(pool.ray, "kill", lambda actor, no_restart: killed.append(actor))
    monitor.begin("work", ME)
    actor_for(Task(), monitor)
    assert monitor.replace_hung(-1) == 0
    assert killed == []


def test_an_actor_of_another_machine_loads_a_copy_of_a_model_of_the_output(
    monitor: Monitor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("model", "adapter"):
        (tmp_path / "driver" / name).mkdir(parents=True)
        (tmp_path / "driver" / name / "config.json").write_text(name)
    made: list[EngineSpec] = []
    make = pool.make_engine
    monkeypatch.setattr(pool, "make_engine", lambda spec: made.append(spec) or make(spec))
    monkeypatch.setattr(pool, "output_folder", lambda: elsewhere(tmp_path / "driver", tmp_path / "copies"))
    spec = EngineSpec(EngineConfig(kind="fake"), str(DRIVER / "model"), str(DRIVER / "adapter"))
    EngineActor(PoolJob(spec, Task(), RowStore(tmp_path / "store", SCHEMA)), Handle(monitor))
    (own,) = made
    assert [(Path(str(place)) / "config.json").read_text() for place in (own.model, own.adapter)] == ["model", "adapter"]


# --- failed rows -----------------------------------------------------------------------------------------------------


def failing(row: Row) -> Row:
    reasons = {"hot": "engine: too hot", "long": "overlong: 9 tokens"}
    error = reasons.get(row["id"].rstrip("0123456789"))
    return {"status": "quarantined" if error else "ok", "error": error, "value": 0}


def test_rows_that_an_engine_failed_on_go_to_the_failed_folder(monitor: Monitor, tmp_path: Path) -> None:
    actor = actor_for(Task(failing), monitor, tmp_path)
    done = [*actor(batch_of("a", "hot1", "long"))["id"].to_pylist(), *actor(batch_of("hot2", "b"))["id"].to_pylist()]
    assert done == ["a", "long", "b"]
    table = read_table(tmp_path / "failed")
    assert table.schema.equals(SCHEMA)
    assert table["id"].to_pylist() == ["hot1", "hot2"]
    actor(batch_of("a", "hot1", "long"))  # a batch that is done again writes the same file
    assert len(read_table(tmp_path / "failed")) == 2
    assert (monitor.counts().failed, monitor.counts().reasons["engine"]) == (5, 3)


def test_without_failed_rows_nothing_is_written(monitor: Monitor, tmp_path: Path) -> None:
    actor_for(Task(), monitor, tmp_path)(batch_of("a"))
    assert [*tmp_path.iterdir()] == []


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Replace the pool by one that finishes nothing; return how many rows it was given, and how many of them were finished."""
    calls: list[tuple[int, int]] = []
    monkeypatch.setattr(pool, "map_rows", lambda read, expected, job, meter, done: calls.append((expected, done)))
    return calls


def stored(folder: Path, *names: str) -> PoolJob:
    job = job_for(Task(), folder)
    job.store.finished.mkdir(parents=True)
    rows = [{"id": name, "value": 1, "status": "ok"} for name in names]
    write_table(pa.Table.from_pylist(rows, SCHEMA), job.store.finished / "1_0.parquet")
    return job


def test_a_model_is_loaded_only_for_missing_rows(sent: list[tuple[int, int]], tmp_path: Path) -> None:
    write_table(batch_of("a", "b"), tmp_path / "rows.parquet")
    job = stored(tmp_path / "store", "a", "b", "c")
    (table,) = map_file(tmp_path / "rows.parquet", job, None)  # type: ignore[arg-type]
    assert (table["id"].to_pylist(), sent) == (["a", "b"], [])


def test_what_others_left_in_a_shared_store_is_not_shown_as_done(sent: list[tuple[int, int]], tmp_path: Path) -> None:
    write_table(batch_of("a", "b"), tmp_path / "rows.parquet")
    with pytest.raises(UserError):
        map_file(tmp_path / "rows.parquet", stored(tmp_path / "store", "a", "c", "d", "e"), None)  # type: ignore[arg-type]
    assert sent == [(2, 1)]


def test_failed_rows_that_are_sent_again_with_missing_ones_are_not_shown_as_done(
    sent: list[tuple[int, int]], tmp_path: Path
) -> None:
    write_table(batch_of("a", "b", "c"), tmp_path / "rows.parquet")
    job = stored(tmp_path / "store", "a")
    failed = [{"id": "b", "value": None, "status": "quarantined"}]
    job.store.add_failed(pa.Table.from_pylist(failed, SCHEMA))
    with pytest.raises(UserError):
        map_file(tmp_path / "rows.parquet", job, None)  # type: ignore[arg-type]
    assert sent == [(3, 1)]


def test_rows_that_are_removed_while_others_are_sent_are_reported(sent: list[tuple[int, int]], tmp_path: Path) -> None:
    write_table(batch_of("a", "b"), tmp_path / "rows.parquet")
    with pytest.raises(UserError, match="1 of 2 rows are finished, but missing from the store"):
        map_file(tmp_path / "rows.parquet", stored(tmp_path / "store", "a"), None)  # type: ignore[arg-type]
    assert sent == [(2, 1)]
