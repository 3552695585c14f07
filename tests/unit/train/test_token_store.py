"""The token store: rows by id whatever file they lie in, memory-mapped, binned by uncertainty with ties together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ual_ray import columns as col
from ual_ray.errors import UserError
from ual_ray.parquet import write_table
from ual_ray.train import token_store
from ual_ray.train.metrics import SKIPPED
from ual_ray.train.stage import count_shared, count_skipped
from ual_ray.train.token_store import NO_BIN, TokenStore, assign_bins, quantile_edges

INTS = pa.list_(pa.int32())

WriteStore = Callable[..., Path]


def token_row(name: str, length: int = 3, **values: Any) -> dict[str, Any]:
    ids = list(range(length))
    labels = [-100] + ids[1:]
    return {
        **{
            col.ID: name,
            col.SPLIT: col.TRAIN,
            col.ALPHA: 0.1,
            col.UNCERTAINTY: None,
            col.TARGET_TOKENS: length - 1,
            col.INPUT_IDS: ids,
            col.LABELS: labels,
        },
        **values,
    }


@pytest.fixture
def write_store(tmp_path: Path) -> WriteStore:
    """Write each list of rows as a file of its own, in record batches of two rows."""

    def write(*files: list[dict[str, Any]]) -> Path:
        for number, rows in enumerate(files):
            with pa.OSFile(str(tmp_path / f"{number}.arrow"), "wb") as file, pa.ipc.new_file(file, col.TOKENS) as writer:
                writer.write_table(pa.Table.from_pylist(rows, col.TOKENS), max_chunksize=2)
        return tmp_path

    return write


def test_rows_come_by_id_whatever_file_they_lie_in(write_store: WriteStore) -> None:
    folder = write_store([token_row("c", 5), token_row("a", 2), token_row("d", 4)], [token_row("b", 3, **{col.ALPHA: 0.4})])
    store = TokenStore.open(folder, col.TRAIN)
    assert list(store.ids) == ["a", "b", "c", "d"]
    assert store.lengths.tolist() == [2, 3, 5, 4] and store.lengths.dtype == np.int32
    assert store.target_tokens.tolist() == [1, 2, 4, 3] and store.target_tokens.dtype == np.int32
    sample = store[1]
    assert (sample.id, sample.alpha, sample.uncertainty_bin) == ("b", 0.4, NO_BIN)
    assert sample.input_ids.tolist() == [0, 1, 2] and sample.input_ids.dtype == np.int32
    assert sample.labels.tolist() == [-100, 1, 2] and sample.labels.dtype == np.int32
    assert [sample.id for sample in store][1:3] == store.ids[1:3] == ["b", "c"]
    assert len(store) == 4 and store[-1].id == "d"


@given(st.lists(st.lists(st.integers(1, 4), max_size=4), min_size=1, max_size=6))
def test_cells_are_found_in_whatever_chunk_they_lie(lengths: list[list[int]]) -> None:
    rows = [[(str(number), [number] * length) for number, length in enumerate(chunk)] for chunk in lengths]
    table = pa.concat_tables(
        pa.table({"id": pa.array([name for name, _ in chunk], pa.string()), "ids": pa.array([ids for _, ids in chunk], INTS)})
        for chunk in rows
    )
    cells, flat = token_store._Cells(table), [row for chunk in rows for row in chunk]
    assert [(cells.at("id", at).as_py(), cells.at("ids", at).as_py()) for at in range(len(flat))] == flat


def test_equal_ids_come_by_alpha(write_store: WriteStore) -> None:
    store = TokenStore.open(write_store([token_row("a", **{col.ALPHA: 0.2})], [token_row("a", **{col.ALPHA: 0.1})]), col.TRAIN)
    assert [sample.alpha for sample in store] == [0.1, 0.2]


def test_arms_share_rendered_rows_and_have_their_own_alphas_and_weights(write_store: WriteStore) -> None:
    pieces = [token_row("c", 5), token_row("a", 2), token_row("a", 3), token_row("v", **{col.SPLIT: col.VALIDATION})]
    folder = write_store(pieces, [token_row("b", 4)])
    arm = folder / "arm.parquet"
    numbers = {col.ALPHA: [0.3, 0.2], col.LOSS_WEIGHT: [0.5, 1.5], col.UNCERTAINTY: [0.9, 0.1]}
    write_table(pa.table({col.ID: ["c", "a"], **numbers}), arm)
    store = TokenStore.open(folder, col.TRAIN, 2, arm)
    found = [(sample.id, sample.alpha, sample.weight, sample.uncertainty_bin, len(sample.input_ids)) for sample in store]
    assert sorted(found) == [("a", 0.2, 1.5, 0, 2), ("a", 0.2, 1.5, 0, 3), ("c", 0.3, 0.5, 1, 5)], "b has no alpha"
    assert store.mean_alpha() == pytest.approx((0.2 * 1.5 * (1 + 2) + 0.3 * 0.5 * 4) / (1.5 * 3 + 0.5 * 4)), "as rows count"
    assert store.label_counts(8).tolist() == [0, 3, 2, 1, 1, 0, 0, 0], "of the arm's own rows"
    assert len(TokenStore.open(folder, col.TRAIN)) == 4


def test_rows_that_an_arm_has_and_that_were_not_rendered_are_counted(write_store: WriteStore, tmp_path: Path) -> None:
    folder, arm = write_store([token_row("a", 2), token_row("a", 3)]), tmp_path / "arm.parquet"
    write_table(pa.table({col.ID: ["a", "b"], col.ALPHA: [0.1, 0.2]}), arm)
    counts = count_shared(TokenStore.open(folder, col.TRAIN, arm=arm), arm)
    assert counts == {"train_rows": 1, "dropped_rows": 1, "train_tokens": 5}
    write_table(pa.table({col.ID: ["b"], col.ALPHA: [0.2]}), arm)
    with pytest.raises(UserError, match="no training row is left"):
        count_shared(TokenStore.open(folder, col.TRAIN, arm=arm), arm)


@pytest.mark.parametrize("at_once", [1, 2, 3, 100])
def test_rows_of_several_sequences_count_once(write_store: WriteStore, monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(token_store, "IDS_AT_ONCE", at_once)
    store = TokenStore.open(write_store([token_row(name, 2) for name in "cabbbacd"]), col.TRAIN)
    assert (len(store), store.count_ids()) == (8, 4)
    assert TokenStore.open(write_store([]), col.TRAIN).count_ids() == 0


def test_sources_are_found_by_id(write_store: WriteStore, tmp_path: Path) -> None:
    folder, rows = (
        write_store([token_row("b", 2), token_row("a", 3), token_row("c", 3), token_row("c", 4)]),
        tmp_path / "rows.parquet",
    )
    write_table(pa.table({col.ID: ["c", "b", "d", "a"], col.SOURCE: ["chat", "math", "chat", None]}), rows)
    store = TokenStore.open(folder, col.TRAIN, sources=rows)
    assert store.sources is not None and store.sources.to_pylist() == [None, "math", "chat", "chat"]
    assert TokenStore.open(folder, col.TRAIN).sources is None
    write_table(pa.table({col.ID: ["a"]}), rows)
    assert TokenStore.open(folder, col.TRAIN, sources=rows).sources is None, "the rows have no such column"


def test_a_validation_takes_the_same_random_rows_whatever_the_files(write_store: WriteStore) -> None:
    rows = [token_row(f"row-{number}", 10) for number in range(40)]
    folder = write_store(rows[::2], rows[1::2])
    store = TokenStore.open(folder, col.TRAIN, most_tokens=105)
    assert len(store) == 10 and list(store.ids) == sorted(store.ids)
    more = TokenStore.open(folder, col.TRAIN, most_tokens=200)
    assert set(store.ids) < set(more.ids) and len(more) == 20, "a larger subset holds the smaller one"
    assert len(TokenStore.open(folder, col.TRAIN, most_tokens=400)) == 40
    assert len(TokenStore.open(folder, col.TRAIN, most_tokens=1)) == 1, "one row at least"
    first, last = (
        sum(int(name.split("-")[1]) < 20 for name in more.ids),
        sum(int(name.split("-")[1]) >= 20 for name in more.ids),
    )
    assert min(first, last) >= 5, "not those that come first"


def test_a_split_holds_its_own_rows_and_bins(write_store: WriteStore) -> None:
    rows = [token_row(str(n), **{col.UNCERTAINTY: n / 10, col.SPLIT: col.TRAIN if n < 4 else col.VALIDATION}) for n in range(8)]
    folder = write_store(rows[::2], rows[1::2])
    train, validation = TokenStore.open(folder, col.TRAIN, 2), TokenStore.open(folder, col.VALIDATION, 2)
    assert list(train.ids) == ["0", "1", "2", "3"] and list(validation.ids) == ["4", "5", "6", "7"]
    assert [sample.uncertainty_bin for sample in train] == [sample.uncertainty_bin for sample in validation] == [0, 0, 1, 1]
    assert train.bin_edges == [0.0, 0.1, 0.3]
    assert TokenStore.open(folder, col.TRAIN).bin_edges == []


@pytest.mark.parametrize("files", [[], [[]], [[token_row("a")]]], ids=["no_file", "no_row", "no_row_of_the_split"])
def test_a_split_may_be_empty(files: list[list[dict[str, Any]]], write_store: WriteStore, tmp_path: Path) -> None:
    write_store(*files)
    store = TokenStore.open(tmp_path, col.VALIDATION, 4)
    assert len(store) == len(store.ids) == len(store.lengths) == 0
    assert list(store) == store.bin_edges == []


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no rendered rows"):
        TokenStore.open(tmp_path / "tokens", col.TRAIN)


@pytest.mark.slow
def test_tokens_stay_in_the_file(write_store: WriteStore) -> None:
    before = pa.total_allocated_bytes()
    store = TokenStore.open(write_store([token_row(str(n), 20_000) for n in range(50)]), col.TRAIN)
    assert store[7].input_ids[-1] == 19_999
    assert pa.total_allocated_bytes() - before < 100_000  # of 8 MB
    with pytest.raises(ValueError, match="read-only"):
        store[7].input_ids[0] = 1


VALUES = st.lists(st.one_of(st.none(), st.floats(0, 1), st.sampled_from([0.0, 0.5, 1.0])), max_size=80)


@given(VALUES, st.integers(0, 6))
def test_bins_hold_ties_together_none_is_empty_and_they_ascend(values: list[float | None], bins: int) -> None:
    array = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    edges = quantile_edges(array, bins)
    numbers = assign_bins(array, edges)
    known = ~np.isnan(array)
    assert (numbers[~known] == NO_BIN).all()
    if not bins or not known.any():
        assert edges == [] and (numbers == NO_BIN).all()
        return
    assert edges == sorted(edges) and len(edges) - 1 <= bins
    assert set(numbers[known]) == set(range(len(edges) - 1))
    order = np.argsort(array[known], kind="stable")
    assert (np.diff(numbers[known][order]) >= 0).all()
    assert all(len(set(numbers[known][array[known] == value])) == 1 for value in array[known])


def test_bins_hold_equal_numbers_of_rows_where_there_are_no_ties() -> None:
    values = np.random.default_rng(0).random(1000)
    assert np.bincount(assign_bins(values, quantile_edges(values, 4))).tolist() == [250] * 4


def test_skipped_updates_are_counted_and_a_training_of_nothing_else_is_an_error() -> None:
    before, good, skipped = {"step": 0, "validation_nll": 2.0}, {"step": 1, "grad_norm": 1.0}, {"step": 2, SKIPPED: 1.0}
    assert count_skipped([before, good]) == 0
    assert count_skipped([before, good, skipped]) == 1
    with pytest.raises(UserError, match="nothing was trained"):
        count_skipped([before, skipped])
    # Such as with a threshold of train.loss=profit that no token reaches.
    with pytest.raises(UserError, match="2 steps, 1 of them skipped"):
        count_skipped([before, skipped, {**good, "grad_norm": 0.0}])
