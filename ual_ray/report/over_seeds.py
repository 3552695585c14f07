"""The figures of one arm over training seeds: calibration, clusters and win rates. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

import numpy as np
from scipy import stats

ERROR = "_standard_error"
LOW, HIGH = "_low", "_high"
DEVIATION, QUESTIONS = "_seed_deviation", "_question_error"


def average(by_seed: Sequence[Mapping[str, Any]], level: float) -> dict[str, Any]:
    """Average what the stages wrote, seed by seed, at every depth; everything else, such as bins, is that of the first seed.

    What one seed lacks is None: a mean over the others would be one of other trainings.

    Numbers become their means, counts (integers) the smallest, but the pairs of which `n_valid` have a verdict the most of any
    seed, so that what one seed lacks is missing. X_standard_error becomes that of the mean:
    error^2 = mean over seeds of error^2 + variance between seeds / seeds, as in `stats.metrics.over_seeds`; X_low and X_high,
    percentages of an interval at `level`, become the t interval of the mean from the same error, within [0, 100], with its two
    parts: X_seed_deviation, the standard deviation between seeds, and X_question_error, of one seed over the questions.
    """
    if len(by_seed) == 1:
        return dict(by_seed[0])
    found = {key: _mean([content.get(key) for content in by_seed], level) for key in by_seed[0]}
    for key in by_seed[0]:
        if f"{key}{ERROR}" in found and _numbers(values := [content.get(key) for content in by_seed]):
            errors = [content.get(f"{key}{ERROR}") for content in by_seed]
            found[f"{key}{ERROR}"] = _error(values, errors) if _numbers(errors) else None
    if "n_valid" in found:
        found["n"] = max(content["n"] for content in by_seed)
    for low in (key for key in by_seed[0] if key.endswith(LOW)):
        found |= _interval(by_seed, low.removesuffix(LOW), level)
    return found


def _mean(values: Sequence[Any], level: float) -> Any:
    if all(isinstance(value, Mapping) for value in values):
        return average(values, level)
    if any(value is None for value in values):
        return None
    if not _numbers(values):
        return values[0]
    return min(values) if all(isinstance(value, int) for value in values) else float(np.mean(values))


def _numbers(values: Sequence[Any]) -> TypeGuard[Sequence[float]]:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _parts(values: Sequence[float], errors: Sequence[float]) -> tuple[float, float]:
    """Return the standard deviation between seeds, and the standard error over questions of one seed."""
    return float(np.std(values, ddof=1)), math.sqrt(float(np.mean(np.square(errors))))


def _error(values: Sequence[float], errors: Sequence[float]) -> float:
    deviation, questions = _parts(values, errors)
    return math.hypot(questions, deviation / math.sqrt(len(values)))


def _interval(by_seed: Sequence[Mapping[str, Any]], name: str, level: float) -> dict[str, float | None]:
    """Widen the intervals of single seeds by the variance between these; None where a seed has none."""
    rate = name if name in by_seed[0] else f"{name}_win_rate"
    values, lows, highs = ([content.get(key) for content in by_seed] for key in (rate, name + LOW, name + HIGH))
    if not (_numbers(values) and _numbers(lows) and _numbers(highs)):
        return {name + LOW: None, name + HIGH: None, name + DEVIATION: None, name + QUESTIONS: None}
    width = 2 * float(stats.norm.ppf((1 + level) / 2))
    errors = [(high - low) / width for low, high in zip(lows, highs, strict=True)]
    error, (deviation, questions) = _error(values, errors), _parts(values, errors)
    margin, mean = float(stats.t.ppf((1 + level) / 2, len(values) - 1)) * error, float(np.mean(values))
    ends: dict[str, float | None] = {name + LOW: max(0.0, mean - margin), name + HIGH: min(100.0, mean + margin)}
    return ends | {name + DEVIATION: deviation, name + QUESTIONS: questions}
