"""Estimators: hand-computed values, the range, the direction, and missing on failure."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ual_ray.config import EstimatorName
from ual_ray.elicit.estimators import MIN_CHOICE_MASS, REGISTRY, softmax
from ual_ray.elicit.requests import (
    Choice,
    ChoiceResult,
    CompletionResult,
    Failure,
    Likelihood,
    LikelihoodResult,
    Result,
)
from ual_ray.records import Message

INF = math.inf
PAIR = [Message(role="user", content="Say hi."), Message(role="assistant", content="Hi.")]

log_probability = st.one_of(st.floats(-1e4, 0), st.just(-INF))


def digits(**probabilities: float) -> ChoiceResult:
    """Build the result of ten digits: d3=0.5 gives the digit 3 the probability 0.5; the rest are impossible."""
    values = [probabilities.get(f"d{digit}", 0.0) for digit in range(10)]
    return ChoiceResult(tuple(math.log(value) if value else -INF for value in values), prompt_tokens=7)


def reduce(name: str, result: Result) -> tuple[float | None, float | None]:
    estimate = REGISTRY[name].reduce([result])
    return estimate.uncertainty, estimate.raw


def test_the_registry_is_what_the_configuration_offers() -> None:
    assert set(REGISTRY) == set(EstimatorName.__args__)
    assert all(estimator.name == name for name, estimator in REGISTRY.items())


# --- hand-computed ---------------------------------------------------------------------------------------------------


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
    uncertainty, raw = reduce("verbalized", result)
    assert raw == pytest.approx(expected)
    assert uncertainty == pytest.approx(expected / 9)


@pytest.mark.parametrize(
    ("yes", "no", "expected"),
    [(0.5, 0.5, 0.5), (0.3, 0.1, 0.25), (0.01, 0.99, 0.99), (0.2, 0.6, 0.75), (0.01, 0.03, 0.75)],
)
def test_p_true_is_the_share_of_no(yes: float, no: float, expected: float) -> None:
    uncertainty, raw = reduce("p_true", ChoiceResult((math.log(yes), math.log(no)), 7))
    assert uncertainty == pytest.approx(expected)
    assert raw == pytest.approx(math.log(no / yes))


@pytest.mark.parametrize(("yes", "no", "expected"), [(0.0, -INF, 0.0), (-INF, 0.0, 1.0), (-INF, -2.0, 1.0)])
def test_p_true_of_one_possible_answer(yes: float, no: float, expected: float) -> None:
    assert reduce("p_true", ChoiceResult((yes, no), 7))[0] == expected


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
    uncertainty, raw = reduce("nll", LikelihoodResult(nll_sum, tokens, 9))
    assert raw == pytest.approx(mean)
    assert uncertainty == pytest.approx(expected)


# --- the range and the direction -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["verbalized", "p_true"])
def test_a_reply_that_is_none_of_the_choices_is_missing_and_no_number(name: str) -> None:
    choices = 10 if name == "verbalized" else 2
    assert reduce(name, ChoiceResult((math.log(0.009 / choices),) * choices, 7)) == (None, None)
    assert reduce(name, ChoiceResult((math.log(0.011 / choices),) * choices, 7))[0] == pytest.approx(0.5)


@given(values=st.lists(log_probability, min_size=10, max_size=10))
def test_verbalized_stays_in_range(values: list[float]) -> None:
    uncertainty, raw = reduce("verbalized", ChoiceResult(tuple(values), 1))
    if math.fsum(map(math.exp, values)) < MIN_CHOICE_MASS:
        assert uncertainty is raw is None
    else:
        assert uncertainty is not None and 0 <= uncertainty <= 1
        assert raw is not None and -1e-9 <= raw <= 9 + 1e-9


@given(yes=log_probability, no=log_probability)
def test_p_true_stays_in_range_and_rises_with_no(yes: float, no: float) -> None:
    uncertainty, _ = reduce("p_true", ChoiceResult((yes, no), 1))
    if math.exp(yes) + math.exp(no) < MIN_CHOICE_MASS:
        assert uncertainty is None
    else:
        assert uncertainty is not None and 0 <= uncertainty <= 1
        assert (uncertainty > 0.5) == (no > yes) or abs(no - yes) < 1e-12


@given(nll_sum=st.floats(-1e-5, 1e9), tokens=st.integers(1, 10_000))
def test_nll_stays_in_range_even_with_a_rounding_error_below_zero(nll_sum: float, tokens: int) -> None:
    uncertainty, raw = reduce("nll", LikelihoodResult(nll_sum, tokens, 1))
    assert uncertainty is not None and 0 <= uncertainty <= 1
    assert raw == pytest.approx(nll_sum / tokens)


@given(low=st.integers(0, 8), step=st.integers(1, 9), share=st.floats(0, 1))
def test_verbalized_rises_with_the_digit(low: int, step: int, share: float) -> None:
    high = min(9, low + step)
    less = reduce("verbalized", digits(**{f"d{low}": 1}))[0]
    more = reduce("verbalized", digits(**{f"d{high}": 1}))[0]
    mixed = reduce("verbalized", digits(**{f"d{low}": share, f"d{high}": 1 - share}))[0]
    assert less is not None and more is not None and mixed is not None
    assert less < more
    assert less - 1e-12 <= mixed <= more + 1e-12


@pytest.mark.parametrize("tokens", [1, 10, 500])
def test_nll_rises_with_the_mean_nll(tokens: int) -> None:
    scores = [reduce("nll", LikelihoodResult(mean * tokens, tokens, 1))[0] for mean in (0.0, 0.1, 1.0, 3.0, 20.0)]
    assert scores == sorted(scores)
    assert len(set(scores)) == 5


# --- missing is never a number ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REGISTRY)
@pytest.mark.parametrize("result", [Failure("overlong: 9 tokens"), CompletionResult(("7",), 1, 1)])
def test_a_failure_is_missing(name: str, result: Result) -> None:
    assert reduce(name, result) == (None, None)


@pytest.mark.parametrize(("name", "choices"), [("verbalized", 10), ("p_true", 2)])
def test_no_possible_choice_is_missing(name: str, choices: int) -> None:
    assert reduce(name, ChoiceResult((-INF,) * choices, 1)) == (None, None)


@pytest.mark.parametrize(("name", "choices"), [("verbalized", 10), ("p_true", 2)])
@pytest.mark.parametrize("position", [0, 1])
def test_not_a_number_is_missing_wherever_it_stands(name: str, choices: int, position: int) -> None:
    values = [-1.0] * choices
    values[position] = math.nan
    assert reduce(name, ChoiceResult(tuple(values), 1)) == (None, None)


@pytest.mark.parametrize(("nll_sum", "tokens"), [(math.nan, 3), (INF, 3), (-INF, 3), (0.0, 0), (1.0, 0)])
def test_no_finite_nll_is_missing(nll_sum: float, tokens: int) -> None:
    assert reduce("nll", LikelihoodResult(nll_sum, tokens, 1)) == (None, None)


# --- what is asked ---------------------------------------------------------------------------------------------------


def test_what_is_asked() -> None:
    (verbalized,) = REGISTRY["verbalized"].requests(PAIR)
    (p_true,) = REGISTRY["p_true"].requests(PAIR)
    (nll,) = REGISTRY["nll"].requests(PAIR)
    assert isinstance(verbalized, Choice) and verbalized.choices == tuple("0123456789")
    assert isinstance(p_true, Choice) and p_true.choices == ("A", "B")
    assert nll == Likelihood((("user", "Say hi."), ("assistant", "Hi.")), last_reply_only=True)


@given(values=st.lists(st.floats(-700, 0), min_size=1, max_size=12))
def test_softmax_sums_to_one_and_keeps_ratios(values: list[float]) -> None:
    shares = softmax(values)
    assert shares is not None
    assert sum(shares) == pytest.approx(1)
    highest = max(values)
    for value, share in zip(values, shares, strict=True):
        assert share == pytest.approx(max(shares) * math.exp(value - highest))


def test_softmax_by_hand() -> None:
    assert softmax([math.log(2), math.log(6)]) == pytest.approx([0.25, 0.75])
    assert softmax([-1e9, -1e9]) == [0.5, 0.5]
    assert softmax([-INF, -INF]) is None
