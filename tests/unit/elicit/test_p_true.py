"""The probability of "no": hand-computed values, both orders, the range, the direction."""

from __future__ import annotations

import math

import pytest
from estimator_results import (
    INF,
    MIN_CHOICE_MASS,
    NO_NUMBERS,
    PAIR,
    SAMPLING,
    choice,
    log_probability,
    p_true,
    reduce,
    said,
)
from hypothesis import example, given
from hypothesis import strategies as st

from ual_ray.elicit.estimators.contract import Sampling
from ual_ray.engines.requests import (
    Choice,
    ChoiceResult,
    Completion,
)


@pytest.mark.parametrize(
    ("yes", "no", "expected"),
    [(0.5, 0.5, 0.5), (0.3, 0.1, 0.25), (0.01, 0.99, 0.99), (0.2, 0.6, 0.75), (0.01, 0.03, 0.75)],
)
def test_p_true_is_the_share_of_no_where_the_order_does_not_matter(yes: float, no: float, expected: float) -> None:
    uncertainty, raw = reduce(p_true(), choice(yes, no), choice(no, yes))
    assert uncertainty == pytest.approx(expected)
    assert raw == pytest.approx(math.log(no / yes))


def test_p_true_averages_both_orders() -> None:
    # yes first: P(no) = P(B) = 0.6 / 0.8; no first: P(no) = P(A) = 0.1 / 0.4.
    uncertainty, raw = reduce(p_true(), choice(0.2, 0.6), choice(0.1, 0.3))
    assert uncertainty == pytest.approx((0.75 + 0.25) / 2)
    assert raw == pytest.approx((math.log(3) - math.log(3)) / 2)
    assert reduce(p_true(), choice(0.2, 0.6), choice(0.5, 0.5))[0] == pytest.approx(0.625)


@given(first=st.floats(0.01, 1), second=st.floats(0.01, 1))
def test_a_model_that_only_likes_a_letter_says_nothing(first: float, second: float) -> None:
    uncertainty, raw = reduce(p_true(), choice(first, second), choice(first, second))
    assert uncertainty == pytest.approx(0.5, abs=1e-15)
    assert raw == 0


def test_a_model_that_knows_one_letter_alone_says_nothing() -> None:
    assert reduce(p_true(), choice(1, 0), choice(1, 0)) == (0.5, None)


@pytest.mark.parametrize(("yes", "no", "expected"), [(1.0, 0.0, 0.0), (0.0, 1.0, 1.0), (0.0, 0.1, 1.0)])
def test_p_true_of_one_possible_answer_has_no_finite_odds(yes: float, no: float, expected: float) -> None:
    assert reduce(p_true(), choice(yes, no), choice(no, yes)) == (expected, None)


def test_one_order_alone_is_no_answer() -> None:
    for failed in (*NO_NUMBERS, choice(0, 0), ChoiceResult((math.nan, -1.0), 1), choice(0.004, 0.004)):
        assert reduce(p_true(), choice(0.5, 0.5), failed) == (None, None)
        assert reduce(p_true(), failed, choice(0.5, 0.5)) == (None, None)


@given(values=st.lists(log_probability, min_size=4, max_size=4))
@example(values=[0.0, -INF, 0.0, -INF])
def test_p_true_stays_in_range_and_rises_with_no(values: list[float]) -> None:
    yes_first, no_first = tuple(values[:2]), tuple(values[2:])
    uncertainty, raw = reduce(p_true(), ChoiceResult(yes_first, 1), ChoiceResult(no_first, 1))
    if min(math.exp(yes_first[0]) + math.exp(yes_first[1]), math.exp(no_first[0]) + math.exp(no_first[1])) < MIN_CHOICE_MASS:
        assert uncertainty is raw is None
        return
    assert uncertainty is not None and 0 <= uncertainty <= 1
    assert raw is None or math.isfinite(raw)
    if yes_first[1] > yes_first[0] and no_first[0] > no_first[1]:
        assert uncertainty >= 0.5


def test_p_true_asks_in_both_orders() -> None:
    first, second = p_true().requests(PAIR)
    assert isinstance(first, Choice) and isinstance(second, Choice)
    assert first.choices == second.choices == ("A", "B")
    assert "A. Yes\nB. No" in first.prompt[0][1]
    assert "A. No\nB. Yes" in second.prompt[0][1]


@pytest.mark.parametrize(
    ("yes_first", "no_first", "expected"),
    [
        (["B", "B"], ["A", "A"], 1.0),
        (["A", "A"], ["B", "B"], 0.0),
        (["A", "A"], ["A", "A"], 0.5),  # it likes the A
        (["A", "B"], ["B", "B"], 0.25),
        (["B", "?"], ["A", "?"], 1.0),
    ],
)
def test_sampled_verdicts_are_counted(yes_first: list[str], no_first: list[str], expected: float) -> None:
    result = reduce(p_true(sampling=SAMPLING), said(*yes_first), said(*no_first))
    assert result == (pytest.approx(expected), pytest.approx(expected))


def test_sampled_verdicts_that_cannot_be_read_in_one_order_are_missing() -> None:
    assert reduce(p_true(sampling=SAMPLING), said("B", "B"), said("?", "Yes")) == (None, None)


@pytest.mark.parametrize(("count", "half"), [(8, 4), (7, 4), (1, 1)])
def test_sampled_verdicts_are_shared_out_between_the_orders(count: int, half: int) -> None:
    requests = p_true(sampling=Sampling(count, 1.0)).requests(PAIR)
    assert [request.n for request in requests if isinstance(request, Completion)] == [half, half]
