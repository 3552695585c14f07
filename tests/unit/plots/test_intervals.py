"""Differences, win rates and AUROCs: which panel, which colour, which scale."""

from __future__ import annotations

from typing import Any

import pytest
from matplotlib.text import Text

from ual_ray.plots import intervals
from ual_ray.stats.comparison import Comparison
from ual_ray.stats.results import Rate, WinRate
from ual_ray.stats.score_quality import Quality


def entry(arm: str, reference: str, verdict: Any, metric: str = "nll") -> Comparison:
    return Comparison(arm, reference, "held_out", metric, -0.1, -0.2, 0.0, 0.1, 0.1, verdict, 20, 1, True)


def labels(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.get_yticklabels()]


def test_differences_from_base_have_a_panel_of_their_own() -> None:
    entries = (entry("ual", "sft", "better"), entry("ual", "shuffled", "inconclusive"), entry("ual", "base", "worse"))
    first, second = intervals.differences(entries).axes
    assert labels(first) == ["ual - shuffled", "ual - sft"]
    assert labels(second) == ["ual - base"]
    assert first.get_title(loc="left") == "held_out: NLL per token, nats (left = better)"
    colours = [line.get_color() for axes in (first, second) for line in axes.lines if line.get_marker() == "o"]
    assert colours == [intervals.VERDICT_COLOURS[verdict] for verdict in ("inconclusive", "better", "worse")]
    low, high = second.get_xlim()
    assert low < -0.2 and high > 0.0, "the scale holds the interval and 0"


@pytest.mark.parametrize("short", [True, False])
def test_a_long_title_ends_within_the_plot(short: bool) -> None:
    arms = ("ual", "sft") if short else ("shuffled_within", "constant_2")
    figure = intervals.differences([entry(*arms, "better", "nll_adjusted"), entry(*arms, "better")])
    for axes in figure.axes:
        (title,) = [text for text in axes.findobj(Text) if text.get_text() == axes.get_title(loc="left")]
        assert title.get_window_extent().x1 <= figure.bbox.x1
    title = figure.axes[0].get_title(loc="left")
    assert title.replace("\n", " ").endswith("smoothing floor, nats (left = better)") and title.endswith("(left = better)")


def test_shares_differ_in_points() -> None:
    (axes,) = intervals.differences([entry("ual", "sft", "better", "accuracy")]).axes
    assert axes.get_title(loc="left") == "held_out: accuracy, points (right = better)"
    assert list(axes.lines[0].get_xdata()) == pytest.approx([-20.0, 0.0])


def test_a_win_rate_without_an_interval_is_a_point() -> None:
    nothing = Rate(None, None, None)
    judged = [
        WinRate("ual", "sft", "overall", Rate(55.0, 45.0, 65.0), nothing, 80, 78, 1.0, 2.0),
        WinRate("rank", "sft", "overall", Rate(50.0, None, None), Rate(49.0, 40.0, 60.0), 80, 78, 1.0, 2.0),
    ]
    raw, controlled = intervals.win_rates(judged).axes
    assert labels(raw) == ["rank - sft, overall", "ual - sft, overall"]
    assert [list(line.get_xdata()) for line in raw.lines] == [[50.0], [45.0, 65.0], [55.0], [50, 50]]
    assert labels(controlled) == ["rank - sft, overall"]
    assert raw.get_xlim() == (0, 100)


def test_an_auroc_has_the_interval_of_the_table() -> None:
    """That of 1 has a length, though its bootstrap error is 0."""
    found = {
        "a": Quality(9, 3, 0, 0.75, 0.05, 0.5, 0.4, 0.95),
        "b": Quality(9, 3, 0, 1.0, 0.0, 0.5, 0.7, 1.0),
        "c": Quality(9, 0, 0, None, None, None),
    }
    (axes,) = intervals.aurocs(found).axes
    assert labels(axes) == ["c", "b", "a"]
    reaches = [list(line.get_xdata()) for line in axes.lines if line.get_marker() != "o"][:-1]
    assert [pytest.approx(reach) for reach in reaches] == [[0.7, 1.0], [0.4, 0.95]]


def test_nothing_measured_makes_an_empty_plot() -> None:
    assert intervals.differences([]).axes and intervals.win_rates([]).axes and intervals.aurocs({}).axes
