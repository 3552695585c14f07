"""The simulation of a pool, against closed forms: without failures exactly, with failures in expectation."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ual_ray.plan.simulate import (
    Pool,
    expected_failures,
    expected_seconds,
    expected_unit_seconds,
    simulate,
)


@settings(max_examples=50, deadline=None)
@given(rows=st.integers(1, 5000), batch=st.integers(1, 64), actors=st.integers(1, 40), seconds=st.floats(0.01, 100))
def test_without_failures_it_is_the_number_of_rounds_times_the_time_of_one(
    rows: int, batch: int, actors: int, seconds: float
) -> None:
    pool = Pool(math.ceil(rows / batch), actors, seconds, start_seconds=30)
    expected = 30 + math.ceil(rows / actors / batch) * seconds
    outcome = simulate(pool, seed=0)
    assert outcome.seconds == pytest.approx(expected)
    assert expected_seconds(pool) == pytest.approx(expected)
    assert (outcome.failures, outcome.lost_seconds) == (0, 0.0)


def test_the_same_seed_is_the_same_outcome_and_another_one_is_not() -> None:
    pool = Pool(500, 10, 60, 30, failures_per_hour=5)
    assert simulate(pool, 1) == simulate(pool, 1) != simulate(pool, 2)


@pytest.mark.slow
def test_the_time_of_one_actor_is_the_expectation() -> None:
    """One actor does its units one after another, so the expectation is exact: n (1/r + s) (e^(r t) - 1), and one start."""
    pool = Pool(units=50, actors=1, unit_seconds=100, start_seconds=40, failures_per_hour=18)
    runs = [simulate(pool, seed) for seed in range(400)]
    times, failures = np.array([run.seconds for run in runs]), np.array([run.failures for run in runs])
    rate = 18 / 3600
    assert expected_unit_seconds(pool) == pytest.approx((1 / rate + 40) * (math.exp(rate * 100) - 1))
    assert expected_seconds(pool) == pytest.approx(40 + 50 * expected_unit_seconds(pool))
    for found, expected in ((times, expected_seconds(pool)), (failures, expected_failures(pool))):
        assert abs(found.mean() - expected) < 4 * found.std() / math.sqrt(len(runs))


def test_many_actors_come_near_the_expectation_and_never_below_the_undisturbed_time() -> None:
    pool = Pool(units=20_000, actors=100, unit_seconds=60, start_seconds=120, failures_per_hour=1)
    runs = [simulate(pool, seed) for seed in range(5)]
    assert np.mean([run.seconds for run in runs]) == pytest.approx(expected_seconds(pool), rel=0.02)
    assert np.mean([run.failures for run in runs]) == pytest.approx(expected_failures(pool), rel=0.05)
    undisturbed = expected_seconds(replace(pool, failures_per_hour=0.0))
    assert all(run.seconds > undisturbed for run in runs)
    # A failure loses half a unit on average, while units are short in comparison with the time between failures.
    lost = np.sum([run.lost_seconds for run in runs]) / np.sum([run.failures for run in runs])
    assert lost == pytest.approx(30, rel=0.05)


def test_a_unit_that_is_lost_in_the_end_is_taken_by_an_idle_actor() -> None:
    slow_start = Pool(units=2, actors=2, unit_seconds=100, start_seconds=10_000, failures_per_hour=18)
    spared = [run for run in (simulate(slow_start, seed) for seed in range(50)) if run.failures == 1]
    # The other actor ends after 100 s and takes the lost unit; the failed one would be back only after 10,000 s.
    assert spared and all(run.seconds <= 10_000 + 200 for run in spared)


def test_more_actors_than_units_are_as_fast_as_one_each() -> None:
    assert simulate(Pool(3, 1000, 10, 5), 0).seconds == 15
