"""Significance of a difference between two models: paired bootstrap by question, a t-test over seeds, Holm. Pure.

All functions work on column sums: a resample of the questions is a vector of counts, and its sums are one matrix product.
So no resample is materialized as rows, and comparisons on the same questions share their draws. Also what an experiment can
find: the smallest difference that a number of training seeds would show; and what is not known of a score, missing values and
how answers end that were cut: a verdict holds whatever they are.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special

from ual_ray.stats.metrics import Direction, Numbers, metric_of

Verdict = Literal["better", "worse", "inconclusive"]
BETTER: Verdict = "better"
WORSE: Verdict = "worse"
INCONCLUSIVE: Verdict = "inconclusive"

LEVEL = 0.95
RESAMPLES = 2000
# Resamples are drawn in blocks of about this many counts: 8 MB.
BLOCK = 1_000_000
# A difference between fewer trainings is one between these models, not between the methods that trained them.
MIN_SEEDS = 3
# The p-value's resolution must be fine enough to stay significant after the step-down over its whole family.
RESOLUTION = 4
POWER = 0.8
QUANTILES = 2000


@dataclass(frozen=True)
class Estimate:
    """A difference with its percentile interval at a level, its two-sided p-value in (0, 1], and its number of pairs `n`.

    Over several seeds also `seed_deviation`, the standard deviation of the difference between them, and `error`, the standard
    error that the interval comes from.
    """

    difference: float
    ci_low: float
    ci_high: float
    p_value: float
    n: int
    seed_deviation: float | None = None
    error: float | None = None


def resampled_sums(columns: ArrayLike, resamples: int = RESAMPLES, seed: int = 0) -> Numbers:
    """Resample all rows with replacement, and sum each column: [rows, k] gives [resamples, k].

    Exact multinomial resampling; memory does not grow with `resamples` x rows. The draws depend only on the number of rows
    and the seed, not on the columns.
    """
    values = np.ascontiguousarray(columns, dtype=np.float64)
    assert values.ndim == 2 and len(values), "columns is [rows, k], with rows"
    n = len(values)
    random = np.random.Generator(np.random.SFC64(seed))
    block = max(1, BLOCK // n)
    sums = np.empty((resamples, values.shape[1]))
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        sums[start : start + size] = _counts(random, n, size) @ values
    return sums


def _counts(random: np.random.Generator, n: int, size: int) -> Numbers:
    """Draw how often each of n rows is in a resample: [size, n], every row sums to n."""
    counts = np.empty((size, n))
    for line in counts:
        line[:] = np.bincount(random.integers(n, size=n, dtype=np.uint32), minlength=n)
    return counts


def estimate(value: float, resampled: Numbers, informative: int, n: int, level: float = LEVEL) -> Estimate:
    """Turn resampled differences into an interval and a p-value.

    p = 2 min(share of resamples <= 0, share >= 0), counting the data as one more resample. It is never below
    2^(1 - informative), the minimum of a two-sided sign-flip test with that many differing pairs, so that a bootstrap
    of three questions cannot be significant.
    """
    tail = (1 - level) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    least = min(int((resampled <= 0).sum()), int((resampled >= 0).sum()))
    p_value = min(1.0, max(2 * (least + 1) / (len(resampled) + 1), 2.0 ** (1 - informative)))
    return Estimate(float(value), float(low), float(high), float(p_value), n)


def bootstrap(columns: Numbers, resampled: Numbers, level: float) -> Estimate:
    """Estimate the mean over training seeds of value / weight - reference value / reference weight.

    columns: [n, seeds x 4] of value, weight, reference value, reference weight; resampled: their `resampled_sums`, in which
    a question is drawn once for all seeds, so that it counts once however many seeds answered it. One seed gives the interval
    of these two trained models; several seeds give that of the method, by `estimate_over_seeds`.
    """
    assert np.isfinite(columns).all(), "leave missing pairs out first"
    by_seed = differences_of_ratios(columns.sum(axis=0))
    drawn = differences_of_ratios(resampled).mean(axis=-1)
    informative, n = informative_pairs(columns), len(columns)
    if len(by_seed) == 1:
        return estimate(float(by_seed[0]), drawn, informative, n, level)
    return estimate_over_seeds(by_seed, drawn, informative, n, level)


def estimate_over_seeds(by_seed: Numbers, drawn: Numbers, informative: int, n: int, level: float = LEVEL) -> Estimate:
    """Estimate a method's difference from one difference per training seed, the unit of inference.

    drawn: the mean over seeds under resampled questions. error^2 = variance between seeds / seeds + variance over questions;
    both count the seeds' noise per question, so the error is never too small. The interval and the two-sided p-value are those
    of t, whose degrees of freedom are those of the variance that rests on fewer values, seeds or questions that differ: at most
    the nominal share of false verdicts whichever of the two variances is larger (tests/unit/stats/test_bootstrap.py simulates
    it). The least p-value is that of `estimate`.
    """
    seeds, mean = len(by_seed), float(by_seed.mean())
    # A resample of n questions has (n - 1) / n of their variance.
    error = float(np.sqrt(by_seed.var(ddof=1) / seeds + drawn.var(ddof=1) * n / max(n - 1, 1)))
    freedom = max(1, min(seeds, informative) - 1)
    margin = float(special.stdtrit(freedom, (1 + level) / 2)) * error
    p_value = 2 * float(special.stdtr(freedom, -abs(mean) / error)) if error > 0 else float(mean == 0)
    p_value = min(1.0, max(p_value, 2.0 ** (1 - informative)))
    return Estimate(mean, mean - margin, mean + margin, p_value, n, float(by_seed.std(ddof=1)), error)


def differences_of_ratios(sums: Numbers) -> Numbers:
    """Turn sums [..., seeds x 4] into the difference of ratios per seed: [..., seeds]."""
    value, weight, reference, reference_weight = np.moveaxis(sums.reshape(*sums.shape[:-1], -1, 4), -1, 0)
    return value / weight - reference / reference_weight


def informative_pairs(columns: Numbers) -> int:
    """Count the questions on which two models differ.

    columns: [n, seeds x 4] of value, weight, reference, reference weight.
    """
    sides = columns.reshape(len(columns), -1, 2, 2)
    return int((sides[:, :, 0] != sides[:, :, 1]).any(axis=(1, 2)).sum())


def holm(p_values: ArrayLike) -> Numbers:
    """Adjust the p-values of a family by Holm's step-down; compare each directly with the level.

    The i-th smallest of m (from 1) becomes max over j <= i of min(1, (m - j + 1) p_j) (Holm 1979).
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(np.minimum(1.0, p[order] * np.arange(len(p), 0, -1)))
    adjusted = np.empty_like(p)
    adjusted[order] = stepped
    return adjusted


