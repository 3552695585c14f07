"""Estimators from the likelihood of the response: hand-computed values, the range, the direction."""

from __future__ import annotations

import math
from typing import Any

import pytest
from estimator_results import (
    INF,
    reduce,
)
from hypothesis import given
from hypothesis import strategies as st

from ual_ray.elicit.estimators.likelihood import NegativeLogLikelihood, SummedNegativeLogLikelihood
from ual_ray.engines.requests import (
    LikelihoodResult,
)


@pytest.mark.parametrize(
    ("nll_sum", "tokens", "mean", "expected"),
    [
        (0.0, 4, 0.0, 0.0),
        (4 * math.log(2), 4, math.log(2), 0.5),  # every token had probability 1/2
        (math.log(2) + math.log(8), 2, math.log(4), 0.75),  # geometric mean of 1/2 and 1/8 is 1/4
        (1e6, 1, 1e6, 1.0),
    ],
)
def test_nll_is_one_minus_the_mean_probability(nll_sum: float, tokens: int, mean: float, expected: float) -> None:
    uncertainty, raw = reduce(NegativeLogLikelihood(), LikelihoodResult(nll_sum, tokens, 9))
    assert raw == pytest.approx(mean)
    assert uncertainty == pytest.approx(expected)


@pytest.mark.parametrize(("nll_sum", "expected"), [(0.0, 0.0), (1.0, 0.5), (3.0, 0.75), (999.0, 0.999)])
def test_nll_sum_is_squashed_slowly(nll_sum: float, expected: float) -> None:
    assert reduce(SummedNegativeLogLikelihood(), LikelihoodResult(nll_sum, 7, 9)) == (pytest.approx(expected), nll_sum)


@pytest.mark.parametrize("estimator", [NegativeLogLikelihood(), SummedNegativeLogLikelihood()])
@given(nll_sum=st.floats(-1e-5, 1e9), tokens=st.integers(1, 10_000))
def test_nll_stays_in_range_even_with_a_rounding_error_below_zero(estimator: Any, nll_sum: float, tokens: int) -> None:
    uncertainty, raw = reduce(estimator, LikelihoodResult(nll_sum, tokens, 1))
    assert uncertainty is not None and 0 <= uncertainty <= 1
    assert raw is not None and raw >= 0


@pytest.mark.parametrize("tokens", [1, 10, 500])
@pytest.mark.parametrize("estimator", [NegativeLogLikelihood(), SummedNegativeLogLikelihood()])
def test_nll_rises_with_the_mean_nll(estimator: Any, tokens: int) -> None:
    scores = [reduce(estimator, LikelihoodResult(mean * tokens, tokens, 1))[0] for mean in (0.0, 0.1, 1.0, 3.0, 20.0)]
    assert scores == sorted(scores)
    assert len(set(scores)) == 5


def test_nll_sum_rises_with_the_length_and_nll_does_not() -> None:
    short, long = LikelihoodResult(10.0, 10, 1), LikelihoodResult(40.0, 40, 1)
    assert reduce(NegativeLogLikelihood(), short)[0] == reduce(NegativeLogLikelihood(), long)[0]
    assert reduce(SummedNegativeLogLikelihood(), short)[0] < reduce(SummedNegativeLogLikelihood(), long)[0]  # type: ignore[operator]


@pytest.mark.parametrize("estimator", [NegativeLogLikelihood(), SummedNegativeLogLikelihood()])
@pytest.mark.parametrize(("nll_sum", "tokens"), [(math.nan, 3), (INF, 3), (-INF, 3), (0.0, 0), (1.0, 0)])
def test_no_finite_nll_is_missing(estimator: Any, nll_sum: float, tokens: int) -> None:
    assert reduce(estimator, LikelihoodResult(nll_sum, tokens, 1)) == (None, None)
