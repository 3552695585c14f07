"""The made-up world: its distributions, its uncertainty, and the distances from its truth, against values by formula."""

from __future__ import annotations

import numpy as np
import pytest

from ual_ray.experiment.truth import corrupt, divergence, draw_world, oracle_uncertainty, regret, strata

K = 64


@pytest.fixture(scope="module")
def world():  # type: ignore[no-untyped-def]
    return draw_world(1000, 10, K, seed=3)


def test_every_distribution_sums_to_one_and_is_sorted() -> None:
    for name, probabilities in strata(K).items():
        assert probabilities.sum() == pytest.approx(1, abs=1e-12), name
        assert (np.diff(probabilities) <= 0).all(), name


def test_entropies_are_those_of_the_formulas() -> None:
    noisy = np.array([0.7 + 0.3 / K, *[0.3 / K] * (K - 1)])
    harmonic = sum(1 / rank for rank in range(1, 9))
    unequal = np.array([1 / rank / harmonic for rank in range(1, 9)])
    expected = {
        "deterministic": 0.0,
        "label noise": -(noisy * np.log(noisy)).sum() / np.log(K),
        "4 alike": 1 / 3,
        "16 alike": 2 / 3,
        "8 unequal": -(unequal * np.log(unequal)).sum() / np.log(K),
    }
    found = oracle_uncertainty(np.stack([*strata(K).values()]))
    assert dict(zip(strata(K), found.tolist(), strict=True)) == pytest.approx(expected, abs=1e-12)


def test_contexts_are_different_and_their_answers_are_those_of_their_stratum(world) -> None:  # type: ignore[no-untyped-def]
    assert len(np.unique(world.contexts, axis=0)) == 1000
    for position in range(3):
        assert {*world.contexts[:, position].tolist()} == {*range(10 * position, 10 * position + 10)}
    shapes = np.stack([*strata(K).values()])
    assert np.array_equal(-np.sort(-world.truth, axis=1), shapes[world.strata])
    assert (world.train, world.validation) == (500, 625)
    assert (world.truth[np.arange(1000), world.labels] > 0).all()


def test_labels_follow_the_truth(world) -> None:  # type: ignore[no-untyped-def]
    best = world.labels == world.truth.argmax(axis=1)
    names = [*strata(K)]
    assert best[world.strata == names.index("deterministic")].all()
    noisy = best[world.strata == names.index("label noise")]
    # 200 labels with a share of 0.705: five standard errors.
    assert abs(noisy.mean() - (0.7 + 0.3 / K)) < 5 * np.sqrt(0.705 * 0.295 / len(noisy))


def test_a_world_follows_from_its_seed() -> None:
    one, again, other = (draw_world(1000, 10, K, seed=seed) for seed in (3, 3, 4))
    assert np.array_equal(one.truth, again.truth) and np.array_equal(one.labels, again.labels)
    assert not np.array_equal(one.truth, other.truth)


@pytest.mark.parametrize(("share", "moved"), [(0.0, 0), (0.25, 250), (1.0, 1000)])
def test_a_share_of_the_rows_exchange_their_uncertainty(share: float, moved: int) -> None:
    values = np.linspace(0, 1, 1000)
    found = corrupt(values, share, seed=0)
    assert np.array_equal(np.sort(found), values)
    changed = int((found != values).sum())
    # A random permutation leaves one value at its place on average.
    assert moved - 6 <= changed <= moved
    assert np.array_equal(found, corrupt(values, share, seed=0))


def test_divergence_is_that_of_the_formula() -> None:
    truth = np.array([[0.5, 0.5, 0, 0], [1, 0, 0, 0], [0.25] * 4])
    logits = np.log([[0.25, 0.25, 0.25, 0.25], [0.7, 0.1, 0.1, 0.1], [0.7, 0.1, 0.1, 0.1]])
    expected = [np.log(2), -np.log(0.7), 0.25 * np.log(0.25 / 0.7) + 0.75 * np.log(2.5)]
    assert divergence(truth, logits + 5).tolist() == pytest.approx(expected, abs=1e-12)
    assert divergence(truth, np.log(np.maximum(truth, 1e-300))).tolist() == pytest.approx([0, 0, 0], abs=1e-12)
    assert divergence(truth, 3 * logits, 3.0).tolist() == pytest.approx(expected, abs=1e-12)


def test_regret_is_what_the_likeliest_answer_lacks() -> None:
    truth = np.array([[0.6, 0.4, 0], [0.6, 0.4, 0], [0.5, 0, 0.5]])
    logits = np.array([[1.0, 2, 0], [0, 0, 1], [0, 0, 1]])
    assert regret(truth, logits).tolist() == pytest.approx([0.2, 0.6, 0])
