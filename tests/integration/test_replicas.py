"""Actors that have nothing left to do are given back while others still work, so that their GPUs serve what waits."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray
from rich.console import Console

from ual_ray.config import EngineConfig
from ual_ray.engines import Engine, EngineSpec
from ual_ray.engines.pool import PoolJob, map_file
from ual_ray.engines.row_store import RowStore
from ual_ray.parquet import write_table
from ual_ray.run.progress import Meter

SCHEMA = pa.schema([("id", pa.string()), ("given_back", pa.bool_()), ("status", pa.string()), ("error", pa.string())])
SECONDS_OF_PATIENCE = 60.0


class WaitForOthers:
    """Finishes row 0 only after both CPUs were taken, by two actors, and one of them is free again."""

    def __call__(self, rows: Sequence[dict[str, Any]], engine: Engine) -> list[dict[str, Any]]:
        """Return the rows, and whether a CPU was given back while row 0 was worked on."""
        given_back = rows[0]["id"] == "0" and _becomes(lambda free: free < 1) and _becomes(lambda free: free >= 1)
        return [row | {"given_back": given_back, "status": "ok", "error": None} for row in rows]


def _becomes(condition: Callable[[float], bool]) -> bool:
    """Wait until the number of free CPUs meets the condition; tell whether it did."""
    end = time.monotonic() + SECONDS_OF_PATIENCE
    while not (met := condition(ray.available_resources().get("CPU", 0.0))) and time.monotonic() < end:
        time.sleep(0.1)
    return met


@pytest.mark.usefixtures("local_ray")
def test_an_actor_without_work_is_given_back_while_another_works(tmp_path: Path) -> None:
    rows = [{"id": str(number)} for number in range(8)]
    write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    config = EngineConfig(kind="fake", batch_size=1, rows_per_block=1, min_actors=1, max_actors=2)
    job = PoolJob(EngineSpec(config, "fake"), WaitForOthers(), RowStore(tmp_path / "store", SCHEMA))
    table = pa.concat_tables(map_file(tmp_path / "rows.parquet", job, Meter(Console(), "rows", 8, "rows")))
    assert sorted(table["id"].to_pylist()) == [row["id"] for row in rows]
    assert [row["id"] for row in table.to_pylist() if row["given_back"]] == ["0"]
