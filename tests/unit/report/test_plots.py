"""The plots: what is drawn where, and that nothing measured makes no error."""

from __future__ import annotations

from ual_ray.plots import training
from ual_ray.report import plots
from ual_ray.report.comparison import Comparison, Comparisons
from ual_ray.report.findings import Judged, Rate


def entry(arm: str, reference: str, verdict: str) -> Comparison:
    return Comparison(arm, reference, "held_out", "nll", -0.1, -0.2, 0.0, 0.1, 0.1, verdict, 20, 1, True)  # type: ignore[arg-type]


def test_differences_from_base_have_a_panel_of_their_own() -> None:
    entries = (entry("ual", "sft", "better"), entry("ual", "shuffled", "inconclusive"), entry("ual", "base", "better"))
    figure = plots.differences(Comparisons(entries, 0.9, 100, 0))
    first, second = figure.axes
    assert [text.get_text() for text in first.get_yticklabels()] == ["ual - shuffled (n = 20)", "ual - sft (n = 20)"]
    assert [text.get_text() for text in second.get_yticklabels()] == ["ual - base (n = 20)"]
    assert first.get_title(loc="left") == "held_out: NLL per token, nats (left is better)"
    colours = {line.get_color() for line in first.lines}
    assert {plots.VERDICT_COLOURS["better"], plots.VERDICT_COLOURS["inconclusive"]} <= colours
    assert "90%" in figure.get_suptitle()


def test_a_panel_per_arm_that_has_bins() -> None:
    lines = [{"step": step, "nll/uncertainty_bin_1": 1.0, "nll/uncertainty_bin_2": 2.0} for step in (1, 2)]
    figure = training.loss_by_arm_and_bin({"sft": lines, "none": [{"step": 1, "nll": 1.0}], "ual": lines})
    assert [axes.get_title() for axes in figure.axes] == ["sft", "ual"]
    assert [line.get_label() for line in figure.axes[0].lines] == ["bin 1", "bin 2"]


def test_a_win_rate_without_an_interval_is_a_point() -> None:
    nothing, whole = Rate(None, None, None), Rate(55.0, 45.0, 65.0)
    judged = [Judged("ual", "sft", "overall", whole, nothing, 80, 78, 1.0, 2.0)]
    (axes,) = plots.win_rates(judged).axes
    assert [list(line.get_xdata()) for line in axes.lines] == [[55.0], [45.0, 65.0], [50, 50]]
    assert axes.get_yticklabels()[0].get_text() == "ual - sft, overall\n78 of 80"
    assert plots.win_rates([Judged("a", "b", "c", nothing, nothing, 1, 0, None, None)]).axes


def test_nothing_measured_makes_an_empty_plot() -> None:
    assert plots.differences(Comparisons((), 0.95, 100, 0)).axes
    assert training.loss_by_arm_and_bin({}).axes
    assert plots.win_rates([]).axes
