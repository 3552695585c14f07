"""Rows that are scored with the fake engine, and what scoring them left."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet

from ual_ray.parquet import read_table

Row = dict[str, Any]
# Commands choose a precision where none is set, and the step alone does not.
FAKE = ["engine.kind=fake", "engine.dtype=float32", "data.test_share=0", "data.validation_share=0", "elicit.retest_share=0"]
ESTIMATORS = ("verbalized_error", "p_true", "nll")


@dataclass(frozen=True)
class Scored:
    """What scoring left: its folder, its figures, and what it printed."""

    folder: Path
    figures: dict[str, Any]
    printed: str

    @property
    def rows(self) -> list[Row]:
        """The scored rows, ordered by id."""
        return read_table(self.folder / "scored").to_pylist()

    @property
    def store(self) -> Path:
        """Where all that was measured is kept, below the folder that was scored into."""
        return self.folder.parent / "store"


Score = Callable[..., Scored]


def alpaca(start: int, stop: int) -> list[Row]:
    return [{"instruction": f"What is {n} + {n}?", "output": f"{n} + {n} = {2 * n}", "id": f"q{n}"} for n in range(start, stop)]


def write(path: Path, rows: list[Row]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def measured(store: Path) -> list[Row]:
    """Every row that an engine was asked about, as often as it was."""
    return [row for file in sorted(store.glob("*/finished/*.parquet")) for row in pyarrow.parquet.read_table(file).to_pylist()]


def files_of(folder: Path) -> dict[str, int]:
    return {str(file.relative_to(folder)): file.stat().st_mtime_ns for file in folder.rglob("*.parquet")}


def newest(out: Path) -> Path:
    return out / (out / "newest").read_text()
