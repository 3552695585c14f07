"""A shard: the small description of a part of the data that is sent to a worker to read."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Piece:
    """A part of a data set: `first` to `last` are bytes (JSONL), row groups (Parquet), rows (Arrow), or a hub shard.

    `rows` is the number of rows, exact for Parquet, datasets directories and the demo, and estimated otherwise; `limit` is
    the maximum number of rows to read (data.max_rows); `root` is the cloud address of the path, "" = local.
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
    """Make a name safe to use in a file name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name)[-60:]
