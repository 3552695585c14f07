"""Calibration by hand, by brute force and by what must not matter."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from ual_ray.calibrate.metrics import (
    HIGHEST_TEMPERATURE,
    LOWEST_TEMPERATURE,
    area_under_risk_coverage,
    brier_score,
    errors_by_question,
    expected_calibration_error,
    fit_temperature,
    fit_temperature_of,
    reliability,
    summary,
    token_summary,
)

MEASURES = [expected_calibration_error, brier_score, area_under_risk_coverage, reliability]
rows = st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.6, 0.9, 1.0]), st.booleans()), min_size=1, max_size=40)


def columns(pairs: list[tuple[float, bool]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([sure for sure, _ in pairs]), np.array([right for _, right in pairs])


# --- expected calibration error --------------------------------------------------------------------------------------


def test_equal_width_bins_by_hand() -> None:
    # Two bins: (0, 0.5] holds 0.2 and 0.4, (0.5, 1] holds 0.6, 0.8 and 1.0.
    sure, right = [0.2, 0.4, 0.6, 0.8, 1.0], [1, 0, 0, 1, 1]
    low, high = abs(0.5 - 0.3), abs(2 / 3 - 0.8)
    assert expected_calibration_error(sure, right, n_bins=2) == pytest.approx(2 / 5 * low + 3 / 5 * high)


def test_bins_are_closed_on_the_right_and_hold_zero() -> None:
    bins = reliability([0.0, 0.2, 0.2 + 1e-12, 0.4, 1.0], [0, 0, 1, 1, 1], n_bins=5)
    assert bins.count.tolist() == [2, 2, 0, 0, 1]
    assert bins.confidence[0] == pytest.approx(0.1)
    assert np.isnan(bins.accuracy[2])
    for n_bins in (3, 7, 10, 15):
        edges = np.linspace(0, 1, n_bins + 1)[1:]
        assert reliability(edges, np.ones(n_bins), n_bins).count.tolist() == [1] * n_bins


def test_equal_mass_by_hand() -> None:
    sure, right = [0.9, 0.1, 0.5, 0.6], [1, 0, 1, 0]
    # Sorted 0.1 0.5 | 0.6 0.9: mean 0.3 against 1/2, and 0.75 against 1/2.
    assert expected_calibration_error(sure, right, n_bins=2, scheme="mass") == pytest.approx((0.2 + 0.25) / 2)


def test_equal_mass_sizes_differ_by_one_at_most() -> None:
    bins = reliability(np.linspace(0, 1, 10), np.zeros(10), 4, "mass")
    assert bins.count.tolist() == [3, 3, 2, 2]
    assert reliability([0.3, 0.7], [1, 0], 4, "mass").count.tolist() == [1, 1, 0, 0]


def test_a_tie_that_a_cut_divides_shares_its_accuracy() -> None:
    for right in set(itertools.permutations([1, 1, 0, 0])):
        assert expected_calibration_error([0.5] * 4, right, n_bins=2, scheme="mass") == pytest.approx(0)


@pytest.mark.parametrize("scheme", ["width", "mass"])
def test_extremes(scheme: Any) -> None:
    assert expected_calibration_error([1.0] * 9, [1] * 9, scheme=scheme) == 0
    assert expected_calibration_error([1.0] * 9, [0] * 9, scheme=scheme) == 1
    assert expected_calibration_error([0.75] * 4, [1, 1, 1, 0], scheme=scheme) == pytest.approx(0)


@given(rows)
def test_equal_width_is_the_definition(pairs: list[tuple[float, bool]]) -> None:
    sure, right = columns(pairs)
    edges = np.linspace(0, 1, 16)
    expected = 0.0
    for number, (low, high) in enumerate(zip(edges, edges[1:], strict=False)):
        inside = (sure > low) & (sure <= high) | ((sure == 0) & (number == 0))
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - sure[inside].mean())
    assert expected_calibration_error(sure, right) == pytest.approx(expected)


@given(rows, st.integers(1, 20), st.sampled_from(["width", "mass"]), st.randoms(use_true_random=False))
def test_nothing_depends_on_the_order_of_rows(pairs: list[tuple[float, bool]], n_bins: int, scheme: Any, random: Any) -> None:
    mixed = list(pairs)
    random.shuffle(mixed)
    for measure in (brier_score, area_under_risk_coverage):
        assert measure(*columns(mixed)) == pytest.approx(measure(*columns(pairs)))
    values = [expected_calibration_error(*columns(each), n_bins, scheme) for each in (pairs, mixed)]
    assert values[0] == pytest.approx(values[1])
    assert 0 <= values[0] <= 1


@given(rows)
def test_one_bin_is_the_gap_of_the_means(pairs: list[tuple[float, bool]]) -> None:
    sure, right = columns(pairs)
    for scheme in ("width", "mass"):
        assert expected_calibration_error(sure, right, 1, scheme) == pytest.approx(abs(sure.mean() - right.mean()))


@given(rows, st.integers(1, 20), st.sampled_from(["width", "mass"]))
def test_bins_hold_every_row_once(pairs: list[tuple[float, bool]], n_bins: int, scheme: Any) -> None:
    sure, right = columns(pairs)
    bins = reliability(sure, right, n_bins, scheme)
    filled = bins.count > 0
    assert len(bins.count) == n_bins
    assert bins.count.sum() == len(sure)
    assert (bins.count * bins.confidence)[filled].sum() == pytest.approx(sure.sum())
    assert (bins.count * bins.accuracy)[filled].sum() == pytest.approx(right.sum())
    assert (np.diff(bins.confidence[filled]) >= -1e-12).all()
    assert json.loads(json.dumps(bins.as_dict(), allow_nan=False))["count"] == bins.count.tolist()


# --- Brier, AURC, AUROC ----------------------------------------------------------------------------------------------


def test_brier_by_hand() -> None:
    assert brier_score([0.9, 0.4], [1, 0]) == pytest.approx((0.01 + 0.16) / 2)
    assert brier_score([1.0, 0.0], [True, False]) == 0


def test_area_under_risk_coverage_by_hand() -> None:
    # Most confident first: right, wrong, right -> risks 0, 1/2, 1/3.
    assert area_under_risk_coverage([0.2, 0.9, 0.5], [1, 1, 0]) == pytest.approx((0 + 1 / 2 + 1 / 3) / 3)
    assert area_under_risk_coverage([0.3, 0.6], [1, 1]) == 0
    assert area_under_risk_coverage([0.3, 0.6], [0, 0]) == 1


@given(st.lists(st.tuples(st.sampled_from([0.2, 0.5, 0.8]), st.booleans()), min_size=1, max_size=6))
def test_area_under_risk_coverage_is_the_mean_over_all_orders_of_ties(pairs: list[tuple[float, bool]]) -> None:
    areas = []
    for order in itertools.permutations(pairs):
        if all(first[0] >= second[0] for first, second in itertools.pairwise(order)):
            wrong = np.cumsum([not right for _, right in order])
            areas.append(np.mean(wrong / np.arange(1, len(order) + 1)))
    assert area_under_risk_coverage(*columns(pairs)) == pytest.approx(np.mean(areas))


def test_a_higher_confidence_of_right_rows_is_a_higher_auroc() -> None:
    assert summary([0.9, 0.8, 0.1], [1, 1, 0])["auroc"] == 1
    assert summary([0.9, 0.8, 0.1], [0, 0, 1])["auroc"] == 0
    assert summary([0.5, 0.5], [1, 0])["auroc"] == 0.5


@pytest.mark.slow
@given(rows)
def test_rejection_ratio_and_area_are_two_views_of_one_curve(pairs: list[tuple[float, bool]]) -> None:
    sure, right = columns(pairs)
    if right.all() or not right.any():
        return
    best = 1 - area_under_risk_coverage(right.astype(float), right)
    found = 1 - area_under_risk_coverage(sure, right)
    expected = (found - right.mean()) / (best - right.mean())
    assert summary(sure, right)["prr"] == pytest.approx(expected)


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize(
    ("sure", "right"),
    [
        ([], []),
        ([0.5], [1, 0]),
        ([[0.5]], [[1]]),
        ([1.1, 0.5], [1, 0]),
        ([-0.1, 0.5], [1, 0]),
        ([np.nan, 0.5], [1, 0]),
        ([0.5, 0.5], [0.5, 1]),
        ([0.5, 0.5], [np.nan, 1]),
    ],
)
def test_bad_input_is_refused(measure: Any, sure: Any, right: Any) -> None:
    with pytest.raises(ValueError, match="confidence|correct|verdicts|rows"):
        measure(sure, right)


def test_other_bins_and_schemes_are_refused() -> None:
    with pytest.raises(ValueError, match="n_bins"):
        expected_calibration_error([0.5], [1], n_bins=0)
    with pytest.raises(ValueError, match="scheme"):
        reliability([0.5], [1], scheme="depth")  # type: ignore[arg-type]


# --- temperature -----------------------------------------------------------------------------------------------------


def mean_nll(logits: np.ndarray, labels: np.ndarray, temperature: float = 1.0) -> float:
    return float(-log_softmax(logits / temperature, axis=1)[np.arange(len(labels)), labels].mean())


def sampled(rows: int = 3000, classes: int = 20, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels drawn from their softmax: at temperature 1 they are calibrated."""
    random = np.random.default_rng(seed)
    logits = 2 * random.normal(size=(rows, classes))
    labels = (logits + random.gumbel(size=logits.shape)).argmax(axis=1)
    return logits, labels


