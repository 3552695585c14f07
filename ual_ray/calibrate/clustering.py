"""Cluster measures of hidden states grouped by token: NC1, silhouette, scatter ratio. Pure functions of arrays.

`features` are [N, H]; `classes` are [N], one label per row; every class needs at least two rows. All measures are invariant to
row order and to rotating, shifting or scaling all features; NC1 and the scatter ratio weight every class equally,
regardless of its number of rows.

Any label smoothing tightens clusters (Muller et al. 2019): compare with constant smoothing of equal mean, not only with none.
"""

from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

FEWEST_ROWS = 2
# The fewest positions per token class; with fewer, its spread would be a matter of chance.
FEWEST_PLACES = 3
MUELLER_CLASSES = 3
# A singular value or distance between means below this share of the largest is 0 up to rounding.
RANK_TOLERANCE = 1e-10


Numbers = NDArray[np.float64]
Classes = NDArray[np.int64]
Places = NDArray[np.int64]


def nc1(features: ArrayLike, classes: ArrayLike) -> float:
    """Variability collapse, tr(Sw Sb^+) / C: within-class relative to between-class spread; >= 0, lower = tighter.

    Sw is the mean over the C classes of their covariances, Sb the covariance of their means. Raises ValueError for other
    shapes, missing numbers, fewer than two classes, a class of one row, or when all means coincide.
    Source: Papyan, Han and Donoho 2020 (arXiv 2008.08186).
    """
    rows, numbers = _checked(features, classes)
    means, deviations = _means_and_deviations(rows, numbers)
    _, spread, directions = np.linalg.svd(means - means.mean(axis=0), full_matrices=False)
    _refuse_coinciding(spread.max(), rows)
    # C centred means span at most C - 1 directions; the remaining singular values are rounding errors.
    kept = np.flatnonzero(spread > RANK_TOLERANCE * spread.max())[: len(means) - 1]
    # Sb^+ = C sum v v^T / s^2, so the C of the definition cancels, and no [H, H] matrix is needed.
    scaled = deviations @ (directions[kept] / spread[kept, None]).T
    return _mean_by_class((scaled**2).sum(axis=1), numbers)


def silhouette(features: ArrayLike, classes: ArrayLike) -> float:
    """Mean silhouette over the rows, in [-1, 1], higher = better separated (Euclidean). Raises ValueError as `nc1` does.

    Source: Rousseeuw 1987; scikit-learn.
    """
    from sklearn.metrics import silhouette_score

    rows, numbers = _checked(features, classes)
    return float(silhouette_score(rows, numbers))


def scatter_ratio(points: ArrayLike, classes: ArrayLike) -> float:
    """Mean squared distance of rows to their class mean / of class means to their mean; >= 0, lower = tighter.

    Raises ValueError as `nc1` does.
    """
    rows, numbers = _checked(points, classes)
    means, deviations = _means_and_deviations(rows, numbers)
    between = float(((means - means.mean(axis=0)) ** 2).sum(axis=1).mean())
    _refuse_coinciding(between**0.5, rows)
    return _mean_by_class((deviations**2).sum(axis=1), numbers) / between


def mueller_projection(features: ArrayLike, templates: ArrayLike) -> Numbers:
    """Project features [N, H] onto the plane through three classes' templates [3, H]; returns coordinates [N, 2].

    Templates are the classes' rows of the output layer, features its input. The origin is the templates' mean; the first
    axis points from the first template to the second, the third template has a positive second coordinate. Projecting the
    templates gives their own coordinates. Raises ValueError for other shapes, missing numbers, or
    collinear templates. Source: Muller, Kornblith and Hinton 2019 (arXiv 1906.02629).
    """
    rows, corners = np.asarray(features, dtype=np.float64), np.asarray(templates, dtype=np.float64)
    if rows.ndim != 2 or corners.shape != (MUELLER_CLASSES, rows.shape[1]):
        raise ValueError(f"shapes of features and templates: got {rows.shape} and {corners.shape}; expected [N, H], [3, H]")
    if not (np.isfinite(rows).all() and np.isfinite(corners).all()):
        raise ValueError("features and templates: found infinite or missing numbers")
    basis, triangle = np.linalg.qr((corners[1:] - corners[0]).T)
    lengths = np.abs(np.diagonal(triangle))
    if len(lengths) < 2 or lengths.min() <= 1e-9 * np.abs(triangle).max():
        raise ValueError("the templates lie on one line: there is no plane through them alone")
    return (rows - corners.mean(axis=0)) @ (basis * np.sign(np.diagonal(triangle)))


