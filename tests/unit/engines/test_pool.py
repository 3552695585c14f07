"""The pool's parts, without Ray: block sizes, and what an actor does with batches that engines died on."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ual_ray.config import EngineConfig
from ual_ray.engines import EngineDied, EngineSpec, late, make_engine, pool
from ual_ray.engines.monitor import Limits, Monitor
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

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("value", pa.int64()),
        ("status", pa.string()),
        ("error", pa.string()),
        ("prompt_tokens", pa.int64()),
    ]
)
ME = "this actor"
Row = dict[str, Any]


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


class Handle:
    """Has the form of an actor's handle, and calls at once."""

    def __init__(self, target: Monitor) -> None:
        self._target = target

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=getattr(self._target, name))


class Task:
    """Scores rows with their value times two, remembers its batches, and dies on rows named so."""

    def __init__(self, score: Callable[[Row], Row] | None = None) -> None:
        self.batches: list[list[str]] = []
        self._score = score or (lambda row: {"status": "ok", "value": 2 * row["value"], "prompt_tokens": 1})

    def __call__(self, rows: Sequence[Row], engine: Any) -> list[Row]:
        assert engine.template_hash == "fake"
        self.batches.append([row["id"] for row in rows])
        if any(row["id"].startswith("deadly") for row in rows):
            raise EngineDied("the kernel fell over")
        return [row | self._score(row) for row in rows]


