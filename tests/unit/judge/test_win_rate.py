"""Win rates: by hand, against a brute force, and by their symmetries."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import expit

from ual_ray.errors import UserError
from ual_ray.judge.win_rate import (
    WinRate,
    length_controlled_win_rate,
    length_term,
    position_bias,
)

# Made once by scipy.optimize alone: L-BFGS-B on the penalised likelihood, every slope split into its positive and its
# negative part; the strength by five folds of every fifth row, of all ten that AlpacaEval tries. Nothing of the package had a
# part in it. `alpaca_eval`: what fit_LogisticRegressionCV of alpaca_eval 0.6.6 finds, with scikit-learn 1.9.1.
CASES: list[dict[str, Any]] = json.loads(Path(__file__).with_name("judge_win_rates.json").read_text())


def rate(preference: Any, reference: Any, candidate: Any, **options: Any) -> WinRate:
    return length_controlled_win_rate(preference, reference, candidate, **({"resamples": 0} | options))


def brute_force(terms: np.ndarray, wins: np.ndarray, strength: float) -> np.ndarray:
    """Minimise sum |slope| + strength * cross-entropy without any of the package's own tools."""
    count = terms.shape[1]

    def cost(halves: np.ndarray) -> tuple[float, np.ndarray]:
        logits = terms @ (halves[:count] - halves[count:])
        slope = strength * terms.T @ (expit(logits) - wins)
        value = halves.sum() + strength * float(np.sum(np.logaddexp(0, logits) - wins * logits))
        return value, np.concatenate([1 + slope, 1 - slope])

    options = {"maxiter": 100_000, "maxfun": 10**6, "ftol": 1e-15, "gtol": 1e-11}
    bounds = [(0, None)] * (2 * count)
    found = minimize(cost, np.full(2 * count, 0.1), jac=True, bounds=bounds, method="L-BFGS-B", options=options).x
    return found[:count] - found[count:]


# --- raw -------------------------------------------------------------------------------------------------------------


def test_the_raw_rate_by_hand() -> None:
    assert rate([1, 2, 2, 1.5], [1] * 4, [1] * 4).win_rate == 62.5
    assert rate([1.25, float("nan"), 1.75, None], [1] * 4, [1] * 4).win_rate == 50


def test_a_missing_verdict_is_neither_a_win_nor_a_loss() -> None:
    got = rate([2, None, 2, float("nan"), 1], [10, 20, 30, 40, 50], [11, 0, 32, 999, 54])
    assert (got.n, got.n_valid, got.win_rate) == (5, 3, pytest.approx(200 / 3))
    assert (got.mean_length_reference, got.mean_length_candidate) == (30, pytest.approx(97 / 3))
    assert got.longer == 1
    assert rate([2, 1, 1.5, 2, None], [10, 20, 30, 40, 1], [11, 19, 30, 44, 0]).longer == 2.5 / 4, "a tie counts half"


# --- controlled ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_the_brute_force_finds_the_same(case: dict[str, Any]) -> None:
    got = rate(case["preference"], case["len_reference"], case["len_candidate"], strength=case["strength"])
    assert got.win_rate == pytest.approx(case["win_rate"], abs=1e-9)
    assert got.length_controlled_win_rate == pytest.approx(case["length_controlled_win_rate"], abs=1e-3)
    assert got.length_effect == pytest.approx(case["length_effect"], abs=1e-3)


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_the_penalty_and_the_rate_are_those_of_alpaca_evals_package(case: dict[str, Any]) -> None:
    got = rate(case["preference"], case["len_reference"], case["len_candidate"])
    assert got.length_controlled_win_rate == pytest.approx(case["alpaca_eval"]["length_controlled_win_rate"], abs=0.01)
    assert got.strength == pytest.approx(case["alpaca_eval"]["strength"])


