"""Pieces: every kind of file and folder, split and read in parts, and what cannot be read is named."""

from __future__ import annotations

import csv
import gzip
import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from ual_ray.config import DataConfig
from ual_ray.data import reading as pieces
from ual_ray.data import tables
from ual_ray.data.files import from_address
from ual_ray.data.fingerprint import fingerprint
from ual_ray.data.peek import peek
from ual_ray.data.reading import Piece, find_pieces, read_piece
from ual_ray.data.text_files import BOM
from ual_ray.errors import UserError

Rows = list[dict[str, Any]]

ROWS: Rows = [
    {"instruction": "Say hi.", "input": "", "output": "Hi."},
    {"instruction": "Translate.", "input": "être 😀", "output": 'to\r\nbe, or "not"'},
    {"instruction": "日本", "input": "\tx", "output": "\u2028"},
]


def found(path: Path | str, **options: Any) -> list[Piece]:
    return find_pieces(DataConfig(path=str(path), **options))


def read(path: Path | str, **options: Any) -> list[Any]:
    return [row for piece in found(path, **options) for row in read_piece(piece)]


def as_jsonl(rows: Rows) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def as_array(rows: Rows) -> bytes:
    return json.dumps(rows, indent=1, ensure_ascii=False).encode()


def as_cells(rows: Rows, delimiter: str = ",") -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def as_tabs(rows: Rows) -> bytes:
    return as_cells(rows, "\t")


def as_parquet(rows: Rows) -> bytes:
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


KINDS: dict[str, Callable[[Rows], bytes]] = {
    "rows.jsonl": as_jsonl,
    "rows.ndjson": as_jsonl,
    "lines.json": as_jsonl,
    "ROWS.JSONL": as_jsonl,
    "rows.json": as_array,
    "rows.csv": as_cells,
    "rows.tsv": as_tabs,
}


# --- kinds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("mark", [b"", BOM])
def test_text_files(name: str, packed: bool, mark: bytes, tmp_path: Path) -> None:
    content = mark + KINDS[name](ROWS)
    path = tmp_path / (name + ".gz" if packed else name)
    path.write_bytes(gzip.compress(content) if packed else content)
    assert read(path) == ROWS
    assert [piece.rows for piece in found(path)] == [3]


def test_a_folder_of_mixed_files_is_read_in_order_of_name(tmp_path: Path) -> None:
    (tmp_path / "b" / "c").mkdir(parents=True)
    (tmp_path / ".cache").mkdir()
    (tmp_path / "b" / "c" / "x.json").write_bytes(as_array([{"n": 3}]))
    (tmp_path / "b" / "a.csv.gz").write_bytes(gzip.compress(b"n\n2\n"))
    (tmp_path / "a.parquet").write_bytes(as_parquet([{"n": 1}]))
    for ignored in ("README.md", ".hidden.jsonl", ".cache/a.jsonl", "dataset_infos.json"):
        (tmp_path / ignored).write_text("{")
    assert read(tmp_path) == [{"n": 1}, {"n": "2"}, {"n": 3}]
    names = [piece.name for piece in found(tmp_path)]
    assert names == ["00000-00000-a.parquet", "00001-00000-b_a.csv.gz", "00002-00000-b_c_x.json"]


@pytest.mark.parametrize("name", [*KINDS, "rows.parquet", "rows.jsonl.gz"])
def test_an_address_elsewhere(name: str, tmp_path: Path) -> None:
    """Arrow's file system in memory stands for a cloud: the same code reads both."""
    address = f"mock:///{tmp_path.name}"
    filesystem, root = from_address(address)
    filesystem.create_dir(root)
    content = as_parquet(ROWS) if name == "rows.parquet" else KINDS[name.removesuffix(".gz")](ROWS)
    with filesystem.open_output_stream(f"{root}/{name}", compression=None) as stream:
        stream.write(gzip.compress(content) if name.endswith(".gz") else content)
    assert read(address) == ROWS
    assert [piece.root for piece in found(address)] == [address]
    assert fingerprint(DataConfig(path=address)) == fingerprint(DataConfig(path=address))