def resamples_needed(family: int, level: float = LEVEL, at_least: int = RESAMPLES) -> int:
    """Return the number of resamples at which a family's smallest p-value can be below 1 - level after the step-down."""
    return max(at_least, int(np.ceil(RESOLUTION * family / (1 - level))))


def verdict(difference: float, p_adjusted: float, direction: Direction, seeds: int, level: float = LEVEL) -> Verdict:
    """Return the verdict on a difference (model - reference) over training seeds: better, worse, or inconclusive.

    With fewer than MIN_SEEDS seeds it is always inconclusive, because one training differs from the next by chance.
    """
    if p_adjusted > 1 - level or difference == 0 or seeds < MIN_SEEDS:
        return INCONCLUSIVE
    return BETTER if (difference < 0) == (direction == "lower") else WORSE


def detectable_difference(
    seed_deviation: float, question_error: float, seeds: int, level: float = 0.95, power: float = POWER
) -> float:
    """Return the smallest true difference that comes out conclusive at this level with the given probability.

    seed_deviation: standard deviation of the difference between training seeds; question_error: its standard error over the
    questions, which seeds do not reduce. error^2 = seed_deviation^2 / seeds + question_error^2, and the test is the two-sided t
    test with seeds - 1 degrees of freedom of `bootstrap.estimate_over_seeds`. Its estimate of the first part follows a
    chi-squared distribution; the second part, estimated from many questions, counts as known. Raises ValueError for fewer than
    2 seeds, negative deviations, and a power that is not above 1 - level.
    """
    if seeds < 2 or min(seed_deviation, question_error) < 0 or not 1 - level < power < 1:
        raise ValueError(
            f"got seeds {seeds}, deviations {seed_deviation} and {question_error}, power {power}; expected 2 seeds or more, "
            f"deviations of 0 or more, and a power between {1 - level:.2f} and 1"
        )
    error = math.sqrt(seed_deviation**2 / seeds + question_error**2)
    if error == 0:
        return 0.0
    freedom = seeds - 1
    # The estimated error at equally likely values: scipy's noncentral t is NaN for large shifts, and knows no second part.
    shares = _chi_squared((np.arange(QUANTILES) + 0.5) / QUANTILES, freedom) / freedom
    estimated = np.sqrt(seed_deviation**2 / seeds * shares + question_error**2)
    threshold = float(special.stdtrit(freedom, (1 + level) / 2)) * estimated / error

    def lacking(shift: float) -> float:
        return float(np.mean(special.ndtr(shift - threshold) + special.ndtr(-shift - threshold))) - power

    return error * float(optimize.brentq(lacking, 0.0, float(threshold[-1]) + 10))


