"""Who was first: once for each id, again for the same position, and for nobody else."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ual_ray.data.dedup import Deduplicator


def test_the_first_that_asks_gets_it() -> None:
    claims = Deduplicator()
    assert claims.claim(["a", "b"], [1, 2]) == [True, True]
    assert claims.claim(["b", "c", "a"], [3, 4, 5]) == [False, True, False]


def test_an_id_twice_in_one_question() -> None:
    assert Deduplicator().claim(["a", "b", "a"], [1, 2, 3]) == [True, True, False]


def test_the_same_position_gets_the_same_answer_again() -> None:
    claims = Deduplicator()
    first = claims.claim(["a", "b", "a"], [1, 2, 3])
    claims.claim(["a", "d"], [9, 10])
    assert claims.claim(["a", "b", "a"], [1, 2, 3]) == first
    assert claims.claim(["d"], [10]) == [True]


def test_duplicates_are_counted_once_however_often_their_shard_is_read() -> None:
    claims = Deduplicator()
    for _ in range(3):
        claims.claim(["a", "b", "a"], [1, 2, 3])
        claims.claim(["c", "a", "b"], [7, 8, 9])
    assert claims.duplicates() == 3
    assert Deduplicator().duplicates() == 0


def test_nothing_asked_nothing_answered() -> None:
    assert Deduplicator().claim([], []) == []


def test_as_many_positions_as_ids() -> None:
    claims = Deduplicator()
    with pytest.raises(ValueError, match="zip"):
        claims.claim(["a", "b"], [1])


@pytest.mark.parametrize("identity", ["", "given:7", "naïve 😀", "a\x00b", "x" * 100_000, "'; DROP TABLE claims; --"])
def test_any_text_is_an_id(identity: str) -> None:
    claims = Deduplicator()
    assert claims.claim([identity, identity + " "], [1, 2]) == [True, True]
    assert claims.claim([identity], [3]) == [False]


def test_positions_of_the_largest_data() -> None:
    claims = Deduplicator()
    largest = 2**63 - 1
    assert claims.claim(["a"], [largest]) == [True]
    assert claims.claim(["a", "a"], [largest, largest - 1]) == [True, False]


def test_claims_are_nobody_elses() -> None:
    assert Deduplicator().claim(["a"], [1]) == Deduplicator().claim(["a"], [2]) == [True]


def test_claims_from_other_threads() -> None:
    """An actor answers in threads that it was not made in."""
    claims = Deduplicator()
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(claims.claim, ["a"], [1]).result() == [True]
        assert pool.submit(claims.claim, ["a"], [2]).result() == [False]


@pytest.mark.slow
@given(asked=st.lists(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 9)), max_size=5), max_size=8))
def test_claims_against_a_dictionary(asked: list[list[tuple[str, int]]]) -> None:
    claims, owners = Deduplicator(), {}
    for question in asked:
        expected = [owners.setdefault(identity, position) == position for identity, position in question]
        assert claims.claim([one for one, _ in question], [at for _, at in question]) == expected
    assert claims.duplicates() == len({at for question in asked for one, at in question if owners[one] != at})
