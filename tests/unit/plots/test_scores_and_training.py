"""Plots of scores, alphas and losses: what is drawn where, and that nothing measured makes no error."""

from __future__ import annotations

import numpy as np
import pytest

from ual_ray.plots import training
from ual_ray.plots.training import alpha_by_arm, distributions, uncertainty_by_source
from ual_ray.stats.score_quality import distribution


def test_distributions_share_one_scale() -> None:
    few, many = distribution(np.array([0.01, 0.02, 0.97])), distribution(np.array([0.5]))
    figure = distributions({"few": few, "many": many, "none": None})
    first, second, third, unused = figure.axes
    assert [bar.get_height() for bar in first.patches if bar.get_height()] == pytest.approx([2 / 3, 1 / 3])
    assert first.get_ylim() == second.get_ylim() == third.get_ylim()
    assert second.get_ylim()[1] >= 1.0, "the tallest bar fits"
    assert [axes.get_title(loc="left") for axes in (first, third)] == ["few (n = 3)", "none (n = 0)"]
    reach, middle, median = (line.get_xdata() for line in first.lines[1:])
    assert list(reach) == [0.01, 0.97] and list(middle) == [few.lower_quartile, few.upper_quartile]  # type: ignore[union-attr]
    assert list(median) == [0.02, 0.02]
    assert not unused.axison


def test_alphas_of_all_arms_are_on_one_scale() -> None:
    figure = alpha_by_arm({"sft": [0.0, 0.0], "ual": np.array([0.1, 0.2, 0.4])})
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["sft (mean 0.000)", "ual (mean 0.233)"]
    (axes,) = figure.axes
    assert axes.get_xlim() == (0.0, 0.4)
    assert [patch.get_data().values.sum() for patch in axes.patches] == [2, 3]


@pytest.mark.slow
def test_a_panel_per_arm_that_has_bins() -> None:
    lines = [{"step": step, "nll/uncertainty_bin_1": 1.0, "nll/uncertainty_bin_2": 2.0} for step in (1, 2)]
    figure = training.loss_by_uncertainty({"sft": lines, "none": [{"step": 1, "nll": 1.0}], "ual": lines}, [0.1, 0.3, 0.5])
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["sft", "ual"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["bin 1: 0.10 to 0.30", "bin 2: 0.30 to 0.50"]
    weak, strong = (line.get_alpha() for line in figure.axes[0].lines)
    assert weak < strong == 1.0
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()


def test_a_colour_per_arm_for_training_and_validation() -> None:
    lines = [{"step": 1, "nll": 2.0}, {"step": 2, "nll": 1.5, "validation_nll": 1.7}]
    (axes,) = training.loss_curves({"sft": lines, "ual": lines[:1]}).axes
    assert [list(line.get_ydata()) for line in axes.lines] == [[2.0, 1.5], [1.7], [2.0]]
    first, second, third = (line.get_color() for line in axes.lines)
    assert first == second != third


def test_a_long_curve_is_averaged_over_neighbours() -> None:
    lines = [{"step": step, "nll": float(step)} for step in range(1, 401)]
    points = training.curve(lines, "nll")
    assert points.shape == (100, 2)
    assert list(points[0]) == [2.5, 2.5], "the mean of the first four steps"
    assert training.curve(lines[:3], "nll").tolist() == [[1, 1], [2, 2], [3, 3]]
    assert training.curve(lines, "other").shape == (0, 2)


@pytest.mark.slow
def test_nothing_measured_makes_an_empty_plot() -> None:
    for figure in (
        uncertainty_by_source({}),
        distributions({}),
        alpha_by_arm({}),
        training.loss_curves({}),
        training.loss_by_uncertainty({}),
    ):
        assert figure.axes
