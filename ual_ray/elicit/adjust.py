"""What can only be computed from all rows together: the ensemble, the length residual, the calibration. Pure numpy.

All arrays have one entry per row; NaN = no score. Uncertainties are in [0, 1], higher = more uncertain.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.stats import rankdata


def mean_rank(columns: Sequence[np.ndarray]) -> np.ndarray:
    """Average the ranks of several scores, each as a share in (0, 1); NaN where a member is missing.

    Each member is ranked among the rows that have all of them; ties share their mean rank.
    """
    table = np.stack(columns)
    complete = ~np.isnan(table).any(axis=0)
    result = np.full(table.shape[1], np.nan)
    count = int(complete.sum())
    if count:
        ranks = np.stack([rankdata(column[complete]) for column in table])
        result[complete] = ((ranks - 0.5) / count).mean(axis=0)
    return result


def length_residual(uncertainty: np.ndarray, length: np.ndarray) -> np.ndarray:
    """Take out what a straight line in log(1 + length) explains; the mean stays, and what leaves [0, 1] is cut off.

    After Vashurin et al. 2025 (UNCERTAINTY-LINE, arXiv 2505.19060), which regresses the score on the length.
    """
    scored = ~np.isnan(uncertainty)
    result = np.full_like(uncertainty, np.nan)
    if not scored.any():
        return result
    x = np.log1p(length[scored].astype(np.float64))
    y = uncertainty[scored]
    if np.ptp(x) == 0:  # not by the spread, which rounding keeps from being 0
        result[scored] = y
        return result
    # Exact sums: the result must not depend on the order of the rows.
    centred = x - math.fsum(x) / len(x)
    slope = math.fsum(centred * y) / math.fsum(centred * centred)
    result[scored] = np.clip(y - slope * centred, 0.0, 1.0)
    return result


def calibrate(uncertainty: np.ndarray, correct: np.ndarray) -> np.ndarray:
    """Map every score to the error rate that isotonic regression fits on the labelled rows; equal scores stay equal.

    `correct` is 1.0 (good response), 0.0 (bad) or NaN (not labelled). Raises ValueError without a labelled row of each kind.
    """
    from sklearn.isotonic import IsotonicRegression

    scored = ~np.isnan(uncertainty)
    labelled = scored & ~np.isnan(correct)
    if len(np.unique(correct[labelled])) < 2:
        raise ValueError("calibration needs scored rows that are labelled correct and rows that are labelled wrong")
    fit = IsotonicRegression(y_min=0.0, y_max=1.0, increasing=True, out_of_bounds="clip")
    fit.fit(uncertainty[labelled], 1.0 - correct[labelled])
    result = np.full_like(uncertainty, np.nan)
    result[scored] = fit.predict(uncertainty[scored])
    return result
