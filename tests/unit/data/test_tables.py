"""Tables: Parquet files and datasets directories, cut and read by row groups and rows."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ual_ray.config import DataConfig
from ual_ray.data import tables
from ual_ray.data.files import from_address
from ual_ray.data.reading import Piece, find_pieces, read_piece
from ual_ray.data.tables import group
from ual_ray.errors import UserError


def found(path: Path | str, **options: Any) -> list[Piece]:
    return find_pieces(DataConfig(path=str(path), **options))


def read(path: Path | str, **options: Any) -> list[Any]:
    return [row for piece in found(path, **options) for row in read_piece(piece)]


def as_parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


# --- Parquet ---------------------------------------------------------------------------------------------------------


def test_parquet(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": "q"}], "meta": {"a": [1, None]}}, {"messages": [], "meta": {"a": []}}]
    (tmp_path / "a.parquet").write_bytes(as_parquet(rows))
    assert read(tmp_path / "a.parquet") == rows


def test_values_of_mixed_types_in_parquet_written_by_datasets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    turns = [{"role": "user", "content": "q", "extra": {"a": 1}}, {"role": "assistant", "content": "a", "extra": 5}]
    features = datasets.Features({"messages": datasets.List(datasets.Json())})
    datasets.Dataset.from_dict({"messages": [turns]}, features=features).to_parquet(tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == [{"messages": turns}]


def test_a_parquet_file_that_is_damaged_within(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    content = bytearray(as_parquet([{"a": f"text {index}"} for index in range(1000)]))
    content[4:400] = b"\xff" * 396
    path.write_bytes(content)
    with pytest.raises(UserError, match="cannot be read") as error:
        read(path)
    assert str(path) in str(error.value)


@pytest.mark.slow
@given(st.lists(st.integers(0, 30), max_size=20), st.integers(1, 50))
def test_groups_hold_every_row_group_once(counts: list[int], most: int) -> None:
    groups = [*group(counts, most)]
    assert sum(sum(counts[first:last]) for first, last in groups) == sum(counts)
    assert all(before[1] == after[0] for before, after in zip(groups, groups[1:], strict=False))
    for first, last in groups:
        assert sum(counts[first:last]) <= most or sum(1 for count in counts[first:last] if count) == 1


def test_a_large_parquet_file_is_read_by_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "ROWS_PER_PIECE", 25)
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pa.table({"n": range(95)}), path, row_group_size=10)
    parts = found(path)
    assert [piece.rows for piece in parts] == [20, 20, 20, 20, 15]
    assert [row["n"] for piece in parts for row in read_piece(piece)] == [*range(95)]


# --- datasets directories --------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    import datasets

    datasets.disable_progress_bars()
    train = datasets.Dataset.from_list([{"n": index, "m": [{"role": "user"}]} for index in range(50)])
    train.save_to_disk(tmp_path / "one", num_shards=2)
    test = datasets.Dataset.from_list([{"n": -1}])
    datasets.DatasetDict({"train": train, "test": test}).save_to_disk(tmp_path / "both")
    return tmp_path


def test_a_datasets_directory(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "ROWS_PER_PIECE", 10)
    monkeypatch.setattr(tables, "ROWS_PER_BATCH", 7)
    parts = found(saved / "one")
    assert [piece.rows for piece in parts] == [10, 10, 5, 10, 10, 5]
    expected = [{"n": index, "m": [{"role": "user"}]} for index in range(50)]
    assert [row for piece in parts for row in read_piece(piece)] == expected
    assert read((saved / "one").as_uri()) == expected
    assert [row["n"] for row in read(saved / "one", max_rows=33)] == [*range(33)]


def test_the_splits_of_a_datasets_directory(saved: Path) -> None:
    assert len(read(saved / "both")) == len(read(saved / "both", split="train")) == 50
    assert read(saved / "both", split="test") == [{"n": -1}]
    with pytest.raises(UserError, match=r"(?s)no split 'dev'.*expected: train, test"):
        found(saved / "both", split="dev")
    with pytest.raises(UserError, match="has no splits"):
        found(saved / "one", split="test")


def test_a_datasets_directory_in_a_cloud(saved: Path) -> None:
    address = f"mock:///{saved.name}"
    filesystem, root = from_address(address)
    filesystem.create_dir(root)
    for path in (saved / "one").iterdir():
        with filesystem.open_output_stream(f"{root}/{path.name}") as stream:
            stream.write(path.read_bytes())
    assert [row["n"] for row in read(address)] == [*range(50)]
    assert [row["n"] for row in read(address, max_rows=40)] == [*range(40)]
    assert [piece.rows for piece in found(address)] == [None, None]


def test_fields_that_only_other_rows_have_are_left_out(tmp_path: Path) -> None:
    """A table has one type for all calls, so that each has the arguments of all others, as null."""
    calls = [{"name": "f", "arguments": {"city": "Rome"}}, {"name": "g", "arguments": {"zone": None, "days": [1, None]}}]
    pyarrow.parquet.write_table(pa.table({"calls": [calls], "other": pa.array([None], pa.string())}), tmp_path / "rows.parquet")
    assert pyarrow.parquet.read_table(tmp_path / "rows.parquet")["calls"].to_pylist()[0][0]["arguments"].keys() == {
        "city",
        "zone",
        "days",
    }
    calls[1]["arguments"] = {"days": [1, None]}
    assert read(tmp_path / "rows.parquet") == [{"calls": calls, "other": None}]


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    table = pa.table([["q"], ["other"], ["a"]], names=["prompt", "prompt", "completion"])
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    with pytest.raises(UserError, match="two columns of the same name"):
        read(tmp_path / "rows.parquet")
