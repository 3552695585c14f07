"""An actor of the pool whose engine is loaded late, and one with several batches at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pool_actors import ME, Handle, Row, Task, actor_for, batch_of, job_for

from ual_ray import columns as col
from ual_ray.engines import EngineSpec, make_engine, pool
from ual_ray.engines.monitor import Monitor
from ual_ray.engines.pool import (
    MAX_DEATHS,
    EngineActor,
)
from ual_ray.parquet import read_table


def late_actor(task: Any, monitor: Monitor, folder: Path) -> EngineActor:
    return EngineActor(replace(job_for(task, folder), late=True), Handle(monitor))


def test_an_engine_that_nothing_is_asked_is_never_loaded(
    monitor: Monitor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "make_engine", lambda spec: pytest.fail("loaded"))
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

    monkeypatch.setattr(pool, "make_engine", load)
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
        monitor.begin(col.digest(work), "an actor that died")
    actor = EngineActor(job_for(asking([]), tmp_path), Handle(monitor))  # type: ignore[arg-type]
    run_both(actor, batch_of("a", "b"), batch_of("c"))
    assert engine.met == [False] * 4


def test_a_death_is_held_against_the_rows_of_its_batch_alone(monitor: Monitor, tmp_path: Path) -> None:
    """The engine dies on one row, with another batch in it; Ray sends both to another actor, again and again."""
    guilty, innocent = batch_of("a", "deadly", "b"), batch_of("c", "d")
    names = {col.digest(batch["id"].to_pylist()) for batch in (guilty, innocent)}
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