@pytest.mark.parametrize("factor", [0.1, 0.5, 0.9, 1.0, 1.7, 2.0, 10.0])
def test_a_temperature_undoes_a_scale(factor: float) -> None:
    logits, labels = sampled()
    assert fit_temperature(factor * logits, labels) == pytest.approx(factor * fit_temperature(logits, labels), rel=1e-3)
    assert fit_temperature(factor * logits, labels) == pytest.approx(factor, rel=0.05)


def test_the_temperature_is_where_the_loss_is_lowest() -> None:
    logits, labels = sampled(500, 5)
    logits = 3 * logits + 100  # a shift of all logits of a row changes nothing

    def loss(log_temperature: float) -> float:
        return -log_softmax(logits / np.exp(log_temperature), axis=1)[np.arange(500), labels].mean()

    best = minimize_scalar(loss, bounds=(-2, 3), method="bounded", options={"xatol": 1e-9})
    temperature = fit_temperature(logits, labels)
    assert np.log(temperature) == pytest.approx(best.x, abs=2e-4)
    assert mean_nll(logits, labels, temperature) == pytest.approx(best.fun, abs=1e-8)
    assert mean_nll(logits, labels, temperature) < mean_nll(logits, labels)


def test_scaling_mends_confidence_and_leaves_accuracy() -> None:
    logits, labels = sampled()
    logits = 3 * logits
    temperature = fit_temperature(logits, labels)
    errors = []
    for scale in (1, temperature):
        probabilities = np.exp(log_softmax(logits / scale, axis=1))
        errors.append(expected_calibration_error(probabilities.max(axis=1), probabilities.argmax(axis=1) == labels))
    assert errors[1] < 0.05 < 0.15 < errors[0]


