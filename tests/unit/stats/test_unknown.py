"""Missing scores and cut answers: no verdict rests on what they happen to be."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from ual_ray.stats.bootstrap import Estimate, bootstrap, is_bounded, resampled_sums, shift_of_cut, widened

EXACT = "exact_match_strict"
# The level, and what a simulation is off by chance.
MOST_FALSE = 0.06
QUESTIONS = 4000
Sides = tuple[list[np.ndarray], list[np.ndarray]]


def scored(values: np.ndarray) -> np.ndarray:
    return np.column_stack([values, np.where(np.isnan(values), np.nan, 1.0)])


def null(seeds: int, spread: float, questions: int, runs: int) -> Iterator[Sides]:
    """Two models that are right in half of the answers, each seed a little more or less. spread: in standard errors."""
    random = np.random.default_rng([seeds, int(spread)])
    for _ in range(runs):
        shares = 0.5 + random.normal(0, spread * np.sqrt(0.25 / questions), 2 * seeds)
        answers = [(random.random(questions) < share).astype(float) for share in shares]
        yield answers[:seeds], answers[seeds:]


def p_values(sides: Sides, shift: float = 0.0) -> tuple[float, float]:
    """Return the p-value of what is left, and that of all values that missing ones may have."""
    mine, theirs = ([scored(values) for values in side] for side in sides)
    both = np.logical_and.reduce([np.isfinite(part).all(axis=1) for part in (*mine, *theirs)])
    columns = np.hstack([part[both] for pair in zip(mine, theirs, strict=True) for part in pair])
    left = bootstrap(columns, resampled_sums(columns, 200), 0.95)
    return left.p_value, widened(left, mine, theirs, shift, 0.95, 200, 0).p_value


@pytest.mark.parametrize(("seeds", "spread"), [(3, 0), (3, 3), (8, 0), (8, 3)])
@pytest.mark.parametrize("one_of_each", [False, True])
@pytest.mark.slow
def test_wrong_answers_that_are_missing_make_no_false_verdict(seeds: int, spread: float, one_of_each: bool) -> None:
    """A twentieth of the questions, all of them wrong answers of one model, as where these are what fails.

    With 8 seeds, nearly all of the comparisons of what is left have a small p-value.
    """
    random, found = np.random.default_rng(5), []
    for mine, theirs in null(seeds, spread, QUESTIONS, 40):
        gone = mine[:1] if one_of_each else mine
        for values in gone:
            values[random.choice(np.flatnonzero(values == 0), QUESTIONS // 20, replace=False)] = np.nan
        found.append(p_values((mine, theirs)))
    left, whole = np.mean(np.array(found) < 0.05, axis=0)
    assert whole <= MOST_FALSE
    if (seeds, spread, one_of_each) == (8, 0, False):
        assert left > 0.9, "or the simulation shows nothing"


@pytest.mark.parametrize(("seeds", "spread"), [(3, 0), (8, 0), (8, 3)])
@pytest.mark.slow
def test_right_answers_that_are_cut_make_no_false_verdict(seeds: int, spread: float) -> None:
    """One model writes longer: a twentieth of its answers are cut before their right end, and count as wrong."""
    random, found = np.random.default_rng(6), []
    for mine, theirs in null(seeds, spread, QUESTIONS, 40):
        for values in mine:
            values[random.choice(np.flatnonzero(values == 1), QUESTIONS // 20, replace=False)] = 0
        found.append(p_values((mine, theirs), shift_of_cut(EXACT, 0.05, 0.0)))
    left, whole = np.mean(np.array(found) < 0.05, axis=0)
    assert whole <= MOST_FALSE
    if (seeds, spread) == (8, 0):
        assert left > 0.9, "or the simulation shows nothing"


def test_an_effect_larger_than_what_is_missing_is_found() -> None:
    for mine, theirs in null(5, 0, 1500, 3):
        for values in mine:
            values[:300] = 1
            values[-30:] = np.nan
        left, whole = p_values((mine, theirs))
        assert left < whole < 0.01


def test_the_ends_by_hand() -> None:
    """Of four questions the arm lacks one, its reference another: it is 0 to 2 of 4 behind or ahead."""
    mine, theirs = scored(np.array([1, 1, 0, np.nan])), scored(np.array([1, np.nan, 0, 1]))
    found = widened(Estimate(0.0, -0.1, 0.1, 1.0, 2), [mine], [theirs], 0.0, 0.95, 4000, 0)
    assert (found.difference, found.n, found.p_value) == (0.0, 2, 1.0)
    # 2 - 3 right at worst, 3 - 2 at best; a resample draws each of the four questions with a share of 1/4.
    assert found.ci_low == pytest.approx(-0.75) and found.ci_high == pytest.approx(0.75)


def test_questions_that_all_have_do_not_decide_against_those_that_some_lack() -> None:
    """Each of 8 seeds lacks another 4% of the questions, on which the other seeds are worse: 0.1 against 0.8 right.

    The arm has 0.55 against 0.5 right in the 68% that are left, and 0.406 against 0.596 in all.
    """
    random, seeds, part, mine, theirs = np.random.default_rng(0), 8, QUESTIONS // 25, [], []
    hard = np.arange(QUESTIONS) < seeds * part
    for seed in range(seeds):
        mine.append((random.random(QUESTIONS) < np.where(hard, 0.1, 0.55)).astype(float))
        theirs.append((random.random(QUESTIONS) < np.where(hard, 0.8, 0.5)).astype(float))
        mine[-1][seed * part : (seed + 1) * part] = np.nan
    assert np.mean([own - other for own, other in zip(map(np.nanmean, mine), map(np.mean, theirs), strict=True)]) < -0.1
    left, whole = p_values((mine, theirs))
    assert left < 0.001
    assert whole == 1.0


@pytest.mark.parametrize(
    ("metric", "mine", "theirs", "shift"),
    [
        (EXACT, 0.04, 0.01, 0.03),
        (EXACT, 0.01, 0.04, -0.03),
        (EXACT, None, 0.04, 0.0),
        ("error_lower_is_better", 0.04, 0.01, -0.03),
    ],
)
def test_a_cut_answer_can_only_gain(metric: str, mine: float | None, theirs: float | None, shift: float) -> None:
    assert shift_of_cut(metric, mine, theirs) == pytest.approx(shift)


@pytest.mark.parametrize(
    ("metric", "values", "weight", "bounded"),
    [
        (EXACT, [0.0, 1.0, np.nan], 1.0, True),
        (EXACT, [0.0, 100.0], 1.0, False),
        (EXACT, [0.0, -1.0], 1.0, False),
        ("nll", [0.5, 0.5], 1.0, False),
        ("token_accuracy", [0.0, 1.0], 7.0, False),
        ("f1_higher_is_better", [0.0, 1.0], 1.0, False),
    ],
)
def test_a_share_of_equal_weights_is_bounded(metric: str, values: list[float], weight: float, bounded: bool) -> None:
    assert is_bounded(metric, [np.column_stack([values, [weight] * len(values)])]) is bounded
