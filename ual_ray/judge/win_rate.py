"""Win rates from a judge's preferences: raw, and controlled for the length of the answers.

Pure functions of arrays. A preference is in [1, 2], HIGHER = THE CANDIDATE'S ANSWER IS BETTER; NaN or None = no verdict,
which is left out and counted, never treated as a loss.

The controlled rate is that of AlpacaEval 2 (Dubois et al., arXiv 2404.04475): a logistic regression of the preference on
tanh(length difference / its standard deviation) and a constant, read off at length difference 0. As in its package (0.6.6,
formula "tanh(std_delta_len) + baseline") an L1 penalty keeps the fit finite, its strength chosen by cross-validation. The fits
are those of the package, with the tolerance and the random numbers of its solver: converged fits choose other penalties, and
differ by up to 0.2 points for models of its leaderboard.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

from ual_ray.errors import UserError
from ual_ray.formatting import plural

Numbers = NDArray[np.float64]

LOSS, TIE, WIN = 1.0, 1.5, 2.0
FOLDS = 5
# The grid of scikit-learn and AlpacaEval (larger = weaker penalty).
STRENGTHS = np.logspace(-4, 4, 10)
# A penalty is left out if it takes a lead of so many percentage points for none: for few rows the strong ones give 50% with an
# interval of width 0.
MOST_SHRUNK = 1.0
LEVEL = 0.95
RESAMPLES = 2000
# For a given strength: far below any reported digit, so that neither the order of the rows nor the solver affects a rate.
TOLERANCE = 1e-8
MOST_ITERATIONS = 10_000
# As AlpacaEval fits: scikit-learn's defaults, and its seed.
ALPACA_TOLERANCE, ALPACA_ITERATIONS, ALPACA_SEED = 1e-4, 100, 123
LEAST_WEIGHT = 1e-9


@dataclass(frozen=True)
class WinRate:
    """How often the judge prefers the candidate, in percent (50 = as good as the reference, higher = better).

    `low` and `high` bound the percentile bootstrap interval over questions at `level`, None with fewer than two verdicts or
    if no interval was requested. The controlled rate is None if it is not identifiable: with fewer than five verdicts, or
    when all length differences are equal. `n_valid` of `n` pairs have a verdict; mean lengths are in characters, over
    these. `longer`: share of these in which the candidate's answer is the longer one, ties count half. `length_effect` is the
    slope on the squashed length difference, in logits: above 0, the judge prefers longer answers. `strength` is the inverse
    of the penalty.
    """

    win_rate: float
    win_rate_low: float | None
    win_rate_high: float | None
    length_controlled_win_rate: float | None
    length_controlled_low: float | None
    length_controlled_high: float | None
    n: int
    n_valid: int
    mean_length_candidate: float
    mean_length_reference: float
    longer: float
    length_effect: float | None
    strength: float | None
    level: float
    resamples: int


@dataclass(frozen=True)
class PositionBias:
    """Mean preference for the candidate, in [1, 2], over the pairs that show it first and over those that show it second.

    Without bias both means agree up to chance: `difference` above 0 = the judge prefers the answer shown first. None if one
    order has no verdict (for the standard error: fewer than two). Of pairs shown in both orders only those with both verdicts
    count: `flipped` is the share of these `n_both` pairs, in [0, 1], of which the judge prefers another answer in each order.
    """

    candidate_first: float | None
    n_first: int
    candidate_second: float | None
    n_second: int
    difference: float | None
    standard_error: float | None
    flipped: float | None = None
    n_both: int = 0


@dataclass(frozen=True)
class _Pairs:
    """The pairs with a verdict: win probabilities in [0, 1], length differences (> 0: the candidate is longer)."""

    wins: Numbers
    difference: Numbers

    def take(self, places: NDArray[np.int64]) -> _Pairs:
        return _Pairs(self.wins[places], self.difference[places])

    def terms(self) -> Numbers:
        """The squashed length difference and the constant [rows, 2]."""
        return np.column_stack([length_term(self.difference), np.ones(len(self.wins))])


def length_controlled_win_rate(
    preference: ArrayLike,
    len_reference: ArrayLike,
    len_candidate: ArrayLike,
    *,
    strength: float | None = None,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> WinRate:
    """Measure the raw and the length-controlled win rate of a candidate, both with a bootstrap interval over the rows.

    Lengths are in characters. `strength` is the inverse L1 penalty; None chooses it by five-fold cross-validation, fold k =
    every fifth row from k, and fits as AlpacaEval does; the order of the rows matters there alone. It is kept for the
    `resamples`; 0 gives no interval. Raises UserError for preferences outside [1, 2], a missing length, columns of different
    lengths, and when there is no verdict.
    """
    values = _preferences(preference)
    reference, candidate = _column(len_reference, values, "len_reference"), _column(len_candidate, values, "len_candidate")
    valid = np.isfinite(values)
    pairs = _Pairs(values[valid] - LOSS, (candidate - reference)[valid])
    fit = _fit if strength else _fit_as_alpaca_eval
    strength = (strength or _choose_strength(pairs)) if _can_be_controlled(pairs) else None
    slopes = None if strength is None else fit(pairs.terms(), pairs.wins, strength)
    drawn = _bootstrap(pairs, strength, fit, resamples if len(pairs.wins) > 1 else 0, seed)
    (low, high), (controlled_low, controlled_high) = (_interval(column, level) for column in drawn)
    return WinRate(
        win_rate=100 * float(pairs.wins.mean()),
        win_rate_low=low,
        win_rate_high=high,
        length_controlled_win_rate=None if slopes is None else _at_equal_lengths(slopes),
        length_controlled_low=controlled_low,
        length_controlled_high=controlled_high,
        n=len(values),
        n_valid=len(pairs.wins),
        mean_length_candidate=float(candidate[valid].mean()),
        mean_length_reference=float(reference[valid].mean()),
        longer=float((1 + np.sign(pairs.difference).mean()) / 2),
        length_effect=None if slopes is None else float(slopes[0]),
        strength=strength,
        level=level,
        resamples=resamples,
    )


def position_bias(preference: ArrayLike, candidate_first: ArrayLike, question: Sequence[str] | None = None) -> PositionBias:
    """Compare the preferences for a candidate shown first with those for one shown second.

    question: of each row, where pairs are shown in both orders; their difference is paired. Raises UserError for preferences
    outside [1, 2], and when there is none.
    """
    values, shown_first = _preferences(preference), np.asarray(candidate_first, dtype=np.bool_)
    orders = [np.flatnonzero(np.isfinite(values) & (shown_first == first)) for first in (True, False)]
    paired = question is not None and len(set(question)) < len(question)
    if question is not None and paired:
        rows = [{question[row]: row for row in order} for order in orders]
        orders = [np.array([own[key] for key in rows[0] if key in rows[1]], dtype=np.int64) for own in rows]
    first, second = (values[order] for order in orders)
    known = len(first) > 0 and len(second) > 0
    spreads = [first - second] if paired else [first, second]
    errors = [spread.var(ddof=1) / len(spread) for spread in spreads if len(spread) > 1]
    return PositionBias(
        candidate_first=float(first.mean()) if len(first) else None,
        n_first=len(first),
        candidate_second=float(second.mean()) if len(second) else None,
        n_second=len(second),
        difference=float(first.mean() - second.mean()) if known else None,
        standard_error=float(np.sqrt(sum(errors))) if len(errors) == len(spreads) else None,
        flipped=float(np.mean((first - TIE) * (second - TIE) < 0)) if paired and known else None,
        n_both=len(first) if paired else 0,
    )


def length_term(difference: Numbers) -> Numbers:
    """Squash length differences: tanh(difference / their standard deviation), in (-1, 1); 0 where they do not vary."""
    spread = float(difference.std(ddof=1)) if len(difference) > 1 else 0.0
    return np.tanh(difference / spread) if spread > 0 else np.zeros_like(difference)


def _can_be_controlled(pairs: _Pairs) -> bool:
    # Equal lengths need no control; a constant difference cannot be separated from the candidate's quality.
    return len(pairs.wins) >= FOLDS and (bool(np.ptp(pairs.difference)) or not pairs.difference.any())


def _choose_strength(pairs: _Pairs) -> float:
    """Choose the penalty with the lowest mean log loss in five-fold cross-validation."""
    terms = pairs.terms()
    fold = np.arange(len(pairs.wins)) % FOLDS
    losses = np.zeros(len(STRENGTHS))
    for held in (fold == number for number in range(FOLDS)):
        random = np.random.RandomState(ALPACA_SEED)
        for place, strength in enumerate(STRENGTHS):
            logits = terms[held] @ _fit_as_alpaca_eval(terms[~held], pairs.wins[~held], strength, random)
            losses[place] += np.mean(np.logaddexp(0, logits) - pairs.wins[held] * logits)
    # The constant is 0 where its gradient at 0, rows * lead, is below 1 / strength.
    losses[STRENGTHS * len(pairs.wins) * MOST_SHRUNK < 100] = np.inf
    return float(STRENGTHS[losses.argmin()])


def _fit(terms: Numbers, wins: Numbers, strength: float) -> Numbers:
    """Minimise sum |slope| + strength * (sum of the rows' cross-entropies); return the slopes [terms]."""
    return _penalised(terms, wins, strength, tol=TOLERANCE, max_iter=MOST_ITERATIONS, random_state=0)


def _fit_as_alpaca_eval(terms: Numbers, wins: Numbers, strength: float, random: np.random.RandomState | None = None) -> Numbers:
    """Fit as `_fit` does, with AlpacaEval's solver; its cross-validation goes on with the random numbers of a fold."""
    random = random or np.random.RandomState(ALPACA_SEED)
    return _penalised(terms, wins, strength, tol=ALPACA_TOLERANCE, max_iter=ALPACA_ITERATIONS, random_state=random)


def _penalised(terms: Numbers, wins: Numbers, strength: float, **solver: Any) -> Numbers:
    """Fit to win probabilities: every row counts as a win with this weight, and as a loss with the rest."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(l1_ratio=1.0, C=strength, solver="liblinear", fit_intercept=False, **solver)
    # The solver drops rows of weight 0, and with them a label that no other row has.
    shares = np.clip(wins, LEAST_WEIGHT, 1 - LEAST_WEIGHT)
    labels = np.repeat([1, 0], len(wins))
    model.fit(np.concatenate([terms, terms]), labels, sample_weight=np.concatenate([shares, 1 - shares]))
    return model.coef_[0]


def _at_equal_lengths(slopes: Numbers) -> float:
    return 100 * float(expit(slopes[1]))


def _bootstrap(
    pairs: _Pairs, strength: float | None, fit: Callable[..., Numbers], resamples: int, seed: int
) -> tuple[Numbers, Numbers]:
    """Measure both rates on rows resampled with replacement; no controlled rates if `strength` is None."""
    random = np.random.default_rng(seed)
    raw, controlled = np.empty(resamples), np.empty(0 if strength is None else resamples)
    for number in range(resamples):
        drawn = pairs.take(random.integers(len(pairs.wins), size=len(pairs.wins)))
        raw[number] = 100 * drawn.wins.mean()
        if strength is not None:
            controlled[number] = _at_equal_lengths(fit(drawn.terms(), drawn.wins, strength))
    return raw, controlled


def _interval(drawn: Numbers, level: float) -> tuple[float | None, float | None]:
    if not len(drawn):
        return None, None
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _preferences(preference: ArrayLike) -> Numbers:
    values = np.asarray(preference, dtype=np.float64)
    if values.ndim != 1:
        raise UserError("preferences must be one column", got=f"{values.ndim} dimensions")
    given = values[np.isfinite(values)]
    if np.isinf(values).any() or (wrong := given[(given < LOSS) | (given > WIN)]).size:
        found = "infinity" if np.isinf(values).any() else wrong[:5].tolist()
        fix = f"leave a missing verdict empty (NaN or null); a tie is {TIE}, where older AlpacaEval files have 0"
        raise UserError("a preference is out of range", got=found, expected="1 (reference better) to 2", fix=fix)
    if not given.size:
        raise UserError("no pair has a verdict", got=f"{plural(len(values), 'pair')}, all without a preference")
    return values


def _column(given: ArrayLike, preference: Numbers, name: str) -> Numbers:
    values = np.asarray(given, dtype=np.float64)
    if values.shape != preference.shape:
        raise UserError(f"{name} does not match the preferences", got=f"{values.shape} and {preference.shape}")
    if missing := int((~np.isfinite(values) & np.isfinite(preference)).sum()):
        raise UserError(f"{name} is missing where there is a verdict", got=f"{missing} rows", expected="a number in every row")
    return values
