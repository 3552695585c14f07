"""What an experiment can find: the smallest difference that a number of training seeds would show. Pure."""

from __future__ import annotations

import math

import numpy as np
from scipy import optimize, stats

POWER = 0.8
QUANTILES = 2000


def detectable_difference(
    seed_deviation: float, question_error: float, seeds: int, level: float = 0.95, power: float = POWER
) -> float:
    """Return the smallest true difference that comes out conclusive with the given probability, before Holm's correction.

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
    shares = stats.chi2.ppf((np.arange(QUANTILES) + 0.5) / QUANTILES, freedom) / freedom
    estimated = np.sqrt(seed_deviation**2 / seeds * shares + question_error**2)
    threshold = float(stats.t.ppf((1 + level) / 2, freedom)) * estimated / error

    def lacking(shift: float) -> float:
        return float(np.mean(stats.norm.cdf(shift - threshold) + stats.norm.cdf(-shift - threshold))) - power

    return error * float(optimize.brentq(lacking, 0.0, float(threshold[-1]) + 10))


def deviation_interval(deviation: float, seeds: int, level: float = 0.95) -> tuple[float, float]:
    """Return the interval of a standard deviation that was estimated from this many seeds, for normal values; 2 or more."""
    freedom = seeds - 1
    low, high = stats.chi2.ppf([(1 - level) / 2, (1 + level) / 2], freedom)
    return deviation * math.sqrt(freedom / high), deviation * math.sqrt(freedom / low)


def question_error(error: float, seed_deviation: float, seeds: int) -> float:
    """Return what is left of the standard error of a mean over seeds when the seeds' own variance is taken away; 0 or more.

    It holds the seeds' noise per question too, which more seeds reduce: a forecast for more seeds errs on the large side.
    """
    return math.sqrt(max(0.0, error**2 - seed_deviation**2 / seeds))
