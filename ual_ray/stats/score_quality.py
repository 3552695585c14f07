"""Quality of a column of scores: its distribution, its retest noise, and how well it detects wrong responses.

Also what to know of a score before training on it, as sentences, with the thresholds.
Pure functions of arrays. Scores are uncertainties in [0, 1], HIGHER = MORE UNCERTAIN; NaN = missing.
Undefined results are None, never NaN.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import ndtri

from ual_ray.formatting import decimals, number, plural, share

BINS = 20
LOW_EDGE = 0.01
HIGH_EDGE = 0.99
# With fewer pairs a correlation is meaningless: two points always lie on a line.
MIN_PAIRS = 3
BOOTSTRAP_DRAWS = 200
Z = float(ndtri(0.975))
SMALLEST = 1e-9
CHANCE = 0.5

Numbers = NDArray[np.float64]
# With fewer rows a distribution is too imprecise to judge.
MIN_ROWS = 30
# Shares of rows, of replies, and (variation) of the mean.
MAX_MODE_SHARE = 0.3
MAX_SHARED = 0.5
MAX_AT_EDGES = 0.5
MIN_VARIATION = 0.1
MIN_MASS = 0.5
MAX_CUT = 0.05
MAX_TRUNCATED = 0.05
# Of a smoothed arm's figures: the rank correlation of its alphas with the uncertainty; and what is too much for a control.
FOLLOWS = "rank_correlation"
MOST_FOLLOWED = 0.9


@dataclass(frozen=True)
class Distribution:
    """The distribution of `n` scores over [0, 1].

    `histogram` counts rows in 20 equal bins; `evenness` is its entropy / log 20 (0 = one bin, 1 = uniform).
    `shared` is the share of rows whose value also occurs in another row; `mode` the most frequent value and
    `mode_share` its share; `low` and `high` the shares below 0.01 and above 0.99. `deviation` is None for one row.
    """

    n: int
    mean: float
    deviation: float | None
    minimum: float
    lower_quartile: float
    median: float
    upper_quartile: float
    maximum: float
    histogram: list[int]
    evenness: float
    distinct: int
    shared: float
    mode: float
    mode_share: float
    low: float
    high: float


@dataclass(frozen=True)
class Noise:
    """The noise between two measurements of the same `n` rows.

    `standard_error` is that of one measurement: standard deviation of the difference / sqrt 2. `ratio` is it divided by the
    standard deviation of the score (0 = no noise); `reliability` is 1 - ratio squared, clipped to [0, 1] (1 = no noise).
    """

    n: int
    mean_difference: float
    standard_error: float | None
    spearman: float | None
    ratio: float | None
    reliability: float | None


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation in [-1, 1] over the `n` rows with both values; None if undefined."""

    spearman: float | None
    n: int


@dataclass(frozen=True)
class Quality:
    """How well a score detects the `wrong` rows among `n` labelled and scored ones; `left_out` have a label but no score.

    AUROC: 0.5 = chance, 1 = best, with its bootstrap standard error and the ends of its 95% interval (`auroc_interval`); PRR:
    0 = random, 1 = best; None if all rows are good or all are wrong.
    """

    n: int
    wrong: int
    left_out: int
    auroc: float | None
    auroc_error: float | None
    prr: float | None
    auroc_low: float | None = None
    auroc_high: float | None = None


def distribution(scores: Numbers) -> Distribution | None:
    """Describe the non-missing scores; None if there are none."""
    values = scores[np.isfinite(scores)]
    if not len(values):
        return None
    distinct, counts = np.unique(values, return_counts=True)
    lower, median, upper = np.quantile(values, [0.25, 0.5, 0.75])
    bins = histogram(values)
    return Distribution(
        n=len(values),
        mean=float(values.mean()),
        deviation=float(values.std(ddof=1)) if len(values) > 1 else None,
        minimum=float(distinct[0]),
        lower_quartile=float(lower),
        median=float(median),
        upper_quartile=float(upper),
        maximum=float(distinct[-1]),
        histogram=bins,
        evenness=evenness(bins),
        distinct=len(distinct),
        shared=float(counts[counts > 1].sum() / len(values)),
        mode=float(distinct[counts.argmax()]),
        mode_share=float(counts.max() / len(values)),
        low=float((values < LOW_EDGE).mean()),
        high=float((values > HIGH_EDGE).mean()),
    )


