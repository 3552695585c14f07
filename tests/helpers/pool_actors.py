"""Actors of the pool without Ray, and a task that dies on some rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa

from ual_ray.config import EngineConfig
from ual_ray.engines import EngineDied, EngineSpec
from ual_ray.engines.monitor import Monitor
from ual_ray.engines.pool import (
    EngineActor,
    PoolJob,
)
from ual_ray.engines.row_store import RowStore

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


def job_for(task: Task, folder: Path) -> PoolJob:
    return PoolJob(EngineSpec(EngineConfig(kind="fake"), "m"), task, RowStore(folder, SCHEMA))


def actor_for(task: Task, monitor: Monitor, folder: Path = Path("not written to")) -> EngineActor:
    return EngineActor(job_for(task, folder), Handle(monitor))


def batch_of(*names: str) -> pa.Table:
    return pa.table({"id": list(names), "value": [len(name) for name in names], "text": ["not in the schema"] * len(names)})
