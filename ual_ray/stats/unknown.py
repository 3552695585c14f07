"""What is not known of a score: missing values, and how answers end that were cut. A verdict holds whatever they are. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ual_ray.stats.bootstrap import Estimate, bootstrap, resampled_sums
from ual_ray.stats.metrics import Numbers, metric_of


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
    is the larger one of them, 1 where they point to different sides.
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
    p_value = max(low.p_value, high.p_value) if low.difference * high.difference > 0 else 1.0
    return replace(
        found,
        ci_low=min(found.ci_low, low.ci_low),
        ci_high=max(found.ci_high, high.ci_high),
        p_value=max(found.p_value, p_value),
    )


def _filled(part: Numbers, value: float) -> Numbers:
    known = np.isfinite(part).all(axis=1, keepdims=True)
    return np.where(known, part, [value, 1.0])
