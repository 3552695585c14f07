"""Split and read tables: row groups of Parquet files, and the Arrow files of datasets directories."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.ipc

from ual_ray.data.files import filesystem_of
from ual_ray.data.formats import BadRow, Record
from ual_ray.data.shard import Piece
from ual_ray.errors import UserError
from ual_ray.parquet import open_file

ROWS_PER_PIECE = 50_000
ROWS_PER_BATCH = 1000


def parquet_pieces(piece: Piece) -> list[Piece]:
    """Split a Parquet file at row groups."""
    with filesystem_of(piece.root).open_input_file(piece.path) as stream:
        metadata = open_file(stream).metadata
        counts = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
    return [
        replace(piece, first=first, last=last, rows=sum(counts[first:last])) for first, last in group(counts, ROWS_PER_PIECE)
    ]


def group(counts: Sequence[int], most: int) -> Iterator[tuple[int, int]]:
    """Merge neighbouring row groups up to `most` rows, at least one each; yield (first, last + 1)."""
    first, rows = 0, 0
    for index, count in enumerate(counts):
        if rows and rows + count > most:
            yield first, index
            first, rows = index, 0
        rows += count
    if rows:
        yield first, len(counts)


def arrow_pieces(piece: Piece) -> list[Piece]:
    """Split an Arrow file at any row; a cloud file is not split."""
    if piece.root:
        return [piece]  # counting would read the whole file
    with pa.memory_map(piece.path) as stream:
        rows = sum(batch.num_rows for batch in pa.ipc.open_stream(stream))
    return [
        replace(piece, first=first, last=min(first + ROWS_PER_PIECE, rows), rows=min(ROWS_PER_PIECE, rows - first))
        for first in range(0, rows, ROWS_PER_PIECE)
    ]


def read_parquet(piece: Piece) -> Iterator[Record | BadRow]:
    """Yield the rows of the shard's row groups."""
    with filesystem_of(piece.root).open_input_file(piece.path) as stream:
        file = open_file(stream, pre_buffer=bool(piece.root))
        groups = range(piece.first, file.num_row_groups if piece.last is None else piece.last)
        for batch in file.iter_batches(batch_size=ROWS_PER_BATCH, row_groups=groups):
            yield from rows_of(batch)


def read_arrow(piece: Piece) -> Iterator[Record | BadRow]:
    """Yield the shard's rows of an Arrow file."""
    with filesystem_of(piece.root).open_input_stream(piece.path) if piece.root else pa.memory_map(piece.path) as stream:
        start = 0
        for batch in pa.ipc.open_stream(stream):
            first, end = max(piece.first - start, 0), batch.num_rows if piece.last is None else piece.last - start
            if end <= 0:
                return
            for offset in range(first, min(end, batch.num_rows), ROWS_PER_BATCH):
                yield from rows_of(batch.slice(offset, min(ROWS_PER_BATCH, end - offset)))
            start += batch.num_rows


def rows_of(batch: pa.RecordBatch) -> Iterator[Record]:
    """Yield the rows of a batch as plain Python values. Raises UserError for two columns of one name."""
    if len(set(batch.schema.names)) < batch.num_columns:
        raise UserError(
            "the file has two columns of the same name", got=", ".join(batch.schema.names), fix="rename or delete one of them"
        )
    batch.validate(full=True)  # a damaged file of Arrow would end the process
    try:
        rows: Iterable[Record] = batch.to_pylist()
    except (ArithmeticError, LookupError) as error:  # a date before the year 1, a time zone that does not exist
        raise UserError(
            "a column has values that Python does not have", got=error, fix="write times and durations as numbers or text"
        ) from error
    if b'"_type": "Json"' in (batch.schema.metadata or {}).get(b"huggingface", b""):
        # datasets stores values of mixed types as JSON text, and records that only in this metadata.
        from datasets import Features

        rows = map(Features.from_arrow_schema(batch.schema).decode_example, rows)
    return ({name: _without_nulls(value) for name, value in row.items()} for row in rows)


def _without_nulls(value: Any) -> Any:
    """Leave out the null fields of structs: a table has every field of any row in all of them, such as arguments of calls."""
    if isinstance(value, dict):
        return {name: _without_nulls(part) for name, part in value.items() if part is not None}
    return [_without_nulls(part) for part in value] if isinstance(value, list) else value
