"""Packing: every row once, nothing above the capacity, nearly full sequences, the same every time."""

from __future__ import annotations

import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ual_ray.train.packing import Sequences, pack

CAPACITY = 64
LENGTHS = st.lists(st.integers(1, CAPACITY), max_size=200).map(lambda values: np.array(values, dtype=np.int32))


@given(LENGTHS)
def test_every_row_comes_once_and_no_sequence_is_above_the_capacity(lengths: np.ndarray) -> None:
    sequences = pack(lengths, CAPACITY)
    assert Counter(row for rows in sequences for row in rows) == Counter(range(len(lengths)))
    assert all(0 < sum(lengths[row] for row in rows) <= CAPACITY for rows in sequences)


@given(LENGTHS)
def test_it_takes_at_most_what_best_fit_decreasing_is_proven_to(lengths: np.ndarray) -> None:
    fewest = -(-int(lengths.sum()) // CAPACITY)
    assert fewest <= len(pack(lengths, CAPACITY)) <= max(2 * fewest - 1, 0)


@given(LENGTHS)
def test_each_row_goes_where_a_plain_best_fit_decreasing_puts_it(lengths: np.ndarray) -> None:
    left: list[int] = []
    for length in sorted(lengths.tolist(), reverse=True):
        fitting = [place for place, room in enumerate(left) if room >= length]
        if not fitting:
            left.append(CAPACITY - length)
            continue
        left[min(fitting, key=lambda place: left[place])] -= length
    sums = [CAPACITY - sum(lengths[row] for row in rows) for rows in pack(lengths, CAPACITY)]
    assert sorted(sums) == sorted(left)


@pytest.mark.slow
@given(st.lists(st.lists(st.integers(0, 99), min_size=1), max_size=9), st.lists(st.lists(st.integers(0, 99), min_size=1)))
def test_sequences_are_as_lists_of_rows(first: list[list[int]], second: list[list[int]]) -> None:
    def held(lists: list[list[int]]) -> Sequences:
        return Sequences(np.array([row for rows in lists for row in rows]), np.cumsum([len(rows) for rows in lists]))

    both, values = held(first) + held(second), np.arange(100, dtype=np.int32)[::-1]
    assert [*both] == [tuple(rows) for rows in first + second] and len(both) == len(first + second)
    assert [*both.of(values)] == [tuple(99 - row for row in rows) for rows in first + second]
    assert both.sums(values).tolist() == [sum(99 - row for row in rows) for rows in first + second]
    assert [*Sequences.alone(np.arange(3))] == [(0,), (1,), (2,)]


@pytest.mark.slow
def test_a_million_rows_take_few_bytes_each() -> None:
    lengths = np.random.default_rng(0).integers(2, 100, 10**6, dtype=np.int32)
    tracemalloc.start()
    sequences = pack(lengths, 1024)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(sequences) and held < 20 * len(lengths) and peak < 70 * len(lengths)


@given(LENGTHS)
def test_the_result_depends_on_the_arguments_alone(lengths: np.ndarray) -> None:
    assert [*pack(lengths, CAPACITY)] == [*pack(lengths.astype(np.int64), CAPACITY)]


def test_packing_by_hand() -> None:
    assert [*pack(np.array([3, 7, 5, 3, 2]), 10)] == [(1, 0), (2, 3, 4)]


def test_realistic_lengths_leave_almost_no_padding() -> None:
    lengths = np.clip(np.random.default_rng(0).lognormal(5, 0.8, 5000), 2, 1024).astype(np.int32)
    assert len(pack(lengths, 1024)) * 1024 < 1.01 * lengths.sum()


def test_no_rows_make_no_sequences() -> None:
    assert [*pack(np.zeros(0, dtype=np.int32), 8)] == []


@pytest.mark.parametrize("lengths", [[1, 9], [0, 3]])
def test_a_row_that_cannot_be_placed_is_an_error(lengths: list[int]) -> None:
    with pytest.raises(ValueError, match="1 to 8 fit"):
        pack(np.array(lengths), 8)