def median(values: Numbers) -> float | None:
    """Return the median of the non-missing values; None if there are none."""
    return float(np.nanmedian(values)) if not np.isnan(values).all() else None


def histogram(scores: Numbers) -> list[int]:
    """Count the scores in 20 equal bins of [0, 1]; a score outside the range counts in the nearest bin."""
    values = np.clip(scores[np.isfinite(scores)], 0.0, 1.0)
    return [int(count) for count in np.histogram(values, bins=BINS, range=(0.0, 1.0))[0]]


def evenness(counts: list[int]) -> float:
    """Entropy of a histogram / the log of its number of bins, in [0, 1] (0 = all in one bin, 1 = uniform)."""
    shares = np.array([count for count in counts if count]) / sum(counts)
    # With a single bin the sum is -0.0.
    return float(abs(np.sum(shares * np.log(shares)))) / math.log(len(counts))


def mean_ranks(values: Numbers) -> Numbers:
    """Rank finite values from 1; ties share their mean rank."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[places]


def spearman(first: Numbers, second: Numbers) -> Correlation:
    """Spearman correlation (ties share their mean rank) over the rows with both values.

    None for fewer than three such rows, or when either column is constant.
    """
    both = np.isfinite(first) & np.isfinite(second)
    n = int(both.sum())
    if n < MIN_PAIRS:
        return Correlation(None, n)
    one, two = (mean_ranks(values[both]) for values in (first, second))
    if np.ptp(one) == 0 or np.ptp(two) == 0:
        return Correlation(None, n)
    return Correlation(float(np.clip(np.corrcoef(one, two)[0, 1], -1.0, 1.0)), n)


def following_warning(arm: str, correlation: float | None) -> Iterator[str]:
    """Warn of a control whose alphas have a high rank correlation with the uncertainty that it is to be without."""
    if correlation is not None and correlation >= MOST_FOLLOWED:
        yield (
            f"the control {arm} still follows the uncertainty (rank correlation {number(correlation)}): it hardly differs from "
            "the arm that it is a control of. The rows that it exchanges are too few or too alike; map: shuffled takes all"
        )


def retest_noise(scores: Numbers, again: Numbers) -> Noise | None:
    """Compare scores with their second measurement; None when no row has both.

    Classical test theory: the difference of two measurements has twice the error variance of one. The noise is compared
    with the spread of all scores, not only of those measured again.
    """
    difference = (again - scores)[np.isfinite(scores) & np.isfinite(again)]
    n = len(difference)
    if n == 0:
        return None
    error = float(difference.std(ddof=1)) / math.sqrt(2) if n > 1 else None
    values = scores[np.isfinite(scores)]
    spread = float(values.std(ddof=1)) if len(values) > 1 and np.ptp(values) > 0 else None
    ratio = error / spread if error is not None and spread is not None else None
    return Noise(
        n=n,
        mean_difference=float(np.abs(difference).mean()),
        standard_error=error,
        spearman=spearman(scores, again).spearman,
        ratio=ratio,
        reliability=None if ratio is None else max(0.0, 1.0 - ratio**2),
    )


def auroc(uncertainty: ArrayLike, correct: ArrayLike) -> float:
    """Probability that a wrong response has a higher uncertainty than a good one, in [0, 1] (1 = always, 0.5 = chance).

    Equal scores count one half (Mann-Whitney U / pairs). Raises ValueError for missing scores, or when all responses
    are good or all are wrong.
    """
    scores, good = _checked(uncertainty, correct)
    return _auroc(*_by_value(scores, good))


def auroc_standard_error(
    uncertainty: ArrayLike, correct: ArrayLike, *, draws: int = BOOTSTRAP_DRAWS, seed: int = 0
) -> float | None:
    """Bootstrap standard error of `auroc` over rows; the same seed gives the same number.

    Draws in which all responses are good, or all wrong, are left out; None when fewer than two draws remain.
    """
    scores, good = _checked(uncertainty, correct)
    # Rows of equal score and label are interchangeable, so only their counts are drawn: fast for few distinct scores.
    wrong_counts, good_counts = _by_value(scores, good)
    counts = np.concatenate([wrong_counts, good_counts])
    random = np.random.default_rng(seed)
    values = []
    for _ in range(draws):
        wrong, right = np.split(random.multinomial(len(scores), counts / counts.sum()), 2)
        if wrong.any() and right.any():
            values.append(_auroc(wrong, right))
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def auroc_text(found: Quality) -> str:
    """Write an AUROC with its interval, and what limits it."""
    lost = f"; {plural(found.left_out, 'row')} without a score" if found.left_out else ""
    if found.auroc is None or found.auroc_low is None or found.auroc_high is None:
        return f"no AUROC: {found.wrong} wrong of {plural(found.n, 'row')} with a score{lost}"
    chance = "; not told from chance" if found.auroc_low <= CHANCE else ""
    digits = decimals(found.auroc_low, found.auroc_high, CHANCE, 2)
    value, low, high = (number(part, digits) for part in (found.auroc, found.auroc_low, found.auroc_high))
    return f"AUROC {value} ({low} to {high}){chance}{lost}"


def auroc_interval(auroc: float, wrong: int, good: int) -> tuple[float, float]:
    """Return the 95% interval of an AUROC of so many wrong and good responses, at least one of each.

    All values t with |t - AUROC| <= z sqrt(V(t)), V being Hanley and McNeil's variance with both sample sizes replaced by
    their mean. Unlike a bootstrap or DeLong's method it has a width where the AUROC is 1, and is never outside [0, 1].
    Source: Newcombe 2006, Statistics in Medicine 25:559-573, method 5.
    """
    more = (wrong + good) / 2 - 1

    def excess(t: float) -> float:
        variance = t * (1 - t) * (1 + more * ((1 - t) / (2 - t) + t / (1 + t))) / (wrong * good)
        return (t - auroc) ** 2 - Z**2 * variance

    # The limits solve a quadratic-like equation with a root on either side; 0 and 1 themselves are roots where AUROC is.
    low = float(brentq(excess, 0.0, min(auroc, 1 - SMALLEST))) if auroc > SMALLEST else 0.0
    high = float(brentq(excess, max(auroc, SMALLEST), 1.0)) if auroc < 1 - SMALLEST else 1.0
    return low, high


def prediction_rejection_ratio(uncertainty: ArrayLike, correct: ArrayLike) -> float:
    """Prediction rejection ratio: gain of rejecting the most uncertain rows first (1 = oracle, 0 = random, < 0 = worse).

    PRR = (A(uncertainty) - A(random)) / (A(oracle) - A(random)), where A is the area of the quality curve:
    A = mean over k = 1..n of the share of good responses among the k most certain rows. The oracle rejects all wrong
    responses first; A(random) is its expectation, the share of good responses. Rows of equal uncertainty are rejected
    in random order, again in expectation. Source: Malinin and Gales, arXiv 2002.07650; Fadeeva et al., LM-Polygraph,
    arXiv 2311.07383 (PredictionRejectionArea, normalised by oracle and random). Raises ValueError as `auroc` does.
    """
    scores, good = _checked(uncertainty, correct)
    random = float(good.mean())
    oracle = _area((~good).astype(np.float64), good)
    return (_area(scores, good) - random) / (oracle - random)


def against_labels(scores: Numbers, correct: Numbers) -> Quality:
    """Compare scores with labels: 1 = good, 0 = wrong, NaN = no label. Rows without a score are left out and counted."""
    labelled = np.isfinite(correct)
    used = labelled & np.isfinite(scores)
    values, good = scores[used], correct[used] == 1
    n, wrong = len(values), int((~good).sum())
    defined = 0 < wrong < n
    area = auroc(values, good) if defined else None
    low, high = (None, None) if area is None else auroc_interval(area, wrong, n - wrong)
    return Quality(
        n=n,
        wrong=wrong,
        left_out=int(labelled.sum()) - n,
        auroc=area,
        auroc_low=low,
        auroc_high=high,
        auroc_error=auroc_standard_error(values, good) if defined else None,
        prr=prediction_rejection_ratio(values, good) if defined else None,
    )


def _checked(uncertainty: ArrayLike, correct: ArrayLike) -> tuple[Numbers, NDArray[np.bool_]]:
    scores = np.asarray(uncertainty, dtype=np.float64)
    good = np.asarray(correct, dtype=np.bool_)
    if scores.shape != good.shape or scores.ndim != 1:
        raise ValueError(f"as many scores as verdicts are needed, found {scores.shape} and {good.shape}")
    if not np.isfinite(scores).all():
        raise ValueError("rows without a score cannot be ranked; leave them out")
    if good.all() or not good.any():
        raise ValueError("undefined without both good and wrong responses")
    return scores, good


def _by_value(scores: Numbers, good: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Count wrong and good responses per distinct score, in ascending order."""
    distinct, places = np.unique(scores, return_inverse=True)
    return np.bincount(places[~good], minlength=len(distinct)), np.bincount(places[good], minlength=len(distinct))


