"""What to know of a score before training on it, as sentences, and the thresholds. Pure functions of figures."""

from __future__ import annotations

from collections.abc import Iterator

from ual_ray.formatting import number, share
from ual_ray.stats.score_quality import CHANCE, Distribution, Quality, auroc_text

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