@pytest.mark.parametrize(
    ("seed", "level", "slope", "noise", "short", "theirs"),
    # A lead that its penalty takes for none; converged fits are 0.15 above, and 0.11 below.
    [(0, 0.12, 2, 4, False, 50.0), (1, 1, 4, 3, True, 85.6857), (4, 1, 4, 3, True, 81.2547)],
)
def test_rates_of_as_many_questions_as_alpaca_eval_has(
    seed: int, level: float, slope: float, noise: float, short: bool, theirs: float
) -> None:
    random = np.random.default_rng(seed)
    reference = random.integers(300, 3000, 805)
    candidate = (reference * random.uniform(0.2, 1.5, 805)).round()
    if short:
        random = np.random.default_rng(seed + 50)
        candidate = random.integers(180, 220, 805)
    wins = expit(level + slope * (candidate - reference) / 1000 + random.normal(0, noise, 805))
    got = rate(np.round(1 + wins, 6), reference, candidate)
    assert got.length_controlled_win_rate == pytest.approx(theirs, abs=0.01)


@pytest.mark.parametrize("strength", [0.05, 1.0, 100.0])
def test_a_given_strength_against_the_brute_force(strength: float) -> None:
    random = np.random.default_rng(3)
    difference, wins = random.normal(200, 400, 40).round(), random.uniform(size=40)
    got = rate(1 + wins, np.full(40, 500.0), 500 + difference, strength=strength)
    terms = np.column_stack([np.tanh(difference / difference.std(ddof=1)), np.ones(40)])
    _, constant = brute_force(terms, wins, strength)
    assert got.length_controlled_win_rate == pytest.approx(100 * expit(constant), abs=1e-3)


def test_what_length_alone_wins_is_taken_out() -> None:
    # The longer answer wins nine times in ten, and the candidate's is the longer one in eighty of a hundred.
    difference = np.where(np.arange(100) % 5 == 0, -300, 300)
    wins = np.where(difference > 0, 0.9, 0.1)
    got = rate(1 + wins, np.full(100, 1000), 1000 + difference, strength=1e4)
    assert got.win_rate == pytest.approx(74)
    assert got.length_controlled_win_rate == pytest.approx(50, abs=0.05)
    assert got.length_effect is not None and got.length_effect > 0


def test_the_length_term_by_hand() -> None:
    assert length_term(np.array([0.0, 2.0, 4.0])) == pytest.approx([0, math.tanh(1), math.tanh(2)])
    assert length_term(np.array([5.0, 5.0])).tolist() == [0, 0]
    assert length_term(np.array([5.0])).tolist() == [0]


def test_equal_lengths_leave_the_raw_rate() -> None:
    wins = np.linspace(0, 0.8, 50)
    got = rate(1 + wins, np.full(50, 90), np.full(50, 90), strength=1e4)
    assert (got.length_controlled_win_rate, got.length_effect) == (pytest.approx(got.win_rate, abs=0.01), 0)


@pytest.mark.slow
def test_a_small_lead_is_not_taken_for_none() -> None:
    random = np.random.default_rng(5)
    wins = random.uniform(0.05, 1, 40)
    got = rate(1 + wins, np.full(40, 90), np.full(40, 90), resamples=100)
    assert got.length_controlled_win_rate == pytest.approx(got.win_rate, abs=1)
    assert got.length_controlled_low is not None and got.length_controlled_high is not None
    assert got.length_controlled_high - got.length_controlled_low > 5


def test_a_constant_difference_cannot_be_told_from_the_candidate() -> None:
    got = rate(np.linspace(1, 2, 50), np.full(50, 90), np.full(50, 100), resamples=20)
    assert (got.length_controlled_win_rate, got.length_controlled_low, got.strength) == (None, None, None)
    assert got.win_rate == pytest.approx(50) and got.win_rate_low is not None


@pytest.mark.parametrize("value", [1.0, 2.0])
def test_all_preferences_equal(value: float) -> None:
    random = np.random.default_rng(0)
    got = rate(np.full(30, value), np.full(30, 100), random.integers(50, 200, 30), resamples=10)
    assert got.win_rate == got.win_rate_low == got.win_rate_high == 100 * (value - 1)
    assert got.length_controlled_win_rate == pytest.approx(got.win_rate, abs=1)