@pytest.fixture
def monitor(monkeypatch: pytest.MonkeyPatch) -> Monitor:
    """Make a monitor, and do without Ray and without ending the process."""

    def leave(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(pool.ray, "get", lambda value, timeout=None: value)
    monkeypatch.setattr(pool.ray, "get_runtime_context", lambda: SimpleNamespace(current_actor=ME))
    monkeypatch.setattr(pool.os, "_exit", leave)
    monkeypatch.setattr(pool.logging, "shutdown", lambda: None)
    return Monitor(Limits(failed=0.5))


def job_for(task: Task, folder: Path) -> PoolJob:
    return PoolJob(EngineSpec(EngineConfig(kind="fake"), "m"), task, RowStore(folder, SCHEMA))


def actor_for(task: Task, monitor: Monitor, folder: Path = Path("not written to")) -> EngineActor:
    return EngineActor(job_for(task, folder), Handle(monitor))


def batch_of(*names: str) -> pa.Table:
    return pa.table({"id": list(names), "value": [len(name) for name in names], "text": ["not in the schema"] * len(names)})


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
        monitor.begin(pool.digest(["a", "b"]), "another actor")
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
def sent(monkeypatch: pytest.MonkeyPatch) -> list[int | None]:
    """Replace the pool by one that finishes nothing."""
    calls: list[int | None] = []
    monkeypatch.setattr(pool, "map_rows", lambda read, expected, job, meter: calls.append(expected))
    return calls


def stored(folder: Path, *names: str) -> PoolJob:
    job = job_for(Task(), folder)
    job.store.finished.mkdir(parents=True)
    rows = [{"id": name, "value": 1, "status": "ok"} for name in names]
    write_table(pa.Table.from_pylist(rows, SCHEMA), job.store.finished / "1_0.parquet")
    return job


def test_a_model_is_loaded_only_for_missing_rows(sent: list[int | None], tmp_path: Path) -> None:
    write_table(batch_of("a", "b"), tmp_path / "rows.parquet")
    job = stored(tmp_path / "store", "a", "b", "c")
    (table,) = map_file(tmp_path / "rows.parquet", job, None)  # type: ignore[arg-type]
    assert (table["id"].to_pylist(), sent) == (["a", "b"], [])


def test_finished_rows_that_were_removed_are_reported(sent: list[int | None], tmp_path: Path) -> None:
    """Ray Data skips rows that its checkpoint lists, also when their files are gone."""
    write_table(batch_of("a", "b"), tmp_path / "rows.parquet")
    with pytest.raises(UserError, match="1 of 2 rows are finished, but missing from the store"):
        map_file(tmp_path / "rows.parquet", stored(tmp_path / "store", "a"), None)  # type: ignore[arg-type]
    assert sent == [2]


# --- engines that are loaded late ------------------------------------------------------------------------------------


def late_actor(task: Any, monitor: Monitor, folder: Path) -> EngineActor:
    return EngineActor(replace(job_for(task, folder), late=True), Handle(monitor))


def test_an_engine_that_nothing_is_asked_is_never_loaded(
    monitor: Monitor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(late, "make_engine", lambda spec: pytest.fail("loaded"))
    task = Task()
    assert late_actor(task, monitor, tmp_path)(batch_of("a", "bb"))["value"].to_pylist() == [2, 4]


def test_loading_late_is_done_once_and_not_timed(monitor: Monitor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[bool] = []

    def load(spec: EngineSpec) -> Any:
        loads.append(bool(monitor._running))
        return make_engine(spec)

    def ask(rows: Sequence[Row], engine: Any) -> list[Row]:
        engine.run([])
        assert monitor._running and monitor.replace_hung(60) == 0
        return [row | {"status": "ok", "prompt_tokens": 1} for row in rows]

    monkeypatch.setattr(late, "make_engine", load)
    actor = late_actor(ask, monitor, tmp_path)
    actor(batch_of("a"))
    actor(batch_of("b"))
    assert loads == [False]


def test_a_death_while_loading_is_held_against_no_row(monitor: Monitor) -> None:
    for _ in range(2 * MAX_DEATHS):
        assert monitor.begin("batch", ME) == 0
        assert monitor.pause(ME) == ["batch"]
    monitor.resume(["batch"], ME)
    assert monitor.begin("batch", ME) == 1
    assert monitor.pause("another actor") == []


# --- several batches at a time ---------------------------------------------------------------------------------------


class Meeting:
    """An engine in which batches meet: each call waits for another one, and says whether it came."""

    template_hash = "fake"

    def __init__(self, seconds: float) -> None:
        self._barrier = threading.Barrier(2, timeout=seconds)
        self.met: list[bool] = []

    def run(self, requests: Sequence[Any]) -> list[Any]:
        try:
            self._barrier.wait()
            self.met.append(True)
        except threading.BrokenBarrierError:
            self.met.append(False)
            self._barrier.reset()
        return []


def asking(inside: list[str]) -> Callable[[Sequence[Row], Any], list[Row]]:
    """Make a task that asks the engine, and notes when more than one batch is in its own code."""

    def task(rows: Sequence[Row], engine: Any) -> list[Row]:
        for _ in range(2):
            inside.append("in")
            time.sleep(0.01)
            assert inside[-1] == "in" and inside.count("in") == inside.count("out") + 1, "one batch at a time"
            inside.append("out")
            engine.run([])
        return [row | {"status": "ok"} for row in rows]

    return task


def run_both(actor: EngineActor, *batches: pa.Table) -> list[pa.Table]:
    with ThreadPoolExecutor(2) as threads:
        return [done.result(20) for done in [threads.submit(actor, batch) for batch in batches]]


def test_batches_meet_in_the_engine_and_nowhere_else(monitor: Monitor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Meeting(20)
    monkeypatch.setattr(pool, "make_engine", lambda spec: engine)
    actor = EngineActor(job_for(asking([]), tmp_path), Handle(monitor))  # type: ignore[arg-type]
    first, second = run_both(actor, batch_of("a", "b"), batch_of("c"))
    assert (first["id"].to_pylist(), second["id"].to_pylist()) == (["a", "b"], ["c"])
    assert engine.met == [True] * 4


def test_a_batch_that_an_engine_died_on_meets_no_other(
    monitor: Monitor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the next death would be held against the other's rows too."""
    engine = Meeting(0.05)
    monkeypatch.setattr(pool, "make_engine", lambda spec: engine)
    for work in (["a", "b"], ["c"]):
        monitor.begin(pool.digest(work), "an actor that died")
    actor = EngineActor(job_for(asking([]), tmp_path), Handle(monitor))  # type: ignore[arg-type]
    run_both(actor, batch_of("a", "b"), batch_of("c"))
    assert engine.met == [False] * 4


def test_a_death_is_held_against_the_rows_of_its_batch_alone(monitor: Monitor, tmp_path: Path) -> None:
    """The engine dies on one row, with another batch in it; Ray sends both to another actor, again and again."""
    guilty, innocent = batch_of("a", "deadly", "b"), batch_of("c", "d")
    names = {pool.digest(batch["id"].to_pylist()) for batch in (guilty, innocent)}
    for name in names:  # the first death, with both in the engine
        assert monitor.begin(name, "an actor that died") == 0
    task = Task()
    while True:
        try:
            found = [table for batch in (innocent, guilty) for table in [actor_for(task, monitor, tmp_path)(batch)]]
            break
        except SystemExit:
            continue
    assert [table["id"].to_pylist() for table in found] == [["c", "d"], ["a", "b"]]
    assert [row["id"] for row in read_table(tmp_path / "failed").to_pylist()] == ["deadly"]