def pca(features: ArrayLike) -> Numbers:
    """Coordinates [N, 2] along the first two principal components; signs are those of scikit-learn.

    Raises ValueError for fewer than two rows or columns, and for missing numbers.
    """
    from sklearn.decomposition import PCA

    rows = np.asarray(features, dtype=np.float64)
    if rows.ndim != 2 or min(rows.shape) < 2 or not np.isfinite(rows).all():
        raise ValueError(f"features: got shape {rows.shape}; expected [N, H] of finite numbers, two or more of each")
    return PCA(2, svd_solver="full").fit_transform(rows)


def choose_classes(labels: ArrayLike, classes: int, positions: int) -> list[tuple[int, Places]]:
    """Choose the most frequent labels, in descending order of frequency, and the indices in `labels` to use for each.

    Labels that occur fewer than three times are left out; ties are ordered by label. For a label that occurs more than
    `positions` times, that many evenly spaced indices are taken, as neighbours in a text are alike.
    """
    tokens = np.asarray(labels, dtype=np.int64)
    counts = sorted(Counter(tokens.tolist()).items(), key=lambda item: (-item[1], item[0]))
    chosen = []
    for label, count in counts[:classes]:
        if count >= FEWEST_PLACES:
            places = np.flatnonzero(tokens == label)
            chosen.append((label, places[thin(count, positions)]))
    return chosen


def measures(features: ArrayLike, classes: ArrayLike) -> dict[str, Any]:
    """NC1, silhouette and scatter ratio of one set of features, with its numbers of rows and classes; JSON-serializable."""
    rows, numbers = _checked(features, classes)
    return {
        "n": len(rows),
        "classes": int(numbers.max()) + 1,
        "nc1": nc1(rows, numbers),
        "silhouette": silhouette(rows, numbers),
        "scatter_ratio": scatter_ratio(rows, numbers),
    }


def thin(count: int, most: int) -> Places:
    """Choose at most `most` of `count` rows, evenly spaced, for a plot; returns their indices in ascending order."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(np.int64)


def _checked(features: ArrayLike, classes: ArrayLike) -> tuple[Numbers, Classes]:
    """Return the features as centred float64 and the classes as numbers from 0."""
    rows, names = np.asarray(features, dtype=np.float64), np.asarray(classes)
    if rows.ndim != 2 or names.shape != rows.shape[:1] or 0 in rows.shape:
        raise ValueError(f"shapes of features and classes: got {rows.shape} and {names.shape}; expected [N, H] and [N]")
    if not np.isfinite(rows).all():
        raise ValueError("features: found infinite or missing numbers")
    distinct, numbers, sizes = np.unique(names, return_inverse=True, return_counts=True)
    if len(distinct) < 2:
        raise ValueError(f"classes: got {len(distinct)}; expected two or more")
    if sizes.min() < FEWEST_ROWS:
        raise ValueError(f"class {distinct[sizes.argmin()]!r} has one row; expected two or more in every class")
    # Centred, so that a large common offset costs no precision.
    return rows - rows.mean(axis=0), numbers.astype(np.int64)


def _means_and_deviations(rows: Numbers, numbers: Classes) -> tuple[Numbers, Numbers]:
    means = np.stack([rows[numbers == number].mean(axis=0) for number in range(numbers.max() + 1)])
    return means, rows - means[numbers]


def _refuse_coinciding(spread: float, rows: Numbers) -> None:
    if spread <= RANK_TOLERANCE * np.abs(rows).max():
        raise ValueError("the means of all classes coincide: there is no spread between them to compare with")


def _mean_by_class(values: Numbers, numbers: Classes) -> float:
    return float(np.mean(np.bincount(numbers, weights=values) / np.bincount(numbers)))