def deviation_interval(deviation: float, seeds: int, level: float = 0.95) -> tuple[float, float]:
    """Return the interval of a standard deviation that was estimated from this many seeds, for normal values; 2 or more."""
    freedom = seeds - 1
    low, high = _chi_squared([(1 - level) / 2, (1 + level) / 2], freedom)
    return deviation * math.sqrt(freedom / high), deviation * math.sqrt(freedom / low)


def _chi_squared(shares: ArrayLike, freedom: int) -> Numbers:
    """Return the quantiles of the chi-squared distribution."""
    return 2 * special.gammaincinv(freedom / 2, shares)


def question_error(error: float, seed_deviation: float, seeds: int) -> float:
    """Return what is left of the standard error of a mean over seeds when the seeds' own variance is taken away; 0 or more.

    It holds the seeds' noise per question too, which more seeds reduce: a forecast for more seeds errs on the large side.
    """
    return math.sqrt(max(0.0, error**2 - seed_deviation**2 / seeds))


def is_bounded(metric: str, parts: Sequence[Numbers]) -> bool:
    """Tell whether a measure is a score of [0, 1] with equal weights, so that a missing value is between known ends.

    parts: [questions, 2] of value and weight, NaN where missing.
    """
    known = np.concatenate(parts)
    known = known[np.isfinite(known).all(axis=1)]
    return metric_of(metric).unit == "share" and bool(((known[:, 0] >= 0) & (known[:, 0] <= 1) & (known[:, 1] == 1)).all())


def shift_of_cut(metric: str, mine: float | None, theirs: float | None) -> float:
    """Return how far a difference in a score of answers may move if the cuts that one model has more had not been.

    mine, theirs: shares of answers that were cut, None = not known. A cut answer counts as wrong, so it can only gain.
    """
    if mine is None or theirs is None:
        return 0.0
    return (mine - theirs) * {"higher": 1.0, "lower": -1.0}.get(metric_of(metric).direction or "", 0.0)


def widened(
    found: Estimate, mine: Sequence[Numbers], theirs: Sequence[Numbers], shift: float, level: float, resamples: int, seed: int
) -> Estimate:
    """Widen an estimate of a bounded measure to what holds for all values of missing scores, and up to a shift of `mine`.

    mine, theirs: [questions, 2] of value and weight per training seed. The interval covers those at both ends, and the p-value
    is the larger one of them, 1 where they point to different sides, or to another one than the questions that all have.
    """
    there = np.logical_or.reduce([np.isfinite(part).all(axis=1) for part in (*mine, *theirs)])
    ends = []
    for worst, moved in ((0.0, min(shift, 0.0)), (1.0, max(shift, 0.0))):
        parts = [
            part
            for own, other in zip(mine, theirs, strict=True)
            for part in (_filled(own[there], worst) + [moved, 0.0], _filled(other[there], 1 - worst))
        ]
        columns = np.hstack(parts)
        ends.append(bootstrap(columns, resampled_sums(columns, resamples, seed), level))
    low, high = ends
    differences = [one.difference for one in (found, low, high)]
    agree = min(differences) > 0 or max(differences) < 0
    return replace(
        found,
        ci_low=min(found.ci_low, low.ci_low),
        ci_high=max(found.ci_high, high.ci_high),
        p_value=max(found.p_value, low.p_value, high.p_value) if agree else 1.0,
    )


def _filled(part: Numbers, value: float) -> Numbers:
    known = np.isfinite(part).all(axis=1, keepdims=True)
    return np.where(known, part, [value, 1.0])