def test_one_row() -> None:
    got = rate([1.75], [10], [20], resamples=100)
    assert (got.win_rate, got.n_valid) == (75, 1)
    assert (got.win_rate_low, got.length_controlled_win_rate, got.length_controlled_high) == (None, None, None)


@pytest.mark.slow
@given(
    rows=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 3000), st.integers(0, 3000)), min_size=5, max_size=40),
    strength=st.sampled_from([0.1, 1.0, 20.0]),
)
@settings(max_examples=30)
def test_swapping_the_sides_mirrors_the_rates(rows: list[tuple[float, int, int]], strength: float) -> None:
    wins, reference, candidate = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    one = rate(1 + wins, reference, candidate, strength=strength)
    other = rate(2 - wins, candidate, reference, strength=strength)
    assert one.win_rate + other.win_rate == pytest.approx(100)
    assert (one.length_controlled_win_rate is None) == (other.length_controlled_win_rate is None)
    if one.length_controlled_win_rate is not None and other.length_controlled_win_rate is not None:
        assert one.length_controlled_win_rate + other.length_controlled_win_rate == pytest.approx(100, abs=0.01)


@pytest.mark.slow
@given(
    rows=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 3000), st.integers(0, 3000)), min_size=5, max_size=40),
    seed=st.integers(0, 99),
)
@settings(max_examples=30)
def test_the_order_of_the_rows_and_missing_ones_change_nothing(rows: list[tuple[float, int, int]], seed: int) -> None:
    wins, reference, candidate = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    before = rate(1 + wins, reference, candidate, strength=2.0)
    order = np.random.default_rng(seed).permutation(len(rows))
    places = np.insert(order, seed % len(rows), -1)  # a row without a verdict, somewhere between
    preference = np.where(places < 0, np.nan, (1 + wins)[places])
    after = rate(preference, reference[places], candidate[places], strength=2.0)
    assert (after.n, after.n_valid) == (before.n + 1, before.n_valid)
    assert after.win_rate == pytest.approx(before.win_rate)
    assert after.length_controlled_win_rate == pytest.approx(before.length_controlled_win_rate, abs=0.01)


# --- intervals -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_intervals_are_seeded_and_hold_the_rates() -> None:
    case = CASES[0]
    columns = case["preference"], case["len_reference"], case["len_candidate"]
    one = rate(*columns, resamples=200, seed=4)
    assert one == rate(*columns, resamples=200, seed=4)
    assert one != rate(*columns, resamples=200, seed=5)
    for low, value, high in (
        (one.win_rate_low, one.win_rate, one.win_rate_high),
        (one.length_controlled_low, one.length_controlled_win_rate, one.length_controlled_high),
    ):
        assert low is not None and value is not None and high is not None and low < value < high
    narrow = rate(*columns, resamples=200, seed=4, level=0.5)
    assert one.win_rate_low < narrow.win_rate_low < narrow.win_rate_high < one.win_rate_high  # type: ignore[operator]


def test_the_raw_interval_is_about_as_wide_as_theory_says() -> None:
    random = np.random.default_rng(1)
    wins = random.uniform(size=400)
    got = rate(1 + wins, np.full(400, 10), np.full(400, 20), resamples=2000)
    half = 100 * 1.96 * wins.std(ddof=1) / math.sqrt(400)
    assert got.win_rate_low == pytest.approx(got.win_rate - half, abs=0.4)
    assert got.win_rate_high == pytest.approx(got.win_rate + half, abs=0.4)


@pytest.mark.slow
def test_the_raw_interval_holds_the_true_rate_as_often_as_it_claims() -> None:
    """Chance moves the share of 1,000 runs by 0.02 once in 250 tries; percentiles of 200 resamples are a little narrow."""
    random, share, n, held = np.random.default_rng(2), 0.6, 200, 0
    for run in range(1000):
        preference = random.choice([1.0, 1.5, 2.0], n, p=[0.95 - share, 0.1, share - 0.05])
        found = rate(preference, np.full(n, 10), np.full(n, 20), resamples=200, seed=run)
        assert found.win_rate_low is not None and found.win_rate_high is not None
        held += found.win_rate_low <= 100 * share <= found.win_rate_high
    assert 920 <= held <= 970


