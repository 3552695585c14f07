"""Ratings: hand-computed values, the range, the direction."""

from __future__ import annotations

import math

import pytest
from estimator_results import (
    MIN_CHOICE_MASS,
    PAIR,
    SAMPLING,
    choice,
    digits,
    log_probability,
    reduce,
    said,
    verbalized,
)
from hypothesis import given
from hypothesis import strategies as st

from ual_ray.elicit.estimators.verbalized import VerbalizedDiversity, VerbalizedError
from ual_ray.elicit.prompts import load_prompts
from ual_ray.engines.requests import (
    Choice,
    ChoiceResult,
)


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (digits(d0=1), 0.0),
        (digits(d9=1), 9.0),
        (digits(d3=0.5, d4=0.5), 3.5),
        (digits(d2=0.1, d8=0.3), 6.5),  # renormalised: (2 * 0.1 + 8 * 0.3) / 0.4
        (digits(**{f"d{digit}": 0.1 for digit in range(10)}), 4.5),
        (digits(d1=0.01, d7=0.03), 5.5),
    ],
)
def test_verbalized_is_the_expected_digit(result: ChoiceResult, expected: float) -> None:
    uncertainty, raw = reduce(verbalized(), result)
    assert raw == pytest.approx(expected)
    assert uncertainty == pytest.approx(expected / 9)


@pytest.mark.parametrize(
    ("probabilities", "expected", "uncertainty"),
    [
        ((1, 0, 0, 0, 0), 1.0, 0.0),
        ((0, 0, 0, 0, 1), 5.0, 1.0),
        ((0, 0, 1, 0, 0), 3.0, 0.5),
        ((0.2, 0, 0, 0, 0.2), 3.0, 0.5),
        ((0, 0.1, 0.3, 0, 0), 2.75, 1.75 / 4),
    ],
)
def test_verbalized_from_one_to_five(probabilities: tuple[float, ...], expected: float, uncertainty: float) -> None:
    result = reduce(verbalized(lowest=1, highest=5), choice(*probabilities))
    assert result == (pytest.approx(uncertainty), pytest.approx(expected))


@pytest.mark.parametrize(("number", "other", "expected"), [(0, 0, 0.0), (100, 100, 1.0), (50, 50, 0.5), (20, 100, 0.6)])
def test_verbalized_from_nought_to_a_hundred(number: int, other: int, expected: float) -> None:
    values = [0.0] * 101
    values[number] += 0.25
    values[other] += 0.25
    assert reduce(verbalized(lowest=0, highest=100), choice(*values))[0] == pytest.approx(expected)


@pytest.mark.parametrize(("lowest", "highest"), [(0, 9), (1, 5), (0, 100)])
def test_verbalized_asks_for_every_number_of_its_scale(lowest: int, highest: int) -> None:
    (request,) = verbalized(lowest=lowest, highest=highest).requests(PAIR)
    assert isinstance(request, Choice)
    assert request.choices == tuple(str(number) for number in range(lowest, highest + 1))
    ((_, text),) = request.prompt
    assert f"from {lowest} (" in text and f"to {highest} (" in text


@pytest.mark.parametrize(
    ("lowest", "highest", "texts", "expected"),
    [
        (0, 9, ["3", "4", "3", "4"], 3.5),
        (0, 9, ["9", "10", "nine", "9"], 9.0),  # half of them can be read
        (1, 5, ["1", "5", "0", "6"], 3.0),
        (0, 100, ["100", "40", "I would say 10.", "1. The response"], 50.0),
        (0, 9, ["0"], 0.0),
    ],
)
def test_sampled_numbers_are_averaged(lowest: int, highest: int, texts: list[str], expected: float) -> None:
    estimator = verbalized(lowest=lowest, highest=highest, sampling=SAMPLING)
    assert reduce(estimator, said(*texts)) == (pytest.approx((expected - lowest) / (highest - lowest)), pytest.approx(expected))


@pytest.mark.parametrize("texts", [["nine"], ["9", "?", "?"], ["10", "10", "3"], [""]])
def test_sampled_numbers_of_which_most_cannot_be_read_are_missing(texts: list[str]) -> None:
    assert reduce(verbalized(sampling=SAMPLING), said(*texts)) == (None, None)


@given(values=st.lists(log_probability, min_size=10, max_size=10))
def test_verbalized_stays_in_range(values: list[float]) -> None:
    uncertainty, raw = reduce(verbalized(), ChoiceResult(tuple(values), 1))
    if math.fsum(map(math.exp, values)) < MIN_CHOICE_MASS:
        assert uncertainty is raw is None
    else:
        assert uncertainty is not None and 0 <= uncertainty <= 1
        assert raw is not None and -1e-9 <= raw <= 9 + 1e-9


@given(low=st.integers(0, 8), step=st.integers(1, 9), share=st.floats(0, 1))
def test_verbalized_rises_with_the_digit(low: int, step: int, share: float) -> None:
    high = min(9, low + step)
    less = reduce(verbalized(), digits(**{f"d{low}": 1}))[0]
    more = reduce(verbalized(), digits(**{f"d{high}": 1}))[0]
    mixed = reduce(verbalized(), digits(**{f"d{low}": share, f"d{high}": 1 - share}))[0]
    assert less is not None and more is not None and mixed is not None
    assert less < more
    assert less - 1e-12 <= mixed <= more + 1e-12


def test_error_and_diversity_are_different_questions_read_alike() -> None:
    error, diversity = (kind(load_prompts(), 0, 9) for kind in (VerbalizedError, VerbalizedDiversity))
    assert error != diversity and error.requests(PAIR) != diversity.requests(PAIR)
    assert reduce(error, digits(d6=1)) == reduce(diversity, digits(d6=1)) == (6 / 9, 6.0)
