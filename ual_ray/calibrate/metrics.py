"""Calibration metrics of stated probabilities, and the temperature that fits them best.

Pure functions of arrays. `confidence` is in [0, 1], HIGHER = SURER; `correct` is True (or 1) where the prediction is right.
No result depends on the order of the rows: rows of equal confidence share their mean.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import softmax

from ual_ray.stats import score_quality as quality
from ual_ray.stats.metrics import AURC, AUROC, BRIER_SCORE, ECE_MASS, ECE_WIDTH, NLL

BINS = 15
# Range of fitted temperatures: for a model that is always right, or useless, the optimum would be 0 or infinite.
LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.05, 20.0
TOLERANCE = 1e-4
RESAMPLES = 1000

ANSWERS_FILE = "answers.parquet"

Scheme = Literal["width", "mass"]
Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Reliability:
    """Bins in ascending order of confidence: `count` of rows, their mean `confidence` and their `accuracy`.

    `confidence` and `accuracy` are in [0, 1], and NaN in a bin without rows.
    """

    count: NDArray[np.int64]
    confidence: Numbers
    accuracy: Numbers

    def as_dict(self) -> dict[str, list[Any]]:
        """JSON-serializable values: None in a bin without rows."""
        means = {"confidence": self.confidence, "accuracy": self.accuracy}
        plain = {name: [value if value == value else None for value in values.tolist()] for name, values in means.items()}
        return {"count": self.count.tolist(), **plain}


def expected_calibration_error(
    confidence: ArrayLike, correct: ArrayLike, n_bins: int = BINS, scheme: Scheme = "width"
) -> float:
    """Mean gap between confidence and accuracy over the bins of `reliability`, weighted by their shares of the rows.

    In [0, 1], lower is better. Raises ValueError for lengths that differ, no rows, or a confidence outside [0, 1].
    Source: Naeini et al. 2015; Guo et al. 2017 (arXiv 1706.04599).
    """
    bins = reliability(confidence, correct, n_bins, scheme)
    gaps = np.abs(bins.accuracy - bins.confidence)
    filled = bins.count > 0
    return float(np.sum(gaps[filled] * bins.count[filled]) / bins.count.sum())


def reliability(confidence: ArrayLike, correct: ArrayLike, n_bins: int = BINS, scheme: Scheme = "width") -> Reliability:
    """Sort rows into bins by confidence, as a reliability diagram shows them.

    "width": bin m holds (m - 1) / n_bins < confidence <= m / n_bins, and the first one also 0 (Guo et al. 2017). "mass":
    rows in ascending order, split into n_bins parts whose sizes differ by at most one; with fewer rows, bins stay empty.
    A tie that is split over two bins counts in both with the accuracy of the whole tie.
    Raises ValueError as `expected_calibration_error` does, for n_bins below 1, and for another scheme.
    """
    sure, right = _checked(confidence, correct)
    if n_bins < 1:
        raise ValueError(f"n_bins: got {n_bins}; expected 1 or more")
    if scheme == "width":
        places = _equal_width(sure, n_bins)
    elif scheme == "mass":
        sure, right = _ordered(sure, right)
        sizes = [len(part) for part in np.array_split(sure, n_bins)]
        places = np.repeat(np.arange(n_bins), sizes)
    else:
        raise ValueError(f"scheme: got {scheme!r}; expected 'width' or 'mass'")
    count = np.bincount(places, minlength=n_bins)
    with np.errstate(invalid="ignore"):
        means = [np.bincount(places, weights=values, minlength=n_bins) / count for values in (sure, right)]
    return Reliability(count, *means)


def brier_score(confidence: ArrayLike, correct: ArrayLike) -> float:
    """Mean squared difference between confidence and outcome (1 = right, 0 = wrong), in [0, 1], lower is better.

    Raises ValueError as `expected_calibration_error` does. Source: Brier 1950.
    """
    sure, right = _checked(confidence, correct)
    return float(np.mean((sure - right) ** 2))


def area_under_risk_coverage(confidence: ArrayLike, correct: ArrayLike) -> float:
    """Mean over k = 1..n of the error rate among the k most confident rows, in [0, 1], lower is better.

    Rows of equal confidence are ordered randomly; this is the expectation. Raises ValueError as
    `expected_calibration_error` does. Source: Geifman and El-Yaniv 2017; Geifman et al. 2019 (arXiv 1805.08206).
    """
    sure, right = _checked(confidence, correct)
    _, ordered = _ordered(-sure, right)
    return float(np.mean(np.cumsum(1 - ordered) / np.arange(1, len(ordered) + 1)))


def fit_temperature(logits: ArrayLike, labels: ArrayLike) -> float:
    """Find the T for which softmax(logits / T) has the lowest mean NLL of the labels.

    logits: [N, K], finite; labels: [N] integers in [0, K). T is in [0.05, 20], accurate to a relative 1e-4.
    Raises ValueError for other shapes and values. Source: Guo et al. 2017 (arXiv 1706.04599).
    """
    scores, classes = np.asarray(logits, dtype=np.float64), np.asarray(labels)
    if scores.ndim != 2 or classes.shape != scores.shape[:1] or 0 in scores.shape:
        raise ValueError(f"shapes of logits and labels: got {scores.shape} and {classes.shape}; expected [N, K] and [N]")
    if not np.isfinite(scores).all():
        raise ValueError("logits: got infinite or missing ones; expected finite numbers")
    if not np.issubdtype(classes.dtype, np.integer) or classes.min() < 0 or classes.max() >= scores.shape[1]:
        raise ValueError(f"labels: expected integers from 0 to {scores.shape[1] - 1}")
    at_label = np.take_along_axis(scores, classes[:, None], axis=1).mean()

    def slope(inverse: float) -> float:
        return float((softmax(inverse * scores, axis=1) * scores).sum(axis=1).mean() - at_label)

    return fit_temperature_of(slope)


def fit_temperature_of(slope: Callable[[float], float]) -> float:
    """Find the temperature where the slope of a mean NLL is zero.

    slope(b): the derivative by b = 1 / T of the mean NLL of softmax(b z), which is the mean of E_p[z] - z_label; it rises
    with b, as the NLL is convex in b. It may be costly: it is called about seven times. Returns T in [0.05, 20]: an end of
    the range if the NLL decreases up to it, else the first root in floating point.
    """
    known = cache(slope)
    lowest, highest = 1 / HIGHEST_TEMPERATURE, 1 / LOWEST_TEMPERATURE
    factor = 0.5 if known(1.0) > 0 else 2.0
    near = far = 1.0
    # Double or halve until the slope changes its sign; for most language models one step is enough.
    while known(far) * known(1.0) > 0 and lowest < far < highest:
        near, far = far, float(np.clip(far * factor, lowest, highest))
    if known(far) * known(1.0) > 0 or near == far:
        return 1 / far
    return 1 / float(brentq(known, min(near, far), max(near, far), rtol=TOLERANCE, xtol=TOLERANCE * lowest))


def errors_by_question(
    questions: Sequence[str],
    nll: ArrayLike,
    confidence: ArrayLike,
    correct: ArrayLike,
    n_bins: int = BINS,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float | None, float | None]:
    """Bootstrap standard errors of the mean NLL per token and of the equal-width ECE, resampling questions, not tokens.

    One value per token in each argument; `questions` is the id of the token's question, as the tokens of one question are
    not independent. None for fewer than two questions; the same seed gives the same numbers.
    """
    sure, right = _checked(confidence, correct)
    names, places = np.unique(np.asarray(questions), return_inverse=True)
    if len(names) < 2:
        return None, None
    cells = places * n_bins + _equal_width(sure, n_bins)
    gaps = np.bincount(cells, weights=sure - right, minlength=len(names) * n_bins).reshape(len(names), n_bins)
    losses = np.bincount(places, weights=np.asarray(nll, dtype=np.float64))
    tokens = np.bincount(places)
    random = np.random.default_rng(seed)
    draws = []
    for _ in range(resamples):
        times = random.multinomial(len(names), np.full(len(names), 1 / len(names)))
        total = times @ tokens
        draws.append((times @ losses / total, np.abs(times @ gaps).sum() / total))
    nll_error, ece_error = np.std(draws, axis=0, ddof=1)
    return float(nll_error), float(ece_error)


def summary(confidence: ArrayLike, correct: ArrayLike, n_bins: int = BINS) -> dict[str, Any]:
    """All metrics of one set of confidences, their n, and the bins of the reliability diagram; JSON-serializable.

    AUROC and PRR are null when all rows are right or all are wrong.
    """
    sure, right = _checked(confidence, correct)
    both = 0 < right.sum() < len(right)
    return {
        "n": len(sure),
        "confidence": float(sure.mean()),
        "accuracy": float(right.mean()),
        ECE_WIDTH: expected_calibration_error(sure, right, n_bins, "width"),
        ECE_MASS: expected_calibration_error(sure, right, n_bins, "mass"),
        BRIER_SCORE: brier_score(sure, right),
        AUROC: quality.auroc(-sure, right == 1) if both else None,
        AURC: area_under_risk_coverage(sure, right),
        "prr": quality.prediction_rejection_ratio(-sure, right == 1) if both else None,
        "reliability": reliability(sure, right, n_bins).as_dict(),
    }


def token_summary(
    questions: Sequence[str],
    nll: ArrayLike,
    confidence: ArrayLike,
    correct: ArrayLike,
    brier: ArrayLike,
    n_bins: int = BINS,
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """`summary` of tokens, with their mean NLL and standard errors by question.

    The Brier score is the mean of `brier` per token, over the whole vocabulary, in [0, 2].
    """
    nll_error, ece_error = errors_by_question(questions, nll, confidence, correct, n_bins, resamples)
    return {
        **summary(confidence, correct, n_bins),
        "questions": len(set(questions)),
        NLL: float(np.mean(np.asarray(nll, dtype=np.float64))),
        f"{NLL}_standard_error": nll_error,
        f"{ECE_WIDTH}_standard_error": ece_error,
        BRIER_SCORE: float(np.mean(np.asarray(brier, dtype=np.float64))),
    }


def _checked(confidence: ArrayLike, correct: ArrayLike) -> tuple[Numbers, Numbers]:
    sure, right = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    if sure.shape != right.shape or sure.ndim != 1:
        raise ValueError(f"as many confidences as verdicts are needed, found {sure.shape} and {right.shape}")
    if not len(sure):
        raise ValueError("there are no rows to measure calibration on")
    # Written so that NaN is rejected too.
    if not ((sure >= 0) & (sure <= 1)).all():
        raise ValueError(f"confidence: got {sure[~((sure >= 0) & (sure <= 1))][:3].tolist()}; expected 0 to 1")
    if not np.isin(right, (0, 1)).all():
        raise ValueError(f"correct: got {right[~np.isin(right, (0, 1))][:3].tolist()}; expected True or False, 1 or 0")
    return sure, right


def _equal_width(sure: Numbers, n_bins: int) -> NDArray[np.int64]:
    return np.digitize(sure, np.linspace(0, 1, n_bins + 1)[1:-1], right=True).astype(np.int64)


def _ordered(values: Numbers, right: Numbers) -> tuple[Numbers, Numbers]:
    """Sort by value, ascending; each row of a tie gets the mean of `right` over the tie."""
    distinct, places, sizes = np.unique(values, return_inverse=True, return_counts=True)
    shares = np.bincount(places, weights=right) / sizes
    return np.repeat(distinct, sizes), np.repeat(shares, sizes)