def _auroc(wrong: NDArray[np.int64], good: NDArray[np.int64]) -> float:
    below = np.cumsum(good) - good / 2
    return float(np.sum(wrong * below) / (wrong.sum() * good.sum()))


def _area(scores: Numbers, good: NDArray[np.bool_]) -> float:
    wrong_counts, good_counts = _by_value(scores, good)
    sizes = wrong_counts + good_counts
    expected = np.repeat(good_counts / sizes, sizes)
    return float(np.mean(np.cumsum(expected) / np.arange(1, len(scores) + 1)))


def score_warnings(
    name: str, spread: Distribution | None, mass: float | None = None, cut: float | None = None
) -> Iterator[str]:
    """Yield what is wrong with a score, the most serious first.

    mass: probability of all choices together in the median row; cut: share of the sampled replies that reached their maximum
    length; both in [0, 1], None where there is no such thing. Alpha is proportional to the score under mean_matched, so the
    deviation over the mean is the same for both, before alpha_cap.
    """
    if spread is None:
        yield f"{name} has no value in any row"
    if cut is not None and cut > MAX_CUT:
        yield f"{share(cut)} of the replies of {name} were cut at their maximum length and do not count"
    if mass is not None and mass < MIN_MASS:
        yield f"the choices of {name} together have {share(mass)} of the probability in the median row: read with caution"
    if spread is None or spread.n < MIN_ROWS:
        return
    if spread.distinct == 1:
        yield f"{name} is {number(spread.mode)} in every row: smoothing by it treats all rows alike"
        return
    if spread.mode_share > MAX_MODE_SHARE:
        yield f"{share(spread.mode_share)} of the rows share one value of {name} ({number(spread.mode, 3)})"
    elif spread.shared > MAX_SHARED:
        yield f"{share(spread.shared)} of the rows share their value of {name} with others ({spread.distinct:,} distinct)"
    if spread.low + spread.high > MAX_AT_EDGES:
        yield f"{share(spread.low + spread.high)} of the values of {name} lie at the edges (below 0.01 or above 0.99)"
    variation = (spread.deviation or 0.0) / spread.mean if spread.mean > 0 else 0.0
    if variation < MIN_VARIATION:
        deviation = f"standard deviation {number(spread.deviation, 3)}, {share(variation)} of its mean"
        yield f"{name} hardly varies ({deviation}), nor does the smoothing by it; consider map=rank"


def self_check_warning(name: str, found: Quality) -> Iterator[str]:
    """Yield a warning when a score may not even tell a row's own response from that of another row."""
    if found.auroc_low is None or found.auroc_low <= CHANCE:
        yield f"the self-check does not show that {name} depends on the response: {auroc_text(found)}"


def truncation_warning(truncated: int, rows: int) -> Iterator[str]:
    """Yield a warning when the elicitor saw only a part of too many rows."""
    if truncated > MAX_TRUNCATED * rows:
        yield f"{share(truncated / rows)} of rows were truncated for the elicitor"
