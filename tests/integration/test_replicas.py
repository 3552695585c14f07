"""Actors that have nothing left to do are given back while others work; finished rows are not sent again by any machine."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pytest
import ray
from rich.console import Console

from ual_ray.config import EngineConfig
from ual_ray.config.files import URI_FILE, WORKING_FOLDERS
from ual_ray.engines import Engine, EngineSpec
from ual_ray.engines.pool import PoolJob, map_file
from ual_ray.engines.row_store import RowStore
from ual_ray.parquet import write_table
from ual_ray.run.machines import NAME, here, keep_here
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


class Note:
    """Notes the rows that are sent."""

    def __init__(self, folder: Path) -> None:
        """Take the folder in which a file is made for each row."""
        self._folder = folder

    def __call__(self, rows: Sequence[dict[str, Any]], engine: Engine) -> list[dict[str, Any]]:
        """Return the rows; every third one is one that the engine failed on."""
        for row in rows:
            (self._folder / row["id"]).touch(exist_ok=False)
        failed = {"status": "quarantined", "error": "engine: too hot"}
        return [row | {"given_back": False} | (failed if int(row["id"]) % 3 == 2 else {"status": "ok"}) for row in rows]


@pytest.mark.usefixtures("local_ray")
def test_finished_rows_are_not_sent_again_where_the_driver_alone_has_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UAL_CACHE", str(tmp_path))
    output = tmp_path / WORKING_FOLDERS / "0123" / "run"
    (output / "sent").mkdir(parents=True)
    (output.parent / URI_FILE).write_text("s3://bucket/run")
    kept = keep_here(output)
    try:
        assert here()["num_cpus"] == 0
        config = EngineConfig(kind="fake", batch_size=4, min_actors=1, max_actors=1)
        job = PoolJob(EngineSpec(config, "fake"), Note(output / "sent"), RowStore(output / "store", SCHEMA))
        for count in (6, 12):  # each row once, or `touch` fails
            write_table(pa.Table.from_pylist([{"id": str(number)} for number in range(count)]), output / "rows.parquet")
            table = pa.concat_tables(map_file(output / "rows.parquet", job, Meter(Console(), "rows", count, "rows")))
            assert sorted(map(int, table["id"].to_pylist())) == [*range(count)]
            assert table["status"].to_pylist().count("quarantined") == count // 3
            # As the next command does.
            for number in range(count):
                if number % 3 == 2:
                    (output / "sent" / str(number)).unlink()
            job.store.retry_failed()
    finally:
        ray.kill(kept)
    with pytest.raises(ValueError, match=NAME):
        ray.get_actor(NAME)
