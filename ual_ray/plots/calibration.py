"""Reliability diagrams of several models side by side, before and after temperature scaling."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ual_ray.stats.metrics import ECE_WIDTH

PANEL = 2.9
ROWS = (("raw", "as it is"), ("scaled", "temperature-scaled"))
ACCURACY_COLOUR, SHARE_COLOUR = "#2a6fbb", "#b9b9b9"


def reliability_diagrams(models: Mapping[str, Mapping[str, Any]], title: str) -> Figure:
    """Accuracy by confidence, a column per model: on the diagonal a model is as often right as it says; below, less often.

    models: by name the part of calibration.json that holds "raw" and "scaled", such as its "token" or its
    "answer"["gsm8k"]; "scaled" may be None. The grey bars are the shares of rows.
    """
    figure = Figure(figsize=(max(2, len(models)) * PANEL, 2 * PANEL + 0.5), layout="constrained")
    panels = figure.subplots(2, len(models), squeeze=False, sharex=True, sharey=True)
    for column, (name, parts) in enumerate(models.items()):
        for row, (part, how) in enumerate(ROWS):
            axes = panels[row][column]
            axes.set_title(f"{name}, {how}", fontsize=9)
            if parts[part] is None:
                axes.text(0.5, 0.5, "not measured", ha="center", va="center")
            else:
                _diagram(axes, parts[part])
    for axes in panels[-1]:
        axes.set_xlabel("confidence")
    for axes in panels[:, 0]:
        axes.set_ylabel("accuracy")
    figure.suptitle(f"{title}: confidence and accuracy")
    return figure


def _diagram(axes: Axes, part: Mapping[str, Any]) -> None:
    bins = part["reliability"]
    width = 1 / len(bins["count"])
    middles = [(number + 0.5) * width for number in range(len(bins["count"]))]
    total = sum(bins["count"])
    axes.bar(middles, [count / total for count in bins["count"]], width, color=SHARE_COLOUR, label="share of rows")
    filled = [(sure, right) for sure, right in zip(bins["confidence"], bins["accuracy"], strict=True) if right is not None]
    axes.plot([0, 1], [0, 1], color="black", linewidth=0.8, linestyle=":")
    axes.plot(*zip(*filled, strict=True), color=ACCURACY_COLOUR, marker="o", markersize=3, label="accuracy")
    # On a white ground of its own: the bars of a confident model reach into the corner.
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8}
    axes.text(0.04, 0.95, f"ECE {part[ECE_WIDTH]:.3f}\nn = {part['n']:,}", va="top", fontsize=8, bbox=box)
    axes.set(xlim=(0, 1), ylim=(0, 1))
