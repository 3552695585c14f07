"""Rows sorted by id with a bounded number of them in memory: the others are in temporary files, of which pages are mapped.

They are in the folder that Python's `tempfile` chooses, by TMPDIR, and take about twice the bytes of the columns in memory.
"""

import hashlib
import io
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.ipc

from ual_ray import columns as col
from ual_ray.errors import UserError
from ual_ray.formatting import plural

ROWS_IN_MEMORY = 100_000
# Of the folders of temporary files, which a command that was killed leaves behind.
PREFIX = "ual_ray-rows-"
# Of each sorted run every so many-th id is compared, to find bounds between which there are about ROWS_IN_MEMORY rows.
SAMPLED = 500
# Of texts that take more bytes together, Arrow counts these in 64 bits.
LONGEST_TEXTS = 2**31 - 1
# Of the values that an error names.
MOST_SHOWN = 5


def is_text(kind: pa.DataType) -> bool:
    """Whether a column holds texts."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def by_id(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Yield rows sorted by id, about ROWS_IN_MEMORY at a time.

    Rows of one id are in one table, in the order in which they came; those without one are in the last table, at its end.
    """
    with TemporaryDirectory(prefix=PREFIX) as folder:
        file = Path(folder) / "runs"
        if runs := [*_sorted_runs(batches, file)]:
            yield from _merged(runs)


def _sorted_runs(batches: Iterable[pa.RecordBatch], file: Path) -> Iterator[pa.RecordBatch]:
    """Sort ROWS_IN_MEMORY rows after the other; yield them when all are, from a file unless there are no others."""
    written, waiting, rows = None, list[pa.RecordBatch](), 0
    for batch in batches:
        if rows and rows + len(batch) > ROWS_IN_MEMORY:
            written = written or pa.ipc.new_file(str(file), batch.schema)
            written.write_table(_sorted(waiting))
            waiting, rows = [], 0
        waiting.append(batch)
        rows += len(batch)
    if written is None:
        yield from _sorted(waiting).to_batches() if rows else ()
        return
    written.write_table(_sorted(waiting))
    written.close()
    reader = pa.ipc.open_file(pa.memory_map(str(file)))
    yield from map(reader.get_batch, range(reader.num_record_batches))


def _sorted(batches: list[pa.RecordBatch]) -> pa.Table:
    return pa.Table.from_batches(batches).sort_by(col.ID).combine_chunks()


