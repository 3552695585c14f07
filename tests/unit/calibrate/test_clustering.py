"""Measures of clusters by hand, by brute force and by what must not matter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ortho_group

from ual_ray.calibrate.clustering import choose_classes, measures, mueller_projection, nc1, pca, scatter_ratio, silhouette, thin

SQUARE = np.array([[-1.0, 0], [1, 0], [9, 0], [11, 0]])
SQUARE_CLASSES = np.array([0, 0, 1, 1])


def clouds(classes: int = 4, rows: int = 12, width: int = 7, spread: float = 0.5, seed: int = 0) -> tuple[Any, Any]:
    random = np.random.default_rng(seed)
    centres = random.normal(size=(classes, width))
    numbers = np.repeat(np.arange(classes), rows)
    return centres[numbers] + spread * random.normal(size=(len(numbers), width)), numbers


def brute_force(features: np.ndarray, classes: np.ndarray) -> float:
    names = np.unique(classes)
    means = np.stack([features[classes == name].mean(axis=0) for name in names])
    within = np.mean([np.cov(features[classes == name].T, bias=True) for name in names], axis=0)
    between = np.cov(means.T, bias=True)
    return float(np.trace(within @ np.linalg.pinv(between, rcond=1e-10)) / len(names))


def test_nc1_by_hand() -> None:
    # Means 0 and 10, each row 1 away from its own: Sw = 1, Sb = 25, C = 2.
    assert nc1(SQUARE, SQUARE_CLASSES) == pytest.approx(1 / 25 / 2)
    assert scatter_ratio(SQUARE, SQUARE_CLASSES) == pytest.approx(1 / 25)


def test_scatter_off_the_means_directions_is_none_to_nc1() -> None:
    taller = SQUARE + [[0, 5], [0, -5], [0, 5], [0, -5]]
    assert nc1(taller, SQUARE_CLASSES) == pytest.approx(nc1(SQUARE, SQUARE_CLASSES))
    assert scatter_ratio(taller, SQUARE_CLASSES) == pytest.approx(26 / 25)


@pytest.mark.parametrize(("classes", "width"), [(2, 3), (4, 7), (6, 3), (3, 40)])
def test_nc1_is_its_definition(classes: int, width: int) -> None:
    features, numbers = clouds(classes, 12, width)
    assert nc1(features, numbers) == pytest.approx(brute_force(features, numbers))


def test_classes_weigh_alike_whatever_their_size() -> None:
    features, numbers = clouds(3)
    mine = numbers == 1
    more = np.concatenate([features, features[mine], features[mine]]), np.concatenate([numbers, numbers[mine], numbers[mine]])
    assert nc1(*more) == pytest.approx(nc1(features, numbers))
    assert scatter_ratio(*more) == pytest.approx(scatter_ratio(features, numbers))


@pytest.mark.slow
@given(st.integers(0, 50), st.floats(0.01, 100), st.floats(-1e3, 1e3))
def test_measures_do_not_see_rotation_scale_shift_names_or_order(seed: int, scale: float, shift: float) -> None:
    features, numbers = clouds(seed=seed)
    random = np.random.default_rng(seed)
    turn = ortho_group.rvs(features.shape[1], random_state=seed)
    order = random.permutation(len(features))
    changed = (scale * features @ turn + shift)[order]
    names = np.array(["d", "c", "b", "a"])[numbers][order]
    for measure in (nc1, silhouette, scatter_ratio):
        assert measure(changed, names) == pytest.approx(measure(features, numbers), rel=1e-5)


@given(st.integers(0, 20))
def test_tighter_clusters_measure_tighter(seed: int) -> None:
    loose, tight = clouds(spread=1.0, seed=seed), clouds(spread=0.1, seed=seed)
    assert nc1(*tight) < nc1(*loose)
    assert scatter_ratio(*tight) < scatter_ratio(*loose)
    assert -1 <= silhouette(*loose) < silhouette(*tight) <= 1


def test_collapsed_classes_have_no_scatter() -> None:
    features, numbers = clouds(spread=0)
    assert nc1(features, numbers) == pytest.approx(0, abs=1e-20)
    assert silhouette(features, numbers) == pytest.approx(1)


@pytest.mark.parametrize("measure", [nc1, silhouette, scatter_ratio, measures])
@pytest.mark.parametrize(
    ("features", "classes", "reason"),
    [
        (np.zeros((0, 2)), [], "shapes"),
        (np.zeros(4), [0, 0, 1, 1], "shapes"),
        (SQUARE, [0, 1], "shapes"),
        (SQUARE, [0, 0, 0, 0], "classes: got 1"),
        (SQUARE, [0, 0, 0, 1], "one row"),
        (np.where(SQUARE == 9, np.nan, SQUARE), SQUARE_CLASSES, "missing"),
    ],
)
def test_bad_input_is_refused(measure: Any, features: Any, classes: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        measure(features, classes)


@pytest.mark.parametrize("measure", [nc1, scatter_ratio])
def test_means_that_coincide_are_refused(measure: Any) -> None:
    features = np.array([[-1.0, 3], [1, 3], [-1, 3], [1, 3]]) + 0.1
    with pytest.raises(ValueError, match="coincide"):
        measure(features, SQUARE_CLASSES)


# --- projections -----------------------------------------------------------------------------------------------------


def test_projection_by_hand() -> None:
    templates = np.array([[0.0, 0, 5], [3, 0, 5], [0, 3, 5]])
    points = mueller_projection(np.array([[1.0, 1, 99], [2, 1, -7]]), templates)
    np.testing.assert_allclose(points, [[0, 0], [1, 0]], atol=1e-12)
    np.testing.assert_allclose(mueller_projection(templates, templates), [[-1, -1], [2, -1], [-1, 2]], atol=1e-12)


@pytest.mark.slow
@given(st.integers(0, 50))
def test_projection_keeps_the_triangle_and_its_sense(seed: int) -> None:
    random = np.random.default_rng(seed)
    templates = random.normal(size=(3, 9))
    flat = mueller_projection(templates, templates)
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert np.linalg.norm(flat[first] - flat[second]) == pytest.approx(np.linalg.norm(templates[first] - templates[second]))
    np.testing.assert_allclose(flat.sum(axis=0), 0, atol=1e-9)
    across, up = flat[1] - flat[0], flat[2] - flat[0]
    assert across[0] > 0
    assert across[1] == pytest.approx(0, abs=1e-9)
    assert up[1] > 0
    features = random.normal(size=(20, 9))
    turn = ortho_group.rvs(9, random_state=seed)
    np.testing.assert_allclose(
        mueller_projection(features @ turn, templates @ turn), mueller_projection(features, templates), atol=1e-9
    )
    # A point of the plane and its projection are the same distance apart from a template.
    weights = random.dirichlet(np.ones(3), 20)
    np.testing.assert_allclose(mueller_projection(weights @ templates, templates), weights @ flat, atol=1e-9)


@pytest.mark.parametrize(
    ("features", "templates", "reason"),
    [
        (np.zeros((4, 3)), np.eye(3)[:2], "shapes"),
        (np.zeros((4, 2)), np.eye(3), "shapes"),
        (np.full((4, 3), np.inf), np.eye(3), "missing"),
        (np.zeros((4, 3)), np.array([[1.0, 1, 1], [2, 2, 2], [4, 4, 4]]), "one line"),
        (np.zeros((4, 3)), np.ones((3, 3)), "one line"),
        (np.zeros((4, 1)), np.array([[0.0], [1], [2]]), "one line"),
    ],
)
def test_bad_templates_are_refused(features: np.ndarray, templates: np.ndarray, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        mueller_projection(features, templates)


def test_principal_directions() -> None:
    random = np.random.default_rng(0)
    features = random.normal(size=(200, 5)) * [1, 10, 1, 5, 1]
    points = pca(features)
    assert points.shape == (200, 2)
    assert abs(np.corrcoef(points[:, 0], features[:, 1])[0, 1]) > 0.99
    assert abs(np.corrcoef(points[:, 1], features[:, 3])[0, 1]) > 0.98
    np.testing.assert_array_equal(points, pca(features))
    for bad in (np.zeros((1, 5)), np.zeros((5, 1)), np.zeros(5), np.full((5, 5), np.nan)):
        with pytest.raises(ValueError, match="features"):
            pca(bad)


# --- which tokens ----------------------------------------------------------------------------------------------------


def test_the_most_frequent_tokens_come_first_and_ties_by_number() -> None:
    labels = [7, 7, 7, 7, 5, 5, 5, 9, 9, 9, 2, 2]
    chosen = choose_classes(labels, classes=10, positions=100)
    assert [label for label, _ in chosen] == [7, 5, 9]
    assert [places.tolist() for _, places in chosen] == [[0, 1, 2, 3], [4, 5, 6], [7, 8, 9]]
    assert [label for label, _ in choose_classes(labels, classes=2, positions=100)] == [7, 5]
    assert choose_classes([], 10, 100) == []


def test_positions_are_spread_over_all_places() -> None:
    ((_, places),) = choose_classes([3] * 101, 1, 5)
    assert places.tolist() == [0, 25, 50, 75, 100]


@given(st.integers(1, 400), st.integers(2, 300))
def test_thinning_takes_different_rows_from_end_to_end(count: int, most: int) -> None:
    kept = thin(count, most)
    assert len(np.unique(kept)) == len(kept) == min(count, most)
    assert kept[0] == 0
    assert kept[-1] == count - 1
