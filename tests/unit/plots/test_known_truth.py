"""The plot of a known truth shows the paired differences, and each with its own interval."""

from __future__ import annotations

import numpy as np
import pytest

from ual_ray.plots.intervals import by_corruption


def test_each_difference_is_drawn_with_its_interval() -> None:
    points = {"sft": [(1.0, 0.3, 0.1, 0.9), (0.0, -0.2, -0.5, -0.1)], "shuffled": [(0.0, 0.0, -0.1, 0.1), (1.0, 0.1, 0.0, 0.2)]}
    figure = by_corruption({"KL raw": points, "KL scaled": points}, "ual")
    for axes in figure.axes:
        lines = axes.containers
        assert [bars.lines[0].get_ydata().tolist() for bars in lines] == [[-0.2, 0.3], [0.0, 0.1]]
        intervals = [[segment[:, 1].tolist() for segment in bars.lines[2][0].get_segments()] for bars in lines]
        assert np.array(intervals).ravel() == pytest.approx([-0.5, -0.1, 0.1, 0.9, -0.1, 0.1, 0.0, 0.2])
        # Beside each other, and each pair around its own share.
        left, right = (bars.lines[0].get_xdata() for bars in lines)
        assert (left < right).all() and (np.array(left) + right) / 2 == pytest.approx([0, 1])
    assert [text.get_text() for text in figure.legends[0].texts] == ["ual - sft", "ual - shuffled"]