def _merged(runs: list[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Join what sorted runs have between two bounds, for one bound after the other."""
    ids = [run[col.ID] for run in runs]
    step = min(SAMPLED, ROWS_IN_MEMORY)
    bounds = pa.concat_arrays([column[::step] for column in ids]).sort()[ROWS_IN_MEMORY // step :: ROWS_IN_MEMORY // step]
    starts = [0] * len(runs)
    for bound in [*map(_key, bounds), None]:
        ends = [
            len(column) if bound is None else bisect_left(column, bound, start, key=_key)
            for column, start in zip(ids, starts, strict=True)
        ]
        if any(end > start for start, end in zip(starts, ends, strict=True)):
            part = (run.slice(start, end - start) for run, start, end in zip(runs, starts, ends, strict=True))
            yield pa.Table.from_batches(part).sort_by(col.ID)
        starts = ends


def _key(value: pa.Scalar) -> tuple[bool, Any]:
    """Order ids as Arrow does: those without a value last."""
    return not value.is_valid, value.as_py()


def check_ids(
    path: Path, parts: Iterable[pa.ChunkedArray], rows: str = "training row", read: str = "alphas are assigned"
) -> None:
    """Raise UserError unless every row has an id of its own. parts: of the ids, equal ones in one. read: what is done by it."""
    counts = [(len(ids), pa.compute.count_distinct(ids).as_py()) for ids in parts]
    count, distinct = (sum(numbers) for numbers in zip((0, 0), *counts, strict=True))
    if distinct < count:
        raise UserError(
            f"{path}: the column {col.ID} repeats or has no value",
            got=f"{distinct} different ids in {plural(count, rows)}",
            fix=f"give every row an id of its own: {read} by it",
        )


def check_splits(path: Path, parts: Iterable[pa.Array]) -> None:
    """Raise UserError where a row is in no split that a stage reads, which would leave it out. parts: of the rows' splits."""
    counts = Counter[Any]()
    for part in parts:
        counts.update({pair["values"]: pair["counts"] for pair in part.value_counts().to_pylist()})
    if other := {split: count for split, count in counts.items() if split not in col.SPLITS}:
        raise UserError(
            f"{path}: the column {col.SPLIT} has rows that no stage reads",
            got=", ".join(f"{plural(count, 'row')} of {split!r}" for split, count in islice(other.items(), MOST_SHOWN)),
            expected=", ".join(col.SPLITS),
            fix="correct these rows or leave them out",
        )


def joins(schema: pa.Schema) -> bool:
    """Whether `joined` takes all of these columns."""
    return all(
        is_text(kind) or pa.types.is_null(kind) or (pa.types.is_primitive(kind) and not pa.types.is_boolean(kind))
        for kind in schema.types
    )


class _Hash(io.RawIOBase):
    """A file of which only the hash is kept."""

    def __init__(self) -> None:
        self.sha256 = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        self.sha256.update(content)
        return len(content)


def stream_digest(table: pa.Table) -> str:
    """Hash a table as Arrow streams it: 16 hexadecimal digits of SHA-256."""
    sink = _Hash()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return sink.sha256.hexdigest()[: col.ID_LENGTH]


@contextmanager
def joined(batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Give one batch of all, with the same bytes as `combine_chunks` has in memory, as long as the block runs."""
    with TemporaryDirectory(prefix=PREFIX) as folder:
        columns, rows = [_Column(f"{folder}/{number}", kind) for number, kind in enumerate(schema.types)], 0
        for batch in batches:
            rows += len(batch)
            for column, array in zip(columns, batch.itercolumns(), strict=True):
                column.add(array)
        arrays = [column.array(rows) for column in columns]
        kinds = zip(schema, arrays, strict=True)
        yield pa.RecordBatch.from_arrays(arrays, schema=pa.schema([field.with_type(array.type) for field, array in kinds]))


class _Column:
    """A column in files: its values; which rows have one, a byte per row; and where texts end among the values."""

    def __init__(self, path: str, kind: pa.DataType) -> None:
        self._path, self._kind, self._nulls, self._bytes = path, kind, 0, 0
        self._write("ends", bytes(8))

    def add(self, array: pa.Array) -> None:
        """Write a part of the column."""
        self._nulls += array.null_count
        if pa.types.is_null(self._kind):
            return
        self._write("valid", array.is_valid().to_numpy(zero_copy_only=False))
        first, end = array.offset, array.offset + len(array)
        if is_text(self._kind):
            kind = np.int64 if pa.types.is_large_string(self._kind) else np.int32
            ends = np.frombuffer(array.buffers()[1], kind)[first : end + 1].astype(np.int64)
            self._write("ends", ends[1:] - ends[0] + self._bytes)
            first, end = ends[0], ends[-1]
        else:
            width = self._kind.bit_width // 8
            first, end = first * width, end * width
        self._write("values", memoryview(array.buffers()[-1])[first:end])
        self._bytes += int(end - first)

    def array(self, rows: int) -> pa.Array:
        """Map the column."""
        if pa.types.is_null(self._kind):
            return pa.nulls(rows)
        valid = pa.py_buffer(np.packbits(self._mapped("valid", np.uint8), bitorder="little")) if self._nulls else None
        values = pa.py_buffer(self._mapped("values", np.uint8)) if self._bytes else pa.py_buffer(b"")
        if not is_text(self._kind):
            return pa.Array.from_buffers(self._kind, rows, [valid, values], self._nulls)
        ends, kind = self._mapped("ends", np.int64), self._kind
        if pa.types.is_string(kind) and self._bytes <= LONGEST_TEXTS:
            # Written, not mapped and filled: on a full disk that would end the process.
            for start in range(0, len(ends), ROWS_IN_MEMORY):
                self._write("narrow", ends[start : start + ROWS_IN_MEMORY].astype(np.int32))
            ends = self._mapped("narrow", np.int32)
        else:
            kind = pa.large_string()
        return pa.Array.from_buffers(kind, rows, [valid, pa.py_buffer(ends), values], self._nulls)

    def _write(self, name: str, content: Any) -> None:
        with open(f"{self._path}.{name}", "ab") as file:
            file.write(content)

    def _mapped(self, name: str, kind: type[np.generic]) -> np.ndarray:
        return np.memmap(f"{self._path}.{name}", kind, "r")
