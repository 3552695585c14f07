"""Ensemble, length residual and calibration: by hand, by brute force, and by what they promise."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from scipy.stats import rankdata

from ual_ray.elicit.adjust import calibrate, length_residual, mean_rank

NAN = math.nan
share = st.floats(0, 1)
maybe_share = st.one_of(share, st.just(NAN))


def array(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float64)


# --- the ensemble ----------------------------------------------------------------------------------------------------


def test_mean_rank_by_hand() -> None:
    # Ranks 1 2 3 4 and 4 2.5 2.5 1, each less a half, over 4 rows.
    found = mean_rank([array(0.1, 0.2, 0.3, 0.9), array(9, 5, 5, 1) / 10])
    assert found == pytest.approx((array(0.5, 1.5, 2.5, 3.5) + array(3.5, 2, 2, 0.5)) / 8)


def test_a_row_that_lacks_a_member_has_no_ensemble_and_does_not_count() -> None:
    found = mean_rank([array(0.1, NAN, 0.3), array(0.1, 0.2, 0.3)])
    np.testing.assert_allclose(found, [0.25, NAN, 0.75])


def test_nobody_has_all_members() -> None:
    assert np.isnan(mean_rank([array(0.1, NAN), array(NAN, 0.1)])).all()
    assert len(mean_rank([array(), array()])) == 0


@given(rows=st.lists(st.tuples(maybe_share, maybe_share, maybe_share), min_size=1, max_size=20))
def test_mean_rank_against_scipy(rows: list[tuple[float, float, float]]) -> None:
    columns = list(np.array(rows).T)
    complete = [not any(map(math.isnan, row)) for row in rows]
    count = sum(complete)
    expected = np.full(len(rows), NAN)
    if count:
        expected[complete] = sum((rankdata(column[complete]) - 0.5) / count for column in columns) / 3
    found = mean_rank(columns)
    np.testing.assert_allclose(found, expected)
    assert ((found[complete] > 0) & (found[complete] < 1)).all()


@given(scores=st.lists(share, min_size=1, max_size=20, unique=True))
def test_one_members_ranks_keep_its_order(scores: list[float]) -> None:
    found = mean_rank([array(*scores)])
    assert (np.argsort(found) == np.argsort(scores)).all()
    assert found.mean() == pytest.approx(0.5)


# --- the length ------------------------------------------------------------------------------------------------------


def test_a_score_that_is_length_alone_has_nothing_left() -> None:
    length = np.array([1, 10, 100, 1000])
    score = 0.1 + 0.1 * np.log1p(length)
    np.testing.assert_allclose(length_residual(score, length), np.full(4, score.mean()))


@given(
    rows=st.lists(st.tuples(st.floats(0.4, 0.6), st.integers(1, 5000)), min_size=3, max_size=30),
    missing=st.sets(st.integers(0, 29), max_size=3),
)
def test_what_is_left_does_not_know_the_length(rows: list[tuple[float, int]], missing: set[int]) -> None:
    score, length = (np.array(column, dtype=np.float64) for column in zip(*rows, strict=True))
    score[[index for index in missing if index < len(rows)]] = NAN
    scored = ~np.isnan(score)
    assume(scored.sum() >= 2 and np.ptp(length[scored]) > 0)
    found = length_residual(score, length)
    assert (np.isnan(found) == ~scored).all()
    kept, x = found[scored], np.log1p(length[scored])
    assume(kept.min() > 0 and kept.max() < 1)  # nothing was cut off
    assert kept.mean() == pytest.approx(score[scored].mean())
    assert abs(np.sum((x - x.mean()) * (kept - kept.mean()))) < 1e-9 * len(kept) * max(1.0, np.ptp(x))


@given(scores=st.lists(maybe_share, min_size=1, max_size=40), length=st.integers(0, 10_000))
@example(scores=[0.2, 0.5, 0.8], length=5)  # the mean of three log1p(5) is not log1p(5)
def test_equal_lengths_explain_nothing(scores: list[float], length: int) -> None:
    np.testing.assert_array_equal(length_residual(array(*scores), np.full(len(scores), length)), scores)


@given(rows=st.lists(st.tuples(maybe_share, st.integers(0, 3000)), max_size=30), order=st.randoms(use_true_random=False))
def test_the_residual_stays_in_range_and_does_not_depend_on_the_order(rows: list[tuple[float, int]], order: object) -> None:
    score, length = array(*(row[0] for row in rows)), np.array([row[1] for row in rows])
    found = length_residual(score, length)
    assert (np.isnan(found) == np.isnan(score)).all()
    assert ((found[~np.isnan(found)] >= 0) & (found[~np.isnan(found)] <= 1)).all()
    places = list(range(len(rows)))
    order.shuffle(places)  # type: ignore[attr-defined]
    np.testing.assert_array_equal(length_residual(score[places], length[places]), found[places])


def test_a_length_that_nobody_measured_does_not_matter_without_a_score() -> None:
    found = length_residual(array(0.2, NAN, 0.4), array(10, NAN, 10))
    np.testing.assert_array_equal(found, [0.2, NAN, 0.4])


def test_the_residual_leaves_its_input_alone() -> None:
    score, length = array(0.2, 0.9), array(1, 100)
    length_residual(score, length)
    assert score.tolist() == [0.2, 0.9]


# --- calibration -----------------------------------------------------------------------------------------------------


def pooled(scores: list[float], wrong: list[float]) -> dict[float, float]:
    """Fit isotonic regression by brute force: the best of all ways to cut the ordered values into blocks of rising means."""
    values = sorted(set(scores))
    rows = {value: [w for s, w in zip(scores, wrong, strict=True) if s == value] for value in values}
    best: tuple[float, dict[float, float]] = (math.inf, {})
    for cuts in itertools.product([False, True], repeat=len(values) - 1):
        blocks = [[values[0]]]
        for value, cut in zip(values[1:], cuts, strict=True):
            if cut:
                blocks.append([value])
            else:
                blocks[-1].append(value)
        means = [float(np.mean([w for value in block for w in rows[value]])) for block in blocks]
        if any(low > high for low, high in itertools.pairwise(means)):
            continue
        fit = {value: mean for block, mean in zip(blocks, means, strict=True) for value in block}
        error = sum((w - fit[s]) ** 2 for s, w in zip(scores, wrong, strict=True))
        best = min(best, (error, fit), key=lambda one: one[0])
    return best[1]


@given(rows=st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.25, 0.3, 0.5, 0.75, 1.0]), st.booleans()), min_size=2, max_size=12))
def test_calibration_against_brute_force(rows: list[tuple[float, bool]]) -> None:
    assume(len({right for _, right in rows}) == 2)
    scores, correct = [score for score, _ in rows], [float(right) for _, right in rows]
    expected = pooled(scores, [1 - right for right in correct])
    assert calibrate(array(*scores), array(*correct)) == pytest.approx([expected[score] for score in scores])


def test_calibration_by_hand() -> None:
    # 0.2 and 0.4 violate the order and are pooled: one of two is wrong.
    scores = array(0.1, 0.2, 0.4, 0.8, 0.3, 0.9, NAN)
    found = calibrate(scores, array(1, 0, 1, 0, NAN, NAN, 1))
    np.testing.assert_allclose(found, [0.0, 0.5, 0.5, 1.0, 0.5, 1.0, NAN])


@given(rows=st.lists(st.tuples(maybe_share, st.sampled_from([0.0, 1.0, NAN])), min_size=2, max_size=30))
def test_calibration_is_monotone_and_in_range(rows: list[tuple[float, float]]) -> None:
    scores, correct = (np.array(column, dtype=np.float64) for column in zip(*rows, strict=True))
    scored = ~np.isnan(scores)
    assume(len(set(correct[scored & ~np.isnan(correct)])) == 2)
    found = calibrate(scores, correct)
    assert (np.isnan(found) == ~scored).all()
    ordered = found[scored][np.argsort(scores[scored], kind="stable")]
    assert (np.diff(ordered) >= -1e-12).all()
    assert ((ordered >= 0) & (ordered <= 1)).all()


@pytest.mark.parametrize("correct", [[1, 1, 1], [0, 0, 0], [NAN, NAN, NAN], [1, NAN, 1]])
def test_labels_of_one_kind_cannot_calibrate(correct: list[float]) -> None:
    with pytest.raises(ValueError, match="labelled correct and rows that are labelled wrong"):
        calibrate(array(0.1, 0.2, 0.3), array(*correct))


def test_labels_of_rows_without_a_score_do_not_count() -> None:
    with pytest.raises(ValueError, match="calibration needs"):
        calibrate(array(0.1, NAN), array(1, 0))
