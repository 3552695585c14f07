"""Significance of a difference between two models: paired bootstrap by question, a t-test over seeds, Holm. Pure.

All functions work on column sums: a resample of the questions is a vector of counts, and its sums are one matrix product.
So no resample is materialized as rows, and comparisons on the same questions share their draws.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from ual_ray.stats.metrics import Direction

Numbers = NDArray[np.float64]
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
