"""The piece: what a worker is given to read, small enough to travel."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Piece:
    """A part of a data set: `first` to `last` are bytes of a JSONL file, row groups, rows of an Arrow file, or a shard.

    `rows` is the number of rows, exact for Parquet, datasets directories and the demo, and estimated otherwise; `limit` is
    the most rows to read (data.max_rows); `root` the cloud address a path belongs to, "" on this machine.
    """

    name: str
    path: str
    kind: str
    first: int = 0
    last: int | None = None
    rows: int | None = None
    limit: int | None = None
    root: str = ""
    subset: str | None = None
    split: str | None = None
    revision: str | None = None
    shards: int = 1


def safe_name(name: str) -> str:
    """Turn a name into a part of a file name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name)[-60:]
