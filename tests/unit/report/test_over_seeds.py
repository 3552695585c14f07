"""Figures of one arm averaged over training seeds, against hand-computed values."""

from __future__ import annotations

import math

import pytest
from scipy import stats

from ual_ray.report.compare import average


def test_one_seed_is_left_as_it_is() -> None:
    content = {"token": {"raw": {"nll": 1.0, "n": 3}}, "temperature": None}
    assert average([content], 0.95) == content


def test_numbers_are_averaged_counts_are_the_smallest_and_the_rest_is_the_first_seeds() -> None:
    seeds = [
        {"token": {"raw": {"ece": 0.1, "n": 30, "bins": [1, 2]}}, "dtype": "float32", "temperature": 1.0},
        {"token": {"raw": {"ece": 0.3, "n": 28, "bins": [3, 4]}}, "dtype": "float32", "temperature": 2.0},
    ]
    found = average(seeds, 0.95)
    assert found["token"]["raw"] == {"ece": pytest.approx(0.2), "n": 28, "bins": [1, 2]}
    assert (found["dtype"], found["temperature"]) == ("float32", 1.5)


def test_pairs_without_a_verdict_are_those_of_the_worst_seed() -> None:
    """Of 100 pairs 90 have a verdict, of another seed's 90 all: nothing would be missing if each were the smallest."""
    seeds = [{"win_rate": 50.0, "n": 100, "n_valid": 90}, {"win_rate": 50.0, "n": 90, "n_valid": 90}]
    found = average(seeds, 0.95)
    assert (found["n"], found["n_valid"]) == (100, 90)


@pytest.mark.parametrize("other", [{"temperature": None, "scaled": None}, {}])
def test_a_figure_that_one_seed_lacks_is_missing(other: dict[str, None]) -> None:
    nothing = {"temperature": None, "scaled": None}
    assert average([{"temperature": 1.0, "scaled": {"nll": 1.0}}, other], 0.95) == nothing


def test_a_standard_error_counts_the_questions_and_the_seeds() -> None:
    seeds = [{"nll": 1.0, "nll_standard_error": 0.3}, {"nll": 2.0, "nll_standard_error": 0.4}]
    # mean of 0.09 and 0.16, and variance 0.5 between seeds over 2
    assert average(seeds, 0.95)["nll_standard_error"] == pytest.approx(math.sqrt(0.125 + 0.25))


def test_an_interval_of_win_rates_widens_by_the_variance_between_seeds() -> None:
    half = stats.norm.ppf(0.975)
    seeds = [
        {"win_rate": mean, "win_rate_low": mean - half, "win_rate_high": mean + half, "length_controlled_win_rate": None}
        | {"length_controlled_low": None, "length_controlled_high": None}
        for mean in (48.0, 50.0, 52.0)
    ]
    found = average(seeds, 0.95)
    margin = stats.t.ppf(0.975, 2) * math.sqrt(1 + 4 / 3)
    assert found["win_rate"] == 50
    assert (found["win_rate_low"], found["win_rate_high"]) == pytest.approx((50 - margin, 50 + margin))
    assert found["length_controlled_low"] is None


def test_the_interval_of_a_seed_is_read_at_the_level_that_it_was_computed_at() -> None:
    """As of `ual judge ... evaluate.confidence=0.8`, in a report at 95%: intervals at 80% are a third narrower."""
    half = stats.norm.ppf(0.9)
    seeds = [{"win_rate": mean, "win_rate_low": mean - half, "win_rate_high": mean + half} for mean in (48.0, 50.0, 52.0)]
    found = average([seed | {"level": 0.8} for seed in seeds], 0.95)
    margin = stats.t.ppf(0.975, 2) * math.sqrt(1 + 4 / 3)
    assert (found["win_rate_low"], found["win_rate_high"]) == pytest.approx((50 - margin, 50 + margin))
    assert found["win_rate_question_error"] == pytest.approx(1.0)


def test_an_interval_stays_within_its_range() -> None:
    seeds = [{"win_rate": value, "win_rate_low": value - 5.0, "win_rate_high": value} for value in (100.0, 98.0)]
    assert average(seeds, 0.95)["win_rate_high"] == 100
