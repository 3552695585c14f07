"""What can only be computed from all rows together: the ensemble, the length residual, the calibration. Pure numpy.

All arrays have one entry per row; NaN = no score. Uncertainties are in [0, 1], higher = more uncertain.
"""

import math
from collections.abc import Sequence

import numpy as np

from ual_ray.errors import UserError
from ual_ray.formatting import plural
from ual_ray.stats.score_quality import mean_ranks

FOLDS = 5
# With fewer labels isotonic regression follows the noise of single ones.
MIN_LABELS = 30
MIN_OF_A_KIND = 10
# A line of their own per source takes two parameters, which fewer rows do not determine well.
MIN_SOURCE_ROWS = 30


def mean_rank(columns: Sequence[np.ndarray]) -> np.ndarray:
    """Average the ranks of several scores, each as a share in (0, 1); NaN where a member is missing.

    Each member is ranked among the rows that have all of them; ties share their mean rank.
    """
    table = np.stack(columns)
    complete = ~np.isnan(table).any(axis=0)
    result = np.full(table.shape[1], np.nan)
    count = int(complete.sum())
    if count:
        ranks = np.stack([mean_ranks(column[complete]) for column in table])
        result[complete] = ((ranks - 0.5) / count).mean(axis=0)
    return result


def length_residual(uncertainty: np.ndarray, length: np.ndarray, sources: np.ndarray) -> np.ndarray:
    """Take out what a straight line in log(1 + length) explains, one line per source.

    sources: an integer per row, equal within a source. Sources with fewer than MIN_SOURCE_ROWS scored rows share one line, as
    if they were one source: a line through a handful of rows would follow their noise. The mean of each source (of the shared
    ones together) stays, and what leaves [0, 1] is cut off.
    After Vashurin et al. 2025 (UNCERTAINTY-LINE, arXiv 2505.19060), which regresses the score on the length.
    """
    result = np.full_like(uncertainty, np.nan)
    scored = np.flatnonzero(~np.isnan(uncertainty))
    _, groups, rows = np.unique(sources[scored], return_inverse=True, return_counts=True)
    groups = np.where(rows[groups] < MIN_SOURCE_ROWS, -1, groups)
    order = np.argsort(groups, kind="stable")
    for members in np.split(scored[order], np.flatnonzero(np.diff(groups[order])) + 1):
        result[members] = _residual(uncertainty[members], np.log1p(length[members].astype(np.float64)))
    return result


def _residual(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    if not len(x) or np.ptp(x) == 0:  # not by the spread, which rounding keeps from being 0
        return y
    # Exact sums: the result must not depend on the order of the rows.
    centred = x - math.fsum(x) / len(x)
    slope = math.fsum(centred * y) / math.fsum(centred * centred)
    return np.clip(y - slope * centred, 0.0, 1.0)


def check_labels(right: int, wrong: int, where: object) -> None:
    """Raise UserError when so many good and wrong responses are too few to fit an error rate on; `where` names their file."""
    if right + wrong < MIN_LABELS or min(right, wrong) < MIN_OF_A_KIND:
        raise UserError(
            "elicit.calibrate_with: too few labels to calibrate with",
            got=f"{plural(right, 'row')} labelled good and {wrong} labelled wrong, of {where}",
            expected=f"at least {MIN_LABELS} rows, {MIN_OF_A_KIND} of each kind",
            fix="label more rows, or leave elicit.calibrate_with out",
        )


def calibrate(uncertainty: np.ndarray, correct: np.ndarray, ids: Sequence[str]) -> np.ndarray:
    """Map every score to the error rate that isotonic regression fits on labelled rows, never on the row's own label.

    `correct` is 1.0 (good response), 0.0 (bad) or NaN (not labelled). The labelled rows are dealt into FOLDS folds in the
    order of their `ids`; each fold gets the fit of the others, and rows without a label that of all. So equal scores may
    differ a little in different folds. Raises ValueError with fewer than two labelled and scored rows.
    """
    scored = ~np.isnan(uncertainty)
    labelled = np.flatnonzero(scored & ~np.isnan(correct))
    if len(labelled) < 2:
        raise ValueError(f"calibration needs two labelled rows with a score; got {len(labelled)}")
    labelled = labelled[np.argsort([ids[row] for row in labelled])]
    result = np.full_like(uncertainty, np.nan)
    result[scored] = _isotonic(uncertainty, correct, labelled, np.flatnonzero(scored))
    folds = np.arange(len(labelled)) % FOLDS
    for fold in range(min(FOLDS, len(labelled))):
        own = labelled[folds == fold]
        result[own] = _isotonic(uncertainty, correct, labelled[folds != fold], own)
    return result


def _isotonic(uncertainty: np.ndarray, correct: np.ndarray, fitted: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Fit the error rate on some rows and return it at others."""
    from sklearn.isotonic import IsotonicRegression

    fit = IsotonicRegression(y_min=0.0, y_max=1.0, increasing=True, out_of_bounds="clip")
    return fit.fit(uncertainty[fitted], 1.0 - correct[fitted]).predict(uncertainty[at])