def test_pieces_are_small_and_travel(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(as_jsonl(ROWS))
    (piece,) = found(tmp_path / "rows.jsonl")
    content = pickle.dumps(piece)
    assert len(content) < 1000
    assert [*read_piece(pickle.loads(content))] == ROWS


def test_a_relative_path_is_found_from_any_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rows.jsonl").write_bytes(as_jsonl(ROWS))
    monkeypatch.chdir(tmp_path)
    (piece,) = found("rows.jsonl")
    monkeypatch.chdir("/")
    assert [*read_piece(piece)] == ROWS


def test_the_demo() -> None:
    (piece,) = found("demo")
    records = [*read_piece(piece)]
    assert (piece.kind, piece.rows, len(records)) == ("demo", 200, 200)
    assert set(records[0]) == {"messages", "source"}


# --- what cannot be read ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("rows.txt", b"a,b\n", "unsupported file type"),
        ("rows.parquet.gz", b"", "unsupported file type"),
        ("rows", b"", "unsupported file type"),
        ("rows.json", b'{"instruction": "q"}', "not an array"),
        ("rows.json", b'{\n "a": 1\n}\n', "not an array"),
        ("rows.json", b"[1, ", "cannot be read"),
        ("rows.json", b'[{"a": 1} {"a": 2}]', "cannot be read"),
        ("rows.json", b'[{"a": 1}] 5', "cannot be read"),
        ("rows.json", b'[{"a": "\xff"}]', "cannot be read"),
        ("rows.csv", b"a\n\xff\n", "cannot be read"),
        ("rows.csv", b"a,a\n1,2\n", "two columns of the same name"),
        ("rows.jsonl.gz", b'{"a": 1}\n', "cannot be read"),
        ("rows.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 9, mtime=0)[:-9], "cannot be read"),
        ("rows.parquet", b"not parquet", "cannot be read"),
        ("rows.parquet", b"", "cannot be read"),
    ],
)
def test_files_that_cannot_be_read_are_named(name: str, content: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=says) as error:
        read(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"])
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv", "rows.tsv"])
def test_another_encoding_is_named_with_the_command_that_changes_it(name: str, encoding: str, tmp_path: Path) -> None:
    row = {"instruction": "é", "output": "a"}
    cells = [("\t" if name.endswith("tsv") else ",").join(row), ("\t" if name.endswith("tsv") else ",").join(row.values())]
    texts = {"rows.jsonl": json.dumps(row, ensure_ascii=False), "rows.json": json.dumps([row], ensure_ascii=False)}
    (tmp_path / name).write_text(texts.get(name, "\n".join(cells)), encoding=encoding)
    with pytest.raises(UserError, match=f"(?s){name}.*utf-8.*save it in UTF-8, such as with `iconv"):
        peek(DataConfig(path=str(tmp_path / name)))


# --- parts and numbers of rows ---------------------------------------------------------------------------------------


def test_a_large_jsonl_file_is_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "BYTES_PER_PIECE", 1000)
    rows = [{"n": index, "text": "é" * (index % 50)} for index in range(300)]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(BOM + as_jsonl(rows) + b"{oops\n")
    parts = found(path)
    *good, bad = (row for piece in parts for row in read_piece(piece))
    assert len(parts) > 10
    assert good == rows
    assert "after byte" in str(bad)
    assert len({piece.name for piece in parts}) == len(parts)
    assert sum(piece.rows or 0 for piece in parts) == pytest.approx(301, rel=0.05)


@pytest.mark.parametrize("limit", [1, 19, 20, 21, 60, 94, 95, 96])
@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.csv"])
def test_max_rows_are_the_first(name: str, limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "ROWS_PER_PIECE", 20)
    monkeypatch.setattr(pieces, "BYTES_PER_PIECE", 100)
    path = tmp_path / name
    if name == "a.parquet":
        pyarrow.parquet.write_table(pa.table({"n": range(95)}), path, row_group_size=10)
    else:
        path.write_bytes({"a.jsonl": as_jsonl, "a.csv": as_cells}[name]([{"n": index} for index in range(95)]))
    rows = read(path, max_rows=limit)
    assert [int(row["n"]) for row in rows] == [*range(min(limit, 95))]
    assert sum(piece.rows or 0 for piece in found(path, max_rows=limit)) == len(rows)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.jsonl.gz", "a.json.gz"])
def test_rows_are_estimated_from_the_beginning(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "SAMPLE", 3000)
    kind = {"jsonl": as_jsonl, "json": as_array, "csv": as_cells, "tsv": as_tabs}[name.split(".")[1]]
    content = kind([{"n": index, "text": f"{index * 7919 % 1000:03} é\nx"} for index in range(5000)])
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    (piece,) = found(tmp_path / name)
    assert piece.rows == pytest.approx(5000, rel=0.15)
