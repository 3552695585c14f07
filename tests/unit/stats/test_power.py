"""The power of a comparison over seeds, against simulation and its limits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ual_ray.stats.bootstrap import detectable_difference, deviation_interval, estimate_over_seeds, question_error

SIMULATIONS = 4000


@pytest.mark.parametrize(
    ("seeds", "deviation", "questions"),
    [(3, 1.0, 0.0), (5, 1.0, 0.0), (8, 1.0, 0.2), (3, 1.0, 1.0), (3, 0.2, 1.0), (5, 0.0, 1.0), (2, 0.3, 1.0)],
)
@pytest.mark.slow
def test_the_difference_is_found_as_often_as_promised(seeds: int, deviation: float, questions: float) -> None:
    random = np.random.default_rng(0)
    truth = detectable_difference(deviation, questions, seeds)
    shared = random.normal(0, questions, SIMULATIONS)
    by_seed = truth + shared[:, None] + random.normal(0, deviation, (SIMULATIONS, seeds))
    drawn = questions * np.array([-1.0, 1.0]) / np.sqrt(2)  # of variance questions^2
    found = np.mean([estimate_over_seeds(one, drawn, 1000, 1000).p_value <= 0.05 for one in by_seed])
    assert found == pytest.approx(0.8, abs=4 * np.sqrt(0.8 * 0.2 / SIMULATIONS))


@pytest.mark.parametrize("seeds", [2, 3, 5, 12])
def test_the_interval_of_a_deviation_holds_the_true_one_as_often_as_promised(seeds: int) -> None:
    found = np.random.default_rng(0).normal(0, 3.0, (SIMULATIONS, seeds)).std(axis=1, ddof=1)
    low, high = deviation_interval(1.0, seeds)
    covered = np.mean((low * found <= 3.0) & (found * high >= 3.0))
    assert covered == pytest.approx(0.95, abs=4 * np.sqrt(0.95 * 0.05 / SIMULATIONS))


def test_with_many_seeds_it_is_the_normal_rule() -> None:
    # (1.95996 + 0.84162) standard errors: 80% power at the two-sided level 5%.
    assert detectable_difference(1.0, 0.0, 100_000) * np.sqrt(100_000) == pytest.approx(2.80158, abs=2e-3)


def test_no_variance_finds_anything_and_nonsense_is_refused() -> None:
    assert detectable_difference(0.0, 0.0, 3) == 0
    for seeds, deviation, power in [(1, 1.0, 0.8), (3, -1.0, 0.8), (3, 1.0, 0.04), (3, 1.0, 1.0)]:
        with pytest.raises(ValueError, match="expected 2 seeds or more"):
            detectable_difference(deviation, 0.0, seeds, power=power)


@pytest.mark.slow
@given(st.floats(0.001, 10), st.floats(0, 10), st.integers(2, 20))
def test_more_seeds_find_smaller_differences(deviation: float, questions: float, seeds: int) -> None:
    assert detectable_difference(deviation, questions, seeds + 1) < detectable_difference(deviation, questions, seeds)
    total = np.sqrt(deviation**2 / seeds + questions**2)
    assert question_error(total, deviation, seeds) == pytest.approx(questions, abs=1e-6 * (1 + total))
    assert question_error(0.0, deviation, seeds) == 0