def test_a_temperature_stays_in_its_range() -> None:
    right = np.repeat([[2.0, 0, 0]], 4, axis=0)
    assert fit_temperature(right, np.zeros(4, dtype=int)) == pytest.approx(LOWEST_TEMPERATURE)
    assert fit_temperature(right, np.ones(4, dtype=int)) == pytest.approx(HIGHEST_TEMPERATURE)
    assert fit_temperature(np.zeros((4, 3)), np.zeros(4, dtype=int)) == 1


def test_a_fit_asks_for_few_slopes() -> None:
    asked = []

    def slope(inverse: float) -> float:
        asked.append(inverse)
        return float(np.tanh(inverse - 0.8))

    assert fit_temperature_of(slope) == pytest.approx(1 / 0.8, rel=1e-3)
    assert len(asked) == len(set(asked)) <= 8


@pytest.mark.parametrize(
    ("logits", "labels"),
    [
        (np.zeros((0, 3)), np.zeros(0, dtype=int)),
        (np.zeros(3), np.zeros(3, dtype=int)),
        (np.zeros((2, 3)), np.zeros(3, dtype=int)),
        (np.full((2, 3), np.nan), np.zeros(2, dtype=int)),
        (np.zeros((2, 3)), np.array([0, 3])),
        (np.zeros((2, 3)), np.array([0, -1])),
        (np.zeros((2, 3)), np.array([0.0, 1.0])),
    ],
)
def test_bad_logits_are_refused(logits: np.ndarray, labels: np.ndarray) -> None:
    with pytest.raises(ValueError, match="logits|labels"):
        fit_temperature(logits, labels)


