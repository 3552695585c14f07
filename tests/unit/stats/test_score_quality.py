"""Figures of a column of scores, by hand and against brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm, spearmanr
from sklearn.metrics import roc_auc_score

from ual_ray.stats import score_quality as quality
from ual_ray.stats.score_quality import (
    against_labels,
    auroc,
    auroc_interval,
    auroc_standard_error,
    auroc_text,
    distribution,
    prediction_rejection_ratio,
    retest_noise,
    spearman,
)

NAN = math.nan
# Few different scores, so that ties are the rule.
SCORED = st.lists(st.tuples(st.integers(0, 5).map(lambda n: n / 5), st.booleans()), min_size=2, max_size=40)
MIXED = SCORED.filter(lambda rows: len({good for _, good in rows}) == 2).map(lambda rows: tuple(zip(*rows, strict=True)))


def numbers(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float64)


# --- AUROC -----------------------------------------------------------------------------------------------------------


def test_auroc_by_hand() -> None:
    assert auroc([0.9, 0.1], [0, 1]) == 1.0
    assert auroc([0.1, 0.9], [0, 1]) == 0.0
    # Wrong 0.5 against good 0.5 and 0.2: half a win and a win, of two pairs.
    assert auroc([0.5, 0.5, 0.2], [0, 1, 1]) == 0.75


@pytest.mark.slow
@given(MIXED)
def test_auroc_counts_pairs(rows: tuple[tuple[float, ...], tuple[bool, ...]]) -> None:
    scores, good = rows
    pairs = [(a, b) for a, x in zip(scores, good, strict=True) if not x for b, y in zip(scores, good, strict=True) if y]
    counted = sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs) / len(pairs)
    assert auroc(scores, good) == pytest.approx(counted)
    assert auroc(scores, good) == pytest.approx(roc_auc_score([not value for value in good], scores))


@pytest.mark.parametrize("measure", [auroc, prediction_rejection_ratio, auroc_standard_error])
@pytest.mark.parametrize(
    ("scores", "good"),
    [([0.1, 0.2], [1, 1]), ([0.1, 0.2], [0, 0]), ([], []), ([0.1, NAN], [1, 0]), ([0.1, math.inf], [1, 0]), ([0.1], [1, 0])],
)
def test_what_is_undefined_raises(measure, scores: list[float], good: list[int]) -> None:
    with pytest.raises(ValueError):
        measure(scores, good)


def test_the_standard_error_is_that_of_resampled_rows() -> None:
    random = np.random.default_rng(1)
    good = random.random(400) < 0.7
    scores = np.round(random.random(400) + 0.3 * ~good, 1)
    draws = [random.integers(0, 400, 400) for _ in range(400)]
    expected = np.std([auroc(scores[draw], good[draw]) for draw in draws], ddof=1)
    found = auroc_standard_error(scores, good)
    assert found == pytest.approx(expected, rel=0.2)
    assert found == auroc_standard_error(scores, good, seed=0)
    order = random.permutation(400)
    assert found == auroc_standard_error(scores[order], good[order]), "the order of the rows does not matter"


@pytest.mark.parametrize(
    ("area", "wrong", "good"), [(0.5, 1, 1), (0.9, 13, 51), (1.0, 13, 51), (0.0, 4, 16), (0.72, 400, 1600)]
)
def test_the_interval_is_all_that_the_score_test_keeps(area: float, wrong: int, good: int) -> None:
    """By brute force, on a grid."""
    t = np.linspace(0, 1, 200_001)
    more = (wrong + good) / 2 - 1
    variance = t * (1 - t) / (wrong * good) * (1 + more * (1 - t) / (2 - t) + more * t / (1 + t))
    kept = t[np.abs(t - area) <= 1.959964 * np.sqrt(variance)]
    assert auroc_interval(area, wrong, good) == pytest.approx((kept.min(), kept.max()), abs=1e-5)


@given(area=st.floats(0, 1), wrong=st.integers(1, 300), good=st.integers(1, 300))
def test_the_interval_holds_the_area_and_is_symmetric(area: float, wrong: int, good: int) -> None:
    low, high = auroc_interval(area, wrong, good)
    assert 0 <= low <= area + 1e-9 and area - 1e-9 <= high <= 1 and low < high
    other = auroc_interval(1 - area, wrong, good)
    assert (1 - other[1], 1 - other[0]) == pytest.approx((low, high), abs=1e-6)
    wider = auroc_interval(area, wrong, 4 * good)
    assert wider[1] - wider[0] <= high - low + 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("shift", [0.0, 1.0, 2.0, 3.0])
def test_the_interval_covers(shift: float) -> None:
    """Of normal scores, 13 wrong and 51 good as in a self-check of 64 rows; the error of 500 draws is 1 point."""
    random = np.random.default_rng(7)
    truth = float(norm.cdf(shift / math.sqrt(2)))
    good = np.arange(64) >= 13
    covered = 0
    for _ in range(500):
        low, high = auroc_interval(auroc(random.normal(size=64) + shift * ~good, good), 13, 51)
        covered += low <= truth <= high
    assert 0.93 < covered / 500 < 0.99


def test_the_text_of_an_auroc() -> None:
    good = np.array([1.0] * 8 + [0.0] * 4)
    assert auroc_text(against_labels(np.arange(12) / 12, good)).startswith("AUROC 1.00 (0.6")
    lost = np.where(np.arange(12) == 0, np.nan, np.tile([0.1, 0.2], 6))
    assert auroc_text(against_labels(lost, good)).endswith("; not told from chance; 1 row without a score")
    near = quality.Quality(99, 40, 0, 0.61, 0.05, 0.2, 0.502, 0.71)
    assert auroc_text(near) == "AUROC 0.610 (0.502 to 0.710)", "0.50 would not be told from chance"
    assert auroc_text(against_labels(good / 2, np.ones(12))) == "no AUROC: 0 wrong of 12 rows with a score"


def test_the_standard_error_needs_two_draws_with_both_verdicts() -> None:
    assert auroc_standard_error([0.1, 0.2], [0, 1], draws=1) is None
    assert auroc_standard_error([0.1, 0.2], [0, 1]) == 0.0


# --- PRR -------------------------------------------------------------------------------------------------------------


def area(ordered: list[int]) -> float:
    """Area of the quality curve of verdicts in the order of certainty, spelt out."""
    return sum(sum(ordered[:kept]) / kept for kept in range(1, len(ordered) + 1)) / len(ordered)


def test_prr_by_hand() -> None:
    good = [1, 0, 1, 1]
    # Most certain first: good, good, wrong, good -> areas by the definition.
    scores = [0.1, 0.7, 0.9, 0.2]
    expected = (area([1, 1, 0, 1]) - 0.75) / (area([1, 1, 1, 0]) - 0.75)
    assert area([1, 1, 0, 1]) == pytest.approx((1 + 1 + 2 / 3 + 3 / 4) / 4)
    assert prediction_rejection_ratio(scores, good) == pytest.approx(expected)


@given(MIXED)
def test_prr_ends(rows: tuple[tuple[float, ...], tuple[bool, ...]]) -> None:
    scores, good = rows
    assert prediction_rejection_ratio([not value for value in good], good) == pytest.approx(1.0)
    assert prediction_rejection_ratio([0.3] * len(good), good) == pytest.approx(0.0, abs=1e-12)
    assert prediction_rejection_ratio(good, good) < 0
    assert prediction_rejection_ratio(scores, good) <= 1 + 1e-12


def test_a_random_score_gains_nothing() -> None:
    random = np.random.default_rng(0)
    good = random.random(20_000) < 0.6
    assert prediction_rejection_ratio(random.random(20_000), good) == pytest.approx(0.0, abs=0.04)


def test_ties_are_rejected_in_random_order_on_average() -> None:
    scores, good = [0.2, 0.2, 0.2, 0.8], [1, 0, 1, 0]
    random = np.random.default_rng(0)
    broken = [prediction_rejection_ratio(np.array(scores) + 1e-6 * random.random(4), good) for _ in range(1000)]
    assert prediction_rejection_ratio(scores, good) == pytest.approx(np.mean(broken), abs=0.04)


# --- distribution ----------------------------------------------------------------------------------------------------


def test_distribution_by_hand() -> None:
    found = distribution(numbers(0.0, 0.5, 0.5, NAN, 1.0))
    assert found is not None
    assert (found.n, found.mean, found.minimum, found.maximum) == (4, 0.5, 0.0, 1.0)
    assert found.deviation == pytest.approx(math.sqrt(0.5 / 3))
    assert (found.lower_quartile, found.median, found.upper_quartile) == (0.375, 0.5, 0.625)
    assert (found.distinct, found.shared, found.mode, found.mode_share) == (3, 0.5, 0.5, 0.5)
    assert (found.low, found.high) == (0.25, 0.25)
    assert [place for place, count in enumerate(found.histogram) if count] == [0, 10, 19]
    assert found.evenness == pytest.approx(1.5 * math.log(2) / math.log(20))


def test_distribution_of_little() -> None:
    assert distribution(numbers()) is None
    assert distribution(numbers(NAN, NAN)) is None
    one = distribution(numbers(0.4))
    assert one is not None
    assert (one.n, one.deviation, one.shared, one.mode_share, one.evenness) == (1, None, 0.0, 1.0, 0.0)


def test_no_row_falls_out_of_the_histogram() -> None:
    assert sum(quality.histogram(numbers(-0.1, 0.0, 1.0, 1.2, NAN))) == 4


def test_evenness_ends() -> None:
    assert quality.evenness([7] * 20) == pytest.approx(1.0)
    assert math.copysign(1, quality.evenness([0, 9, 0])) == 1
    assert quality.evenness([0, 9, 0]) == 0.0


# --- correlation and noise -------------------------------------------------------------------------------------------


@pytest.mark.slow
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=3, max_size=30))
def test_spearman_is_scipys(pairs: list[tuple[int, int]]) -> None:
    first, second = np.array(pairs, dtype=np.float64).T
    found = spearman(first, second)
    if len(set(first)) == 1 or len(set(second)) == 1:
        assert found.spearman is None
    else:
        assert found.spearman == pytest.approx(spearmanr(first, second).statistic)


def test_spearman_leaves_incomplete_rows_out() -> None:
    found = spearman(numbers(1, 2, 3, NAN, 9), numbers(1, 2, 3, 4, NAN))
    assert (found.n, found.spearman) == (3, pytest.approx(1.0))
    assert spearman(numbers(1, 2), numbers(1, 2)).spearman is None
    assert spearman(numbers(0.3, 0.3, 0.3), numbers(1, 2, 3)).spearman is None


def test_noise_by_hand() -> None:
    found = retest_noise(numbers(0.2, 0.4, 0.6, 0.8, NAN), numbers(0.3, 0.3, 0.7, NAN, 0.1))
    assert found is not None
    difference = [0.1, -0.1, 0.1]
    assert found.n == 3
    assert found.mean_difference == pytest.approx(0.1)
    assert found.standard_error == pytest.approx(np.std(difference, ddof=1) / math.sqrt(2))
    assert found.standard_error is not None and found.ratio is not None and found.reliability is not None
    assert found.ratio == pytest.approx(found.standard_error / np.std([0.2, 0.4, 0.6, 0.8], ddof=1))
    assert found.reliability == pytest.approx(1 - np.var(difference, ddof=1) / 2 / np.var([0.2, 0.4, 0.6, 0.8], ddof=1))


def test_noise_of_little() -> None:
    assert retest_noise(numbers(0.1, NAN), numbers(NAN, 0.1)) is None
    one = retest_noise(numbers(0.1, 0.5), numbers(0.2, NAN))
    assert one is not None and (one.n, one.standard_error, one.ratio, one.reliability) == (1, None, None, None)
    constant = retest_noise(numbers(0.1, 0.1, 0.1), numbers(0.1, 0.2, 0.3))
    assert constant is not None and (constant.ratio, constant.reliability, constant.spearman) == (None, None, None)


def test_noise_above_the_spread_is_no_negative_reliability() -> None:
    found = retest_noise(numbers(0.50, 0.51, 0.52), numbers(0.9, 0.1, 0.6))
    assert found is not None and found.reliability == 0.0


# --- against labels --------------------------------------------------------------------------------------------------


def test_rows_without_a_score_are_left_out_and_counted() -> None:
    found = quality.against_labels(numbers(0.9, 0.1, NAN, 0.5), numbers(0, 1, 0, NAN))
    assert (found.n, found.wrong, found.left_out, found.auroc, found.prr) == (2, 1, 1, 1.0, 1.0)


def test_one_class_has_no_quality() -> None:
    found = quality.against_labels(numbers(0.9, 0.1), numbers(1, 1))
    assert (found.n, found.wrong, found.auroc, found.auroc_error, found.prr) == (2, 0, None, None, None)