@pytest.mark.slow
def test_the_controlled_interval_holds_the_true_rate_about_as_often_as_it_claims() -> None:
    """40 runs, as every resample is a fit: 33 or fewer are one in 300 at 0.95, and the rule for intervals half as wide."""
    random, n, constant, held = np.random.default_rng(3), 200, 0.4, 0
    for run in range(40):
        longer = random.normal(100, 300, n)
        wins = random.random(n) < expit(constant + 0.8 * length_term(longer))
        found = rate(1 + wins, np.full(n, 1000), 1000 + longer, strength=100.0, resamples=80, seed=run)
        assert found.length_controlled_low is not None and found.length_controlled_high is not None
        held += found.length_controlled_low <= 100 * expit(constant) <= found.length_controlled_high
    assert held >= 34


def test_the_result_is_plain() -> None:
    got = rate(CASES[0]["preference"], CASES[0]["len_reference"], CASES[0]["len_candidate"], resamples=5)
    assert WinRate(**json.loads(json.dumps(asdict(got)))) == got


# --- position --------------------------------------------------------------------------------------------------------


def test_position_bias_by_hand() -> None:
    bias = position_bias([1.8, 1.6, None, 1.2, 1.4], [True, True, True, False, False])
    assert (bias.candidate_first, bias.candidate_second) == pytest.approx((1.7, 1.3))
    assert (bias.n_first, bias.n_second) == (2, 2)
    assert (bias.difference, bias.standard_error) == (pytest.approx(0.4), pytest.approx(math.sqrt(0.02 / 2 + 0.02 / 2)))


def test_position_bias_of_pairs_in_both_orders_by_hand() -> None:
    # a: the candidate wins in both orders; b: whichever is first wins; c: a tie in one order; d: one verdict is missing.
    questions = [*"abcd", *"dcba"]
    preference = [1.9, 1.8, 1.5, 1.6, None, 1.2, 1.3, 1.7]
    bias = position_bias(preference, [True] * 4 + [False] * 4, questions)
    differences = np.array([0.2, 0.5, 0.3])
    assert (bias.flipped, bias.n_both, bias.n_first, bias.n_second) == (pytest.approx(1 / 3), 3, 3, 3)
    assert bias.difference == pytest.approx(differences.mean())
    assert bias.standard_error == pytest.approx(differences.std(ddof=1) / math.sqrt(3))
    assert (bias.candidate_first, bias.candidate_second) == pytest.approx((5.2 / 3, 4.2 / 3))
    none = position_bias([1.9, None], [True, False], ["a", "a"])
    assert (none.flipped, none.difference, none.n_both) == (None, None, 0)


def test_position_bias_of_one_order_is_not_known() -> None:
    bias = position_bias([1.8, 1.6], [True, True])
    assert bias.candidate_first == pytest.approx(1.7)
    assert (bias.candidate_second, bias.difference, bias.standard_error) == (None, None, None)


# --- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preference", "reference", "candidate", "message"),
    [
        ([None, float("nan")], [1, 2], [1, 2], "no pair has a verdict"),
        ([], [], [], "no pair has a verdict"),
        ([1.5, 0.0], [1, 2], [1, 2], "out of range"),
        ([1.5, 2.1], [1, 2], [1, 2], "out of range"),
        ([1.5, math.inf], [1, 2], [1, 2], "out of range"),
        ([1.5, 1.2], [1, 2, 3], [1, 2], "len_reference does not match"),
        ([1.5, 1.2], [1, 2], [1], "len_candidate does not match"),
        ([1.5, 1.2], [1, None], [1, 2], "len_reference is missing"),
        ([[1.5]], [1], [1], "one column"),
    ],
)
def test_mistakes_are_named(preference: Any, reference: Any, candidate: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        rate(preference, reference, candidate)


def test_a_length_may_be_missing_where_the_verdict_is() -> None:
    assert rate([1.5, None], [1, None], [1, None]).n_valid == 1
