"""Actors that have nothing left to do are given back while others still work, so that their GPUs serve what waits."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pytest
from rich.console import Console

from ual_ray.config import EngineConfig
from ual_ray.engines import Engine, EngineSpec
from ual_ray.engines.pool import PoolJob, map_file
from ual_ray.engines.row_store import RowStore
from ual_ray.parquet import write_table
from ual_ray.run.progress import Meter

SCHEMA = pa.schema([("id", pa.string()), ("given_back", pa.bool_()), ("status", pa.string()), ("error", pa.string())])
# More than one actor may have in its queue.
ROWS = 24
SECONDS_OF_PATIENCE = 120.0


class WaitForOther:
    """Finishes row 0 only when the process of another actor, which has worked on rows, has ended."""

    def __init__(self, folder: Path) -> None:
        """Take the folder in which the actors' processes are noted."""
        self._folder = folder

    def __call__(self, rows: Sequence[dict[str, Any]], engine: Engine) -> list[dict[str, Any]]:
        """Return the rows, and whether another actor was given back while row 0 was worked on."""
        (self._folder / str(os.getpid())).touch()
        given_back = rows[0]["id"] == "0" and _becomes(self._others) and _becomes(self._others_ended)
        return [row | {"given_back": given_back, "status": "ok", "error": None} for row in rows]

    def _others(self) -> list[int]:
        return [pid for file in self._folder.iterdir() if (pid := int(file.name)) != os.getpid()]

    def _others_ended(self) -> bool:
        return not any(map(psutil.pid_exists, self._others()))


def _becomes(condition: Callable[[], object]) -> bool:
    """Wait until the condition holds; tell whether it did."""
    end = time.monotonic() + SECONDS_OF_PATIENCE
    while not (met := bool(condition())) and time.monotonic() < end:
        time.sleep(0.1)
    return met


@pytest.mark.usefixtures("local_ray")
def test_an_actor_without_work_is_given_back_while_another_works(tmp_path: Path) -> None:
    (tmp_path / "actors").mkdir()
    rows = [{"id": str(number)} for number in range(ROWS)]
    write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    config = EngineConfig(kind="fake", batch_size=1, rows_per_block=1, min_actors=1, max_actors=2)
    job = PoolJob(EngineSpec(config, "fake"), WaitForOther(tmp_path / "actors"), RowStore(tmp_path / "store", SCHEMA))
    table = pa.concat_tables(map_file(tmp_path / "rows.parquet", job, Meter(Console(), "rows", ROWS, "rows")))
    assert sorted(table["id"].to_pylist()) == sorted(row["id"] for row in rows)
    assert [row["id"] for row in table.to_pylist() if row["given_back"]] == ["0"]
