"""Sorting in bounded memory gives what sorting all rows at once gave, byte for byte."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ual_ray import columns as col
from ual_ray import sorting
from ual_ray.errors import UserError
from ual_ray.parquet import RowFiles, alphas_digest, content_digest, rows_digest
from ual_ray.train.given_rows import check_own_ids, check_values

ROW_COUNT = 300_000
COLUMNS = {
    "score": (pa.float64(), st.floats()),
    "count": (pa.int16(), st.integers(-5, 5)),
    "note": (pa.string(), st.text(max_size=9)),
    "long": (pa.large_string(), st.text(max_size=9)),
    "day": (pa.date32(), st.dates(date(2000, 1, 1))),
    "nothing": (pa.null(), st.none()),
    # Of these `sorting` joins none: all rows are in memory.
    "sure": (pa.bool_(), st.booleans()),
    "parts": (pa.list_(pa.int32()), st.lists(st.integers(0, 9), max_size=2)),
}
texts = st.one_of(st.text(max_size=3), st.integers(0, 30).map("row-{:012d}".format), st.text("0123456789abcdef", max_size=16))
kinds_of_ids = st.sampled_from([(pa.string(), texts), (pa.large_string(), texts), (pa.int64(), st.integers(-9, 9))])


@st.composite
def tables(draw: Callable[[Any], Any]) -> pa.Table:
    """Rows whose ids may repeat, start alike, or be missing, with columns of any kinds."""
    count, (kind, ids) = draw(st.integers(0, 40)), draw(kinds_of_ids)
    names = draw(st.lists(st.sampled_from([*COLUMNS]), unique=True))
    chosen = {col.ID: (kind, ids)} | {name: COLUMNS[name] for name in names}
    arrays = {
        name: pa.array(draw(st.lists(st.one_of(values, st.none()), min_size=count, max_size=count)), one)
        for name, (one, values) in chosen.items()
    }
    if draw(st.booleans()):
        arrays[col.ID] = pa.array([draw(ids) for _ in range(count)], kind)
    return pa.table(arrays)


def write(table: pa.Table, folder: Path, per_file: int) -> Path:
    for number, start in enumerate(range(0, max(1, len(table)), per_file)):
        pyarrow.parquet.write_table(table.slice(start, per_file), folder / f"{number:03d}.parquet", row_group_size=7)
    return folder


def plain_digest(folder: Path, names: list[str]) -> str:
    """Return what finished stages are keyed by: the digest of the whole table, in memory."""
    table = RowFiles(folder).to_table(names)
    table = table.sort_by(col.ID) if col.ID in names else table
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema.remove_metadata()) as stream:
        stream.write_table(table.replace_schema_metadata(None).combine_chunks())
    return hashlib.sha256(sink.getvalue()).hexdigest()[:16]


bounded = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.slow
@bounded
@given(table=tables(), most=st.integers(1, 12), per_file=st.integers(1, 50))
def test_digests_are_those_of_all_rows_in_memory(
    table: pa.Table, most: int, per_file: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = write(table, tmp_path_factory.mktemp("rows"), per_file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sorting, "ROWS_IN_MEMORY", most)
        assert content_digest(folder, [*table.column_names, "missing"]) == plain_digest(folder, table.column_names)
        without = [*reversed(table.column_names[1:])]
        assert content_digest(folder, without) == plain_digest(folder, without)


@pytest.mark.slow
@bounded
@given(table=tables(), most=st.integers(1, 12), per_batch=st.integers(1, 9))
def test_rows_come_by_id_and_those_of_one_together(table: pa.Table, most: int, per_batch: int) -> None:
    table = table.append_column("place", pa.array(range(len(table)), pa.int32()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sorting, "ROWS_IN_MEMORY", most)
        parts = [*sorting.by_id(iter(table.to_batches(max_chunksize=per_batch)))]
    assert [row for part in parts for row in part["place"].to_pylist()] == table.sort_by(col.ID)["place"].to_pylist()
    ids = [{*part[col.ID].to_pylist()} for part in parts]
    assert sum(map(len, ids)) == len(set().union(*ids))


@pytest.mark.slow
@bounded
@given(ids=st.lists(st.one_of(texts, st.none()), min_size=1, max_size=40), most=st.integers(1, 12))
def test_ids_that_repeat_are_counted_across_parts(
    ids: list[str | None], most: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    table = pa.table({col.ID: pa.array(ids, pa.string()), col.SPLIT: [col.VALIDATION] * len(ids)})
    folder = write(table, tmp_path_factory.mktemp("ids"), 11)
    distinct = len({*ids} - {None})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sorting, "ROWS_IN_MEMORY", most)
        if distinct == len(ids):
            check_own_ids(folder, col.VALIDATION)
            return
        with pytest.raises(UserError, match=f"{distinct} different ids in {len(ids)} validation row"):
            check_own_ids(folder, col.VALIDATION)


@pytest.mark.parametrize("most", [1, 3, 100])
def test_the_digest_of_rows_with_ids_of_their_own_is_that_of_all_at_once(
    most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chats = [[{"role": "user", "content": f"é {number}", "extra": None}] for number in range(9)]
    ids = ["b", "a", '"', "é", "a", None, "row-1", "row-10", col.content_id(chats[8])]  # type: ignore[arg-type]
    table = pa.table({col.ID: pa.array(ids, pa.string()), col.MESSAGES: pa.array(chats, col.MESSAGES_TYPE)})
    folder = write(table, tmp_path, 4)
    monkeypatch.setattr(sorting, "ROWS_IN_MEMORY", most)
    own = sorted((str(identity), col.content_id(chat)) for identity, chat in zip(ids[:8], chats, strict=False))  # type: ignore[arg-type]
    assert rows_digest(folder, [col.ID]) == col.digest([content_digest(folder, [col.ID]), own])


def test_texts_that_are_longer_together_than_32_bits_count_keep_every_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sorting, "LONGEST_TEXTS", 5)
    table = pa.table({col.ID: ["c", "a", "b"], "note": ["four", None, "five"]}).sort_by(col.ID)
    with sorting.joined(table.to_batches(max_chunksize=2), table.schema) as batch:
        assert batch.schema.types == [pa.string(), pa.large_string()]
        assert batch.to_pylist() == table.to_pylist()


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of 35 bytes each, in row groups as those of an arm's alphas."""
    ids = [f"{number * 7919 % ROW_COUNT:016x}" for number in range(ROW_COUNT)]
    alphas = pyarrow.compute.multiply(pa.array(range(ROW_COUNT), pa.float64()), 1 / ROW_COUNT)
    file = tmp_path_factory.mktemp("many") / "rows.parquet"
    table = pa.table({col.ID: ids, col.SPLIT: pa.array([col.TRAIN] * ROW_COUNT), col.ALPHA: alphas})
    pyarrow.parquet.write_table(table, file, row_group_size=10_000)
    return file


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[pa.MemoryPool]:
    """Count what Arrow allocates, in pages of the system's."""
    before, own = pa.default_memory_pool(), pa.proxy_memory_pool(pa.system_memory_pool())
    pa.set_memory_pool(own)
    yield own
    pa.set_memory_pool(before)


@pytest.mark.slow
@pytest.mark.parametrize(
    "call",
    [
        lambda file: content_digest(file, [col.ID, col.SPLIT]),
        lambda file: alphas_digest(file, sources=False),
        lambda file: check_own_ids(file, col.TRAIN),
        check_values,
    ],
    ids=["digest", "alphas", "ids", "values"],
)
def test_a_small_part_of_many_rows_is_in_memory(
    call: Callable[[Path], Any], many: Path, pool: pa.MemoryPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sorting, "ROWS_IN_MEMORY", 10_000)
    call(many)
    assert pool.max_memory() < 6 * 2**20, "of 10 MB of rows, which were held several times"
