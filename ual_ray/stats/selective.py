"""The area under the risk-coverage curve as a sum over questions, paired and resampled like other measures. Pure."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import digamma, polygamma

Numbers = NDArray[np.float64]


def aurc_by_question(
    confidence: ArrayLike, correct: ArrayLike, place: NDArray[np.integer], questions: int
) -> NDArray[np.float64]:
    """Split a model's AURC over its questions: [questions, 2] of value and tokens, the ratio of whose sums is the AURC.

    confidence, correct: one per token, in [0, 1]; place: the token's question. The AURC is the mean over k = 1..n of the error
    rate among the k most confident tokens, as `calibrate.metrics.area_under_risk_coverage` has it, lower is better. It ranks
    all tokens together, so it has no parts; a question's value is the derivative of n AURC by how often its tokens occur (the
    infinitesimal jackknife: Efron 1982). So resampling questions gives AURC's own standard error to first order, while the AURC
    of a part of the questions is only approximate.
    """
    sure, wrong = np.asarray(confidence, dtype=np.float64), 1 - np.asarray(correct, dtype=np.float64)
    # Groups of equal confidence, the surest first: their order within is random, so the curve has its expectation there.
    _, group, size = np.unique(-sure, return_inverse=True, return_counts=True)
    errors = np.bincount(group, weights=wrong, minlength=len(size))
    before, errors_before = np.cumsum(size) - size, np.cumsum(errors) - errors
    # Within a group, the error rate at k is share + (errors_before - share before) / k.
    share = errors / size
    excess = errors_before - share * before
    harmonic = digamma(before + size + 1) - digamma(before + 1)
    total = float(np.sum(errors + excess * harmonic))
    # What one token more of every group does to the groups after it, when it is right, and what it adds when it is wrong.
    later_right = _after(excess * (polygamma(1, before + size + 1) - polygamma(1, before + 1)) - share * harmonic)
    later_wrong = _after(harmonic)
    own_right = share * before / size * harmonic + excess * polygamma(1, before + size + 1)
    own_wrong = 1 - before / size * harmonic
    value = (own_right + later_right)[group] + wrong * (own_wrong + later_wrong)[group]
    value += (total - value.sum()) / len(value)
    sums = np.bincount(place, weights=value, minlength=questions)
    return np.column_stack([sums, np.bincount(place, minlength=questions)])


def _after(values: Numbers) -> Numbers:
    """Sum the values of all later groups."""
    return np.cumsum(values[::-1])[::-1] - values