# --- summaries and their errors --------------------------------------------------------------------------------------


def test_errors_are_by_question_not_by_token() -> None:
    random = np.random.default_rng(1)
    questions = 60
    offsets = random.normal(size=questions)
    nll = 2 + offsets
    sure, right = random.uniform(size=questions), random.uniform(size=questions) < 0.5
    names = [str(number) for number in range(questions)]
    once = errors_by_question(names, nll, sure, right)
    # Each question ten times over: a hundred times the tokens, and no more is known.
    often = errors_by_question(names * 10, np.tile(nll, 10), np.tile(sure, 10), np.tile(right, 10))
    assert once == pytest.approx(often)
    assert once[0] == pytest.approx(offsets.std(ddof=1) / np.sqrt(questions), rel=0.1)
    assert once[1] is not None
    assert 0 < once[1] < 0.2
    assert errors_by_question(names, nll, sure, right) == once
    assert errors_by_question(["a", "a"], [1, 2], [0.5, 0.5], [1, 0]) == (None, None)


def test_the_bootstrap_of_the_error_is_that_of_drawn_questions() -> None:
    random = np.random.default_rng(2)
    names = [str(number // 3) for number in range(30)]
    sure, right = random.uniform(size=30), random.uniform(size=30) < 0.7
    nll = random.uniform(size=30)
    found = errors_by_question(names, nll, sure, right, n_bins=5, resamples=300, seed=3)
    again = np.random.default_rng(3)
    labels = np.unique(names)
    draws = []
    for _ in range(300):
        times = dict(zip(labels, again.multinomial(10, np.full(10, 0.1)), strict=True))
        drawn = np.repeat(np.arange(30), [times[name] for name in names])
        draws.append((nll[drawn].mean(), expected_calibration_error(sure[drawn], right[drawn], 5)))
    assert found == pytest.approx(np.std(draws, axis=0, ddof=1))


def test_a_summary_is_plain_and_complete() -> None:
    found = json.loads(json.dumps(summary([0.9, 0.6, 0.2], [1, 0, 0]), allow_nan=False))
    assert found["n"] == 3
    assert found["accuracy"] == pytest.approx(1 / 3)
    assert found["ece_width"] == expected_calibration_error([0.9, 0.6, 0.2], [1, 0, 0])
    assert found["auroc"] == 1
    assert sum(found["reliability"]["count"]) == 3
    assert summary([0.9, 0.6], [1, 1])["auroc"] is None
    assert summary([0.9, 0.6], [1, 1])["prr"] is None


def test_a_summary_of_tokens_has_their_loss_and_the_brier_score_over_the_vocabulary() -> None:
    found = token_summary(["a", "a", "b"], [1.0, 2.0, 3.0], [0.5, 0.5, 0.5], [1, 0, 1], [0.2, 0.4, 0.6])
    assert found["nll"] == 2
    assert found["brier"] == pytest.approx(0.4)
    assert found["questions"] == 2
    assert found["nll_standard_error"] > 0
