"""How tightly the hidden states of the same token lie together, and how far from those of others. Pure functions of arrays.

`features` are [N, H]; `classes` are [N], one label per row; every class needs two rows at least. No measure depends on the
order of the rows, or changes when all features are rotated, shifted or scaled; NC1 and the scatter ratio weigh the classes
alike, however many rows they have.

Any label smoothing tightens clusters (Muller et al. 2019): compare with constant smoothing of equal mean, not with none alone.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

FEWEST_ROWS = 2
# Of a class of tokens: with fewer places, its spread would be a matter of chance.
FEWEST_PLACES = 3
MUELLER_CLASSES = 3
# Below this share of the largest, a singular value or a distance of means is what floating point leaves of 0.
RANK_TOLERANCE = 1e-10


Numbers = NDArray[np.float64]
Classes = NDArray[np.int64]
Places = NDArray[np.int64]


def nc1(features: ArrayLike, classes: ArrayLike) -> float:
    """Variability collapse, tr(Sw Sb^+) / C: spread within classes against that of their means; 0 or more, lower = tighter.

    Sw is the mean over the C classes of their covariances, Sb the covariance of their means. Raises ValueError for other
    shapes, missing numbers, fewer than two classes, a class of one row, or when all means coincide.
    Source: Papyan, Han and Donoho 2020 (arXiv 2008.08186).
    """
    rows, numbers = _checked(features, classes)
    means, deviations = _means_and_deviations(rows, numbers)
    _, spread, directions = np.linalg.svd(means - means.mean(axis=0), full_matrices=False)
    _refuse_coinciding(spread.max(), rows)
    # C means about their own mean lie in C - 1 directions; what floating point leaves of the others is no spread.
    kept = np.flatnonzero(spread > RANK_TOLERANCE * spread.max())[: len(means) - 1]
    # Sb^+ = C sum v v^T / s^2, so the C of the definition cancels, and no [H, H] matrix is needed.
    scaled = deviations @ (directions[kept] / spread[kept, None]).T
    return _mean_by_class((scaled**2).sum(axis=1), numbers)


def silhouette(features: ArrayLike, classes: ArrayLike) -> float:
    """Mean silhouette over the rows, in [-1, 1], higher = better apart (Euclidean). Raises ValueError as `nc1` does.

    Source: Rousseeuw 1987; scikit-learn.
    """
    from sklearn.metrics import silhouette_score

    rows, numbers = _checked(features, classes)
    return float(silhouette_score(rows, numbers))


def scatter_ratio(points: ArrayLike, classes: ArrayLike) -> float:
    """Mean squared distance to the own class's mean / that of the means to theirs; 0 or more, lower = tighter.

    Raises ValueError as `nc1` does.
    """
    rows, numbers = _checked(points, classes)
    means, deviations = _means_and_deviations(rows, numbers)
    between = float(((means - means.mean(axis=0)) ** 2).sum(axis=1).mean())
    _refuse_coinciding(between**0.5, rows)
    return _mean_by_class((deviations**2).sum(axis=1), numbers) / between


def mueller_projection(features: ArrayLike, templates: ArrayLike) -> Numbers:
    """Project features [N, H] onto the plane through three classes' templates [3, H]; gives coordinates [N, 2].

    Templates are the classes' rows of the output layer, features what goes into it. The origin is the templates' mean; the
    first axis points from the first template to the second, the third template lies on the positive side of the other one.
    Projecting the templates themselves gives their places. Raises ValueError for other shapes, missing numbers, or
    templates on one line. Source: Muller, Kornblith and Hinton 2019 (arXiv 1906.02629).
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
    """Coordinates [N, 2] along the two directions in which the features spread most; signs are those of scikit-learn.

    Raises ValueError for fewer than two rows or columns, and for missing numbers.
    """
    from sklearn.decomposition import PCA

    rows = np.asarray(features, dtype=np.float64)
    if rows.ndim != 2 or min(rows.shape) < 2 or not np.isfinite(rows).all():
        raise ValueError(f"features: got shape {rows.shape}; expected [N, H] of finite numbers, two or more of each")
    return PCA(2, svd_solver="full").fit_transform(rows)


def choose_classes(labels: ArrayLike, classes: int, positions: int) -> list[tuple[int, Places]]:
    """Choose the most frequent labels, and which of their places in `labels` to look at; the most frequent comes first.

    Labels with fewer than three places are left out; of equally frequent ones the smaller comes first. Of a label with more
    than `positions` places, so many at even distances are taken: neighbours in a text are alike.
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
    """NC1, silhouette and scatter ratio of one set of features, with its numbers of rows and of classes; plain, for JSON."""
    rows, numbers = _checked(features, classes)
    return {
        "n": len(rows),
        "classes": int(numbers.max()) + 1,
        "nc1": nc1(rows, numbers),
        "silhouette": silhouette(rows, numbers),
        "scatter_ratio": scatter_ratio(rows, numbers),
    }


def thin(count: int, most: int) -> Places:
    """Choose `most` of `count` rows at the utmost, at even distances, for a plot; gives their places in ascending order."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(np.int64)


def _checked(features: ArrayLike, classes: ArrayLike) -> tuple[Numbers, Classes]:
    """Give features as float64, about their mean, and classes as numbers from 0."""
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
    # About their mean, so that a large offset that all of them share costs no digits.
    return rows - rows.mean(axis=0), numbers.astype(np.int64)


def _means_and_deviations(rows: Numbers, numbers: Classes) -> tuple[Numbers, Numbers]:
    means = np.stack([rows[numbers == number].mean(axis=0) for number in range(numbers.max() + 1)])
    return means, rows - means[numbers]


def _refuse_coinciding(spread: float, rows: Numbers) -> None:
    if spread <= RANK_TOLERANCE * np.abs(rows).max():
        raise ValueError("the means of all classes coincide: there is no spread between them to compare with")


def _mean_by_class(values: Numbers, numbers: Classes) -> float:
    return float(np.mean(np.bincount(numbers, weights=values) / np.bincount(numbers)))
