"""AURC by question: its exact value, and that resampling its questions is resampling the curve."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from ual_ray.calibrate.metrics import area_under_risk_coverage
from ual_ray.stats.bootstrap import resampled_sums
from ual_ray.stats.results import aurc_by_question


def answered(questions: int, per_question: int, digits: int, seed: int) -> tuple[NDArray, NDArray, NDArray]:
    """Make tokens of questions that are easy or hard as a whole: confidence, correct, question."""
    random = np.random.default_rng(seed)
    place = np.repeat(np.arange(questions), per_question)
    hard = random.normal(0, 1, questions)[place]
    sure = np.round(1 / (1 + np.exp(hard + random.normal(0, 1, len(place)))), digits)
    return sure, random.random(len(place)) < 0.2 + 0.7 * sure, place


@pytest.mark.parametrize("digits", [0, 1, 2, 12])
def test_the_ratio_of_the_sums_is_the_aurc(digits: int) -> None:
    sure, right, place = answered(30, 7, digits, seed=digits)
    value, weight = aurc_by_question(sure, right, place, 30).sum(axis=0)
    assert value / weight == pytest.approx(area_under_risk_coverage(sure, right), rel=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("digits", [1, 12])
def test_its_standard_error_over_questions_is_that_of_the_whole_curve_resampled(digits: int) -> None:
    sure, right, place = answered(150, 12, digits, seed=3)
    sums = resampled_sums(aurc_by_question(sure, right, place, 150), 1000)
    random, whole = np.random.default_rng(5), []
    tokens = [np.flatnonzero(place == question) for question in range(150)]
    for _ in range(600):
        chosen = np.concatenate([tokens[question] for question in random.integers(150, size=150)])
        whole.append(area_under_risk_coverage(sure[chosen], right[chosen]))
    assert np.std(sums[:, 0] / sums[:, 1]) == pytest.approx(np.std(whole), rel=0.1)


def test_a_questions_value_is_what_asking_it_twice_adds_to_the_curve() -> None:
    sure, right, place = answered(400, 5, 12, seed=9)
    values = aurc_by_question(sure, right, place, 400)
    for question in (0, 17, 399):
        twice = np.concatenate([np.arange(len(sure)), np.flatnonzero(place == question)])
        change = len(twice) * area_under_risk_coverage(sure[twice], right[twice])
        change -= len(sure) * area_under_risk_coverage(sure, right)
        assert values[question, 0] == pytest.approx(change, abs=0.03)


@pytest.mark.parametrize("right", [True, False])
def test_all_right_or_all_wrong_is_the_end_of_the_range(right: bool) -> None:
    values = aurc_by_question(np.linspace(0, 1, 20), np.full(20, right), np.arange(20) // 4, 5)
    assert (values[:, 0] / values[:, 1]).tolist() == pytest.approx([1.0 - right] * 5)
