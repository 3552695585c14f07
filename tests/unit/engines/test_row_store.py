"""The row store: which rows it has, in what order, and which files it ignores."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ual_ray.engines.row_store import RowStore
from ual_ray.errors import UserError

SCHEMA = pa.schema([("id", pa.string()), ("value", pa.int64()), ("status", pa.string())])


class Stored:
    """A store whose files a test writes."""

    def __init__(self, folder: Path) -> None:
        self.store = RowStore(folder / "store", SCHEMA)
        self.store.finished.mkdir(parents=True)
        self.store.checkpoint.mkdir()

    def add(self, name: str, *values: tuple[str, int], pending: bool = False, failed: bool = False) -> None:
        rows = [{"id": one, "value": value, "status": "failed" if failed else "ok"} for one, value in values]
        table = pa.Table.from_pylist(rows, SCHEMA)
        if failed:
            self.store.add_failed(table)
            return
        pyarrow.parquet.write_table(table, self.store.finished / f"{name}-0.parquet")
        suffix = ".pending.parquet" if pending else ".parquet"
        pyarrow.parquet.write_table(table.select(["id"]), self.store.checkpoint / f"{name}{suffix}")

    def values(self, *ids: str) -> list[tuple[str, int]]:
        rows = [row for table in self.store.select(chunked(*ids)) for row in table.to_pylist()]
        return [(row["id"], row["value"]) for row in rows]

    def missing(self, *ids: str) -> list[str]:
        return self.store.missing(chunked(*ids)).to_pylist()


def chunked(*ids: str) -> pa.ChunkedArray:
    return pa.chunked_array([[*ids]], pa.string())


@pytest.fixture
def stored(tmp_path: Path) -> Stored:
    return Stored(tmp_path)


def test_an_empty_store_has_no_rows(tmp_path: Path) -> None:
    store = RowStore(tmp_path / "new", SCHEMA)
    assert [*store.select(chunked("a"))] == []
    assert store.missing(chunked("b", "a")).to_pylist() == ["b", "a"]
    assert store.count() == store.count(pyarrow.compute.field("status") == "ok") == 0
    store.retry_failed()
    assert not store.folder.exists(), "reading makes no folder"


def test_wanted_rows_come_once_in_the_order_of_the_files(stored: Stored) -> None:
    stored.add("1", ("c", 1), ("a", 2), ("x", 3))
    stored.add("2", ("a", 4), ("b", 5))
    assert stored.values("a", "b", "c", "b") == [("c", 1), ("a", 2), ("b", 5)]
    assert stored.values("b") == [("b", 5)]
    assert stored.missing("a", "d", "b", "e") == ["d", "e"]


def test_only_the_named_columns_are_read_and_those_a_file_lacks_are_null(stored: Stored) -> None:
    stored.add("1", ("a", 1))
    pyarrow.parquet.write_table(pa.table({"id": ["b"]}), stored.store.finished / "2.parquet")
    tables = [*stored.store.select(chunked("a", "b"), ["id", "value"])]
    assert [table.to_pylist() for table in tables] == [[{"id": "a", "value": 1}], [{"id": "b", "value": None}]]
    assert next(stored.store.select(chunked("b"))).schema.equals(SCHEMA)


def test_incomplete_files_are_ignored(stored: Stored) -> None:
    stored.add("1", ("a", 1))
    stored.add("2", ("b", 2), pending=True)
    (stored.store.finished / "2-0.parquet").write_bytes(b"PAR1 half a file")
    assert stored.values("a", "b") == [("a", 1)]
    assert stored.missing("a", "b") == ["b"]
    assert stored.store.count() == 1


def test_a_finished_row_comes_before_a_failed_one(stored: Stored) -> None:
    stored.add("", ("a", 1), ("b", 2), failed=True)
    stored.add("9", ("a", 3))
    assert stored.values("a", "b") == [("a", 3), ("b", 2)]
    assert stored.store.count() == 1
    stored.store.retry_failed()
    assert stored.missing("a", "b") == ["b"]


def test_the_same_failed_rows_are_kept_once(stored: Stored) -> None:
    for _ in range(2):
        stored.add("", ("a", 1), failed=True)
    assert len([*stored.store.failed.iterdir()]) == 1


def test_counts_by_condition(stored: Stored) -> None:
    stored.add("1", ("a", 1), ("b", 2))
    stored.add("2", ("c", 3))
    assert stored.store.count() == 3
    assert stored.store.count(pyarrow.compute.field("value") > 1) == 2


def test_finished_rows_whose_files_were_removed_are_reported(stored: Stored) -> None:
    stored.add("1", ("a", 1))
    stored.store.check_complete(chunked("a"))
    with pytest.raises(UserError, match=r"(?s)1 of 2 rows are finished, but missing from the store.*finished"):
        stored.store.check_complete(chunked("a", "b"))


@pytest.mark.slow
@settings(max_examples=25)
@given(
    files=st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=6), max_size=4),
    wanted=st.lists(st.sampled_from("abcdefghij"), max_size=8, unique=True),
)
def test_the_first_row_of_each_wanted_id(
    files: list[list[str]], wanted: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    stored = Stored(tmp_path_factory.mktemp("store"))
    rows = [(identity, 10 * number + at) for number, file in enumerate(files) for at, identity in enumerate(file)]
    for number, file in enumerate(files):
        stored.add(str(number), *((identity, 10 * number + at) for at, identity in enumerate(file)))
    first: dict[str, int] = {}
    for identity, value in rows:
        first.setdefault(identity, value)
    assert stored.values(*wanted) == [(one, value) for one, value in first.items() if one in wanted]
    assert stored.missing(*wanted) == [one for one in wanted if one not in first]


@pytest.mark.parametrize("name", ["measured", "answered", "judged"])
def test_a_store_of_the_version_before_is_taken_over(stored: Stored, name: str) -> None:
    stored.add("1", ("a", 1))
    stored.add("2", ("b", 2), pending=True)
    old = stored.store.folder
    stored.store.finished.rename(old / name)
    stored.store.checkpoint.rename(old / f"{name}.finished")
    stored.store = RowStore(old, SCHEMA)
    assert stored.values("a", "b") == [("a", 1)] and stored.missing("a", "b") == ["b"]
    assert sorted(path.name for path in old.iterdir()) == ["checkpoint", "finished"]
