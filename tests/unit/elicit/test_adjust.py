"""Ensemble, length residual and calibration: by hand, by brute force, and by what they promise."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from scipy.stats import rankdata

from ual_ray.elicit.adjust import FOLDS, MIN_LABELS, MIN_SOURCE_ROWS, calibrate, check_labels, length_residual, mean_rank
from ual_ray.errors import UserError

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


@pytest.mark.slow
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


def residual(score: np.ndarray, length: np.ndarray) -> np.ndarray:
    """Take the length out of the rows of one source."""
    return length_residual(score, length, np.zeros(len(score)))


def test_a_score_that_is_length_alone_has_nothing_left() -> None:
    length = np.array([1, 10, 100, 1000])
    score = 0.1 + 0.1 * np.log1p(length)
    np.testing.assert_allclose(residual(score, length), np.full(4, score.mean()))


@given(
    rows=st.lists(st.tuples(st.floats(0.4, 0.6), st.integers(1, 5000)), min_size=3, max_size=30),
    missing=st.sets(st.integers(0, 29), max_size=3),
)
def test_what_is_left_does_not_know_the_length(rows: list[tuple[float, int]], missing: set[int]) -> None:
    score, length = (np.array(column, dtype=np.float64) for column in zip(*rows, strict=True))
    score[[index for index in missing if index < len(rows)]] = NAN
    scored = ~np.isnan(score)
    assume(scored.sum() >= 2 and np.ptp(length[scored]) > 0)
    found = residual(score, length)
    assert (np.isnan(found) == ~scored).all()
    kept, x = found[scored], np.log1p(length[scored])
    assume(kept.min() > 0 and kept.max() < 1)  # nothing was cut off
    assert kept.mean() == pytest.approx(score[scored].mean())
    assert abs(np.sum((x - x.mean()) * (kept - kept.mean()))) < 1e-9 * len(kept) * max(1.0, np.ptp(x))


@given(scores=st.lists(maybe_share, min_size=1, max_size=40), length=st.integers(0, 10_000))
@example(scores=[0.2, 0.5, 0.8], length=5)  # the mean of three log1p(5) is not log1p(5)
def test_equal_lengths_explain_nothing(scores: list[float], length: int) -> None:
    np.testing.assert_array_equal(residual(array(*scores), np.full(len(scores), length)), scores)


@pytest.mark.slow
@given(rows=st.lists(st.tuples(maybe_share, st.integers(0, 3000)), max_size=30), order=st.randoms(use_true_random=False))
def test_the_residual_stays_in_range_and_does_not_depend_on_the_order(rows: list[tuple[float, int]], order: object) -> None:
    score, length = array(*(row[0] for row in rows)), np.array([row[1] for row in rows])
    found = residual(score, length)
    assert (np.isnan(found) == np.isnan(score)).all()
    assert ((found[~np.isnan(found)] >= 0) & (found[~np.isnan(found)] <= 1)).all()
    places = list(range(len(rows)))
    order.shuffle(places)  # type: ignore[attr-defined]
    np.testing.assert_array_equal(residual(score[places], length[places]), found[places])


def test_a_length_that_nobody_measured_does_not_matter_without_a_score() -> None:
    found = residual(array(0.2, NAN, 0.4), array(10, NAN, 10))
    np.testing.assert_array_equal(found, [0.2, NAN, 0.4])


def test_the_residual_leaves_its_input_alone() -> None:
    score, length = array(0.2, 0.9), array(1, 100)
    residual(score, length)
    assert score.tolist() == [0.2, 0.9]


def test_every_source_has_a_line_of_its_own() -> None:
    """Where length raises the score in one source and lowers it in the other, one line for both would leave both."""
    length = np.tile(np.arange(1, MIN_SOURCE_ROWS + 1), 2)
    sources = np.repeat([7, 3], MIN_SOURCE_ROWS)
    score = np.where(sources == 7, 0.2 + 0.1 * np.log1p(length), 0.9 - 0.1 * np.log1p(length))
    found = length_residual(score, length, sources)
    for source in (7, 3):
        np.testing.assert_allclose(found[sources == source], score[sources == source].mean())
    assert np.ptp(residual(score, length)[sources == 7]) > 0.1


def test_small_sources_share_a_line() -> None:
    random = np.random.default_rng(0)
    sizes = {1: MIN_SOURCE_ROWS, 2: MIN_SOURCE_ROWS - 1, 3: 2}
    sources = random.permutation(np.repeat([*sizes], [*sizes.values()]))
    score, length = random.uniform(0.4, 0.6, len(sources)), random.integers(1, 500, len(sources))
    found = length_residual(score, length, sources)
    for group in (sources == 1, sources != 1):
        np.testing.assert_array_equal(found[group], residual(score[group], length[group]))
    score[np.flatnonzero(sources == 1)[0]] = NAN  # rows without a score do not count
    np.testing.assert_array_equal(length_residual(score, length, sources), residual(score, length))


@pytest.mark.slow
@given(
    rows=st.lists(st.tuples(maybe_share, st.integers(0, 3000), st.integers(0, 2)), max_size=120),
    order=st.randoms(use_true_random=False),
)
def test_the_residual_by_source_does_not_depend_on_order_and_names(rows: list[tuple[float, int, int]], order: object) -> None:
    score, length, source = (np.array(column, dtype=np.float64) for column in (zip(*rows, strict=True) if rows else [()] * 3))
    found = length_residual(score, length, source)
    places = list(range(len(rows)))
    order.shuffle(places)  # type: ignore[attr-defined]
    np.testing.assert_array_equal(length_residual(score[places], length[places], 9 - source[places]), found[places])


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


def names(count: int) -> list[str]:
    """Ids in an order that is not that of the rows."""
    return [f"{number * 7919 % 10007:05d}" for number in range(count)]


def left_out(correct: np.ndarray, ids: list[str]) -> list[set[int]]:
    """The labelled rows, dealt into folds in the order of their ids."""
    labelled = sorted(np.flatnonzero(~np.isnan(correct)), key=lambda row: ids[row])
    return [set(labelled[fold::FOLDS]) for fold in range(FOLDS)]


def predicted(fit: dict[float, float], score: float) -> float:
    """Linear between the fitted scores, constant beyond them."""
    return float(np.interp(score, list(fit), list(fit.values())))


@pytest.mark.slow
@given(rows=st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0]), st.sampled_from([0.0, 1.0, NAN])), max_size=14))
def test_calibration_against_brute_force(rows: list[tuple[float, float]]) -> None:
    scores, correct = [score for score, _ in rows], np.array([right for _, right in rows])
    assume((~np.isnan(correct)).sum() >= 2)
    ids = names(len(rows))
    folds = left_out(correct, ids)
    found = calibrate(array(*scores), correct, ids)
    for row, score in enumerate(scores):
        own = next((fold for fold in folds if row in fold), set())
        fitted = [other for other in range(len(rows)) if not math.isnan(correct[other]) and other not in own]
        fit = pooled([scores[other] for other in fitted], [1 - correct[other] for other in fitted])
        assert found[row] == pytest.approx(predicted(fit, score))


def test_calibration_by_hand() -> None:
    """Four labelled rows are four folds: each row gets the fit of the other three."""
    scores = array(0.1, 0.2, 0.4, 0.8, 0.3, 0.9, NAN)
    found = calibrate(scores, array(1, 0, 1, 0, NAN, NAN, 1), list("abcdefg"))
    # Wrong or not: 0 1 0 1. 0.1 is below 1/2 1/2 1 at 0.2 0.4 0.8; 0.2 between 0 0 at 0.1 0.4; 0.4 between 1 1 at 0.2 0.8;
    # 0.8 above 0 1/2 1/2 at 0.1 0.2 0.4. The rows without a label get the fit of all, 0 1/2 1/2 1.
    np.testing.assert_allclose(found, [0.5, 0.0, 1.0, 0.5, 0.5, 1.0, NAN])


@pytest.mark.slow
@given(
    rows=st.lists(st.tuples(share, st.sampled_from([0.0, 1.0, NAN])), min_size=MIN_LABELS, max_size=60),
    data=st.data(),
)
def test_a_row_is_not_calibrated_by_its_own_label(rows: list[tuple[float, float]], data: st.DataObject) -> None:
    scores, correct = (np.array(column, dtype=np.float64) for column in zip(*rows, strict=True))
    labelled = np.flatnonzero(~np.isnan(correct))
    assume(len(labelled) >= 2)
    row = data.draw(st.sampled_from([*labelled]))
    flipped = correct.copy()
    flipped[row] = 1 - flipped[row]
    ids = names(len(rows))
    assert calibrate(scores, correct, ids)[row] == calibrate(scores, flipped, ids)[row]


@pytest.mark.slow
@given(
    rows=st.lists(st.tuples(maybe_share, st.sampled_from([0.0, 1.0, NAN])), min_size=2, max_size=30),
    order=st.randoms(use_true_random=False),
)
def test_calibration_is_monotone_in_range_and_blind_to_order(rows: list[tuple[float, float]], order: object) -> None:
    scores, correct = (np.array(column, dtype=np.float64) for column in zip(*rows, strict=True))
    scored = ~np.isnan(scores)
    assume((scored & ~np.isnan(correct)).sum() >= 2)
    ids = names(len(rows))
    found = calibrate(scores, correct, ids)
    assert (np.isnan(found) == ~scored).all()
    assert ((found[scored] >= 0) & (found[scored] <= 1)).all()
    for fold in [set(np.flatnonzero(scored & np.isnan(correct))), *left_out(np.where(scored, correct, NAN), ids)]:
        inside = sorted(fold, key=lambda row: scores[row])
        assert (np.diff(found[inside]) >= -1e-12).all()
    places = list(range(len(rows)))
    order.shuffle(places)  # type: ignore[attr-defined]
    shuffled = calibrate(scores[places], correct[places], [ids[place] for place in places])
    np.testing.assert_allclose(shuffled, found[places], atol=1e-12)


@pytest.mark.parametrize("correct", [[NAN, NAN, NAN], [1, NAN, NAN], [NAN, 1, 0]])
def test_calibration_needs_labelled_rows_with_a_score(correct: list[float]) -> None:
    with pytest.raises(ValueError, match="two labelled rows with a score"):
        calibrate(array(0.1, 0.2, NAN), array(*correct), ["a", "b", "c"])


@pytest.mark.parametrize(
    ("right", "wrong", "enough"), [(20, 10, True), (10, 20, True), (19, 10, False), (91, 9, False), (9, 91, False)]
)
def test_few_labels_are_refused(right: int, wrong: int, enough: bool) -> None:
    if enough:
        check_labels(right, wrong, "labels.csv")
        return
    with pytest.raises(
        UserError, match=rf"(?s)too few labels.*{right} rows labelled good and {wrong} .*labels.csv.*at least 30"
    ):
        check_labels(right, wrong, "labels.csv")
