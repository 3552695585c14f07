"""Fuzz targets of files of data: of every kind, damaged ones, tables with columns of any type."""

from __future__ import annotations

import csv
import gzip
import io
import json
from contextlib import suppress
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet
from fuzz_rows import Rows, lines_of
from fuzz_source import Source, Target, of_bytes, scratch

from ual_ray.config import DataConfig
from ual_ray.config.registry import FORMATS
from ual_ray.data.formats import BadRow, convert
from ual_ray.data.labels import read_labels
from ual_ray.data.reading import find_pieces, read_piece
from ual_ray.data.shard import Piece
from ual_ray.errors import UserError

FILE_KINDS = ("jsonl", "json", "csv", "tsv", "jsonl.gz", "json.gz", "parquet")


def file_of(data: bytes) -> Any:
    source = Rows(data)
    kind = source.pick(FILE_KINDS)
    rows = [source.row(FORMATS["alpaca"]) for _ in range(source.number(4))]
    content = write(kind, rows)
    return kind, source.damaged(content)


def write(kind: str, rows: list[dict[str, Any]]) -> bytes:
    texts = [{str(key): str(value) for key, value in row.items()} for row in rows]
    lines = "\n".join(map(json.dumps, rows))
    if kind == "parquet":
        sink = pa.BufferOutputStream()
        safe = [{key: value.encode(errors="replace").decode() for key, value in row.items() if key.isascii()} for row in texts]
        pyarrow.parquet.write_table(pa.Table.from_pylist(safe) if safe else pa.table({"x": [1]}), sink)
        return sink.getvalue().to_pybytes()
    if kind in ("csv", "tsv"):
        text = io.StringIO()
        writer = csv.writer(text, delimiter="\t" if kind == "tsv" else ",")
        writer.writerows([["instruction", "output"], *([*row.values()][:2] for row in texts)])
        content = text.getvalue().encode(errors="replace")
    else:
        content = (f"[{lines.replace(chr(10), ', ')}]" if kind.startswith("json.") or kind == "json" else lines).encode()
    return gzip.compress(content, 1) if kind.endswith(".gz") else content


def check_file(given: tuple[str, bytes]) -> None:
    """A file of any content is read, or refused as a user's mistake."""
    kind, content = given
    with scratch(f"data.{kind}", content) as path, suppress(UserError):
        for piece in find_pieces(DataConfig(path=str(path))):
            for row in read_piece(piece):
                assert isinstance(row, dict | BadRow)


def check_labels(given: tuple[bytes, int]) -> None:
    """A file of labels is read, or refused as a user's mistake."""
    content, step = given
    kind, header = ("csv", b"id,correct\n") if step % 2 else ("jsonl", b'{"id": "a", "correct": 1}\n')
    with scratch(f"labels.{kind}", header + content) as path, suppress(UserError):
        assert all(isinstance(verdict, bool) for verdict in read_labels(path).values())


# --- tables ----------------------------------------------------------------------------------------------------------


def table_of(data: bytes) -> Any:
    source = Source(data)
    kinds = [source.pick(ARROW_TYPES) for _ in range(1 + source.number(3))]
    return [(kind, [source.number(256) * 2 ** source.number(60) for _ in range(2)]) for kind in kinds], source.number(2)


ARROW_TYPES = (
    *(pa.timestamp("s"), pa.timestamp("ns"), pa.timestamp("us", "Foo/Bar"), pa.timestamp("ms", "+05:00"), pa.date64()),
    *(pa.duration("s"), pa.duration("ns"), pa.time64("ns"), pa.int64(), pa.uint64(), pa.float64()),
)


def check_table(given: tuple[list[tuple[pa.DataType, list[int]]], int]) -> None:
    """Columns of any type are read, or the file is refused as a user's mistake."""
    columns, arrow = given
    arrays = [pa.array([value % 2**63 for value in values], pa.int64()).view(kind) for kind, values in columns]
    batch = pa.record_batch([*arrays, pa.array(["q", "q"])], [*(f"c{at}" for at in range(len(arrays))), "instruction"])
    sink = pa.BufferOutputStream()
    if arrow:
        with pa.ipc.new_stream(sink, batch.schema) as stream:
            stream.write_batch(batch)
    else:
        with suppress(pa.ArrowInvalid):
            pyarrow.parquet.write_table(pa.Table.from_batches([batch]), sink)
    with scratch("data.x", sink.getvalue().to_pybytes()) as path, suppress(UserError):
        for row in read_piece(Piece("x", str(path), "arrow" if arrow else "parquet")):
            assert str(row)
            list(convert([row], "alpaca", {}))


def arrow_of(data: bytes) -> Any:
    return "arrow", Source(data).damaged(ARROW_FILE)


def _arrow_file() -> bytes:
    sink = pa.BufferOutputStream()
    rows = pa.table({"instruction": ["Why?", "What?"], "output": ["So.", "That."], "n": [1, 2], "l": [["a"], ["b", "c"]]})
    with pa.ipc.new_stream(sink, rows.schema) as stream:
        stream.write_table(rows)
    return sink.getvalue().to_pybytes()


ARROW_FILE = _arrow_file()


def check_arrow(given: tuple[str, bytes]) -> None:
    """A damaged Arrow file of a datasets directory is read, or refused as a user's mistake."""
    kind, content = given
    with scratch("data.arrow", content) as path, suppress(UserError):
        for row in read_piece(Piece("x", str(path), kind)):
            assert isinstance(row, dict)


TARGETS: dict[str, Target] = {
    "data file": of_bytes(file_of, check_file, size=300),
    "labels": of_bytes(lines_of, check_labels, size=60),
    "table": of_bytes(table_of, check_table, size=20),
    "arrow": of_bytes(arrow_of, check_arrow, size=20),
}
