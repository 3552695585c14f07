"""Warnings about a score: hand-computed cases, and at their thresholds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ual_ray.stats.score_quality import MIN_ROWS, distribution, score_warnings, truncation_warning

EVEN = np.linspace(0.2, 0.8, 100)


def warned(values: np.ndarray, mass: float | None = None, cut: float | None = None) -> list[str]:
    return [*score_warnings("nll", distribution(values), mass, cut)]


def test_a_score_that_varies_needs_no_warning() -> None:
    assert warned(EVEN) == warned(EVEN, mass=0.5, cut=0.05) == []


@pytest.mark.parametrize(
    ("values", "text"),
    [
        # The deviation of 50 values each of 0.57 and 0.63 is 0.03 * sqrt(100 / 99).
        (
            0.6 + 0.03 * (EVEN > 0.5) - 0.03 * (EVEN <= 0.5) + EVEN / 1e9,
            "nll hardly varies (standard deviation 0.030, 5% of its mean)",
        ),
        (np.full(100, 0.25), "nll is 0.25 in every row: smoothing by it treats all rows alike"),
        (np.where(np.arange(100) < 31, 0.5, EVEN), "31% of the rows share one value of nll (0.500)"),
        (
            np.where(np.arange(100) < 60, np.arange(100) // 20 / 4, EVEN),
            "60% of the rows share their value of nll with others (43 distinct",
        ),
        (
            np.where(np.arange(100) < 51, EVEN / 100, EVEN),
            "51% of the values of nll lie at the edges (below 0.01 or above 0.99)",
        ),
        (np.full(100, np.nan), "nll has no value in any row"),
    ],
)
def test_each_warning_by_hand(values: np.ndarray, text: str) -> None:
    assert len(found := warned(values)) == 1 and found[0].startswith(text), found


def test_replies() -> None:
    assert warned(EVEN, mass=0.031) == [
        "the choices of nll together have 3% of the probability in the median row: read with caution"
    ]
    assert warned(EVEN, cut=0.25) == ["25% of the replies of nll were cut at their maximum length and do not count"]
    lost = warned(np.full(9, np.nan), cut=1.0)
    assert lost == [
        "nll has no value in any row",
        "100% of the replies of nll were cut at their maximum length and do not count",
    ]


def test_a_few_rows_are_not_judged() -> None:
    assert warned(np.full(MIN_ROWS - 1, 0.5)) == []
    assert len(warned(np.full(MIN_ROWS, 0.5))) == 1


@given(scale=st.floats(0.01, 1), seed=st.integers(0, 99))
def test_what_varies_is_relative(scale: float, seed: int) -> None:
    """mean_matched divides by the mean, so alpha varies as much as ten times the score does."""
    values = np.random.default_rng(seed).uniform(0.4, 0.6, 50)  # a deviation of about 12% of the mean
    relative = values.std(ddof=1) / values.mean()
    said = any("hardly varies" in text for text in warned(values * scale))
    assert said == (relative < 0.1) or abs(relative - 0.1) < 1e-9


@pytest.mark.parametrize(("truncated", "rows", "count"), [(0, 0, 0), (5, 100, 0), (6, 100, 1)])
def test_truncation(truncated: int, rows: int, count: int) -> None:
    assert len([*truncation_warning(truncated, rows)]) == count
