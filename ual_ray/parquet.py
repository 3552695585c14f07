"""Read and write the rows of a stage, and compute digests of their content."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute
import pyarrow.dataset
import pyarrow.parquet

from ual_ray import columns as col
from ual_ray.columns import ID, ID_LENGTH
from ual_ray.config.files import replacing

ROWS_PER_FILE = 10_000


def file_digest(path: Path) -> str:
    """Hash a file, or the files of a folder in order of name: 16 hexadecimal digits of SHA-256."""
    hasher = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file() or file == path:
            with file.open("rb") as stream:
                hasher.update(hashlib.file_digest(stream, "sha256").digest())
    return hasher.hexdigest()[:ID_LENGTH]


def content_digest(path: Path | str, columns: Sequence[str]) -> str:
    """Hash the named columns of all rows, independent of files, blocks and row order; missing columns count as null.

    If the id, a hash of the messages, is among the columns, the digest covers the messages too.
    """
    files = pyarrow.dataset.dataset(str(path), format="parquet")
    table = files.to_table(columns=[name for name in columns if name in files.schema.names])
    table = table.sort_by(ID) if ID in table.column_names else table
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema.remove_metadata()) as stream:
        stream.write_table(table.replace_schema_metadata(None).combine_chunks())
    return hashlib.sha256(sink.getvalue()).hexdigest()[:ID_LENGTH]


def write_rows(rows: Sequence[Mapping[str, Any]], schema: pa.Schema, path: Path) -> None:
    """Write rows atomically to one Parquet file."""
    write_table(pa.Table.from_pylist([dict(row) for row in rows], schema=schema), path)


def write_table(table: pa.Table, path: Path) -> None:
    """Write a table atomically to one Parquet file."""
    with replacing(path) as part:
        pyarrow.parquet.write_table(table, part)


def write_tables(tables: Iterable[pa.Table], schema: pa.Schema, folder: Path) -> None:
    """Replace a folder by Parquet files of these rows, with ROWS_PER_FILE rows in memory; no rows give one empty file."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    number, waiting = 0, [schema.empty_table()]
    for table in tables:
        waiting.append(table.select(schema.names).cast(schema))
        if sum(map(len, waiting)) >= ROWS_PER_FILE:
            write_table(pa.concat_tables(waiting), folder / f"part-{number:05d}.parquet")
            number, waiting = number + 1, []
    if waiting:
        write_table(pa.concat_tables(waiting), folder / f"part-{number:05d}.parquet")


def read_table(path: Path | str, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a Parquet file, or all Parquet files of a folder, sorted by id."""
    table = pyarrow.dataset.dataset(str(path), format="parquet").to_table(columns=None if columns is None else [*columns])
    return table.sort_by(ID) if ID in table.column_names else table


def recorded_map(smoothed: Path) -> dict[str, Any]:
    """Read from a file of alphas the map that produced it and the digest of its scores; empty for a foreign file."""
    file = next(smoothed.rglob("*.parquet")) if smoothed.is_dir() else smoothed
    metadata = pyarrow.parquet.read_schema(file).metadata or {}
    return json.loads(metadata.get(col.MAP_METADATA, b"{}"))
