"""The Ray Data source, without Ray: what a read task yields, tells the monitor, and leaves behind."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from ual_ray import columns as col
from ual_ray.config import DataConfig
from ual_ray.data import canonical as prepare
from ual_ray.data.canonical import ReadOptions
from ual_ray.data.dedup import Deduplicator
from ual_ray.data.reading import find_pieces
from ual_ray.data.shard import Piece
from ual_ray.engines.monitor import Limits, Monitor
from ual_ray.parquet import read_table
from ual_ray.run import machines as stream
from ual_ray.run.machines import _read, row_source


class Handle:
    """Has the form of an actor's handle, and calls at once."""

    def __init__(self, target: Any) -> None:
        self._target = target

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=getattr(self._target, name))


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do without Ray, and make small blocks."""
    monkeypatch.setattr(stream.ray, "get", lambda value: value)
    monkeypatch.setattr(prepare, "ROWS_PER_BLOCK", 50)


def piece_of(folder: Path, good: int, bad: int = 0) -> Piece:
    rows = [{"instruction": "q", "output": ""}] * bad
    rows += [{"instruction": f"q{number}", "output": "a"} for number in range(good)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (piece,) = find_pieces(DataConfig(path=str(folder / "rows.jsonl")))
    return piece


def read(piece: Piece, folder: Path, monitor: Monitor, *splits: str) -> Iterator[pa.Table]:
    plan = ReadOptions(DataConfig(), "alpaca", folder / "out")
    return _read(piece, 0, plan=plan, splits=splits or ("train",), claims=Handle(Deduplicator()), monitor=Handle(monitor))


def test_the_wanted_splits_are_yielded_and_all_are_written(tmp_path: Path) -> None:
    monitor = Monitor()
    table = pa.concat_tables(read(piece_of(tmp_path, 120, bad=3), tmp_path, monitor, "train", "test"))
    assert table.schema.equals(col.ROWS)
    assert set(table["split"].to_pylist()) == {"train", "test"}
    everything = read_table(tmp_path / "out" / col.ROWS_FOLDER)
    assert len(everything) == 120
    assert len(table) == sum(split != "validation" for split in everything["split"].to_pylist())
    assert (monitor.counts().read, monitor.counts().bad, dict(monitor.counts().reasons)) == (123, 3, {"no response": 3})


def test_a_block_without_a_wanted_row_has_the_columns_all_the_same(tmp_path: Path) -> None:
    (table,) = read(piece_of(tmp_path, 3), tmp_path, Monitor(), "no such split")
    assert (len(table), table.schema) == (0, col.ROWS)


def test_too_many_bad_rows_end_the_reading(tmp_path: Path) -> None:
    monitor = Monitor(Limits(bad=0.1))
    tables = list(read(piece_of(tmp_path, 500, bad=80), tmp_path, monitor))
    assert len(tables) == 1  # a hundred rows have to be there before anything is judged
    assert monitor.stopped()
    assert len([*(tmp_path / "out" / "quarantine").iterdir()]) == 2


def test_nothing_is_read_for_a_job_that_has_to_stop(tmp_path: Path) -> None:
    monitor = Monitor(Limits(failed=0.0))
    monitor.scored(100, ["x"])
    assert list(read(piece_of(tmp_path, 500), tmp_path, monitor)) == []
    assert not (tmp_path / "out").exists()


def test_there_is_a_task_per_piece_and_it_travels() -> None:
    pieces = [Piece(f"p{number}", f"{number}.jsonl", "jsonl") for number in range(3)]
    source = row_source(pieces, ReadOptions(DataConfig(), "alpaca", Path("out")), ["train"], None, None)
    tasks = source.get_read_tasks(parallelism=100)
    assert len(tasks) == 3
    assert source.estimate_inmemory_data_size() is None
    assert pickle.loads(pickle.dumps(source)).get_read_tasks(1)[2].metadata == tasks[2].metadata  # noqa: S301
