"""Reliability diagrams of several models, before and after temperature scaling."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from ual_ray.plots.style import LINE, MUTED, TONES, grid_of, legend, readable, styled
from ual_ray.stats.metrics import ECE_WIDTH

CURVES = (("raw", "as trained", TONES[0], "-"), ("scaled", "temperature-scaled", TONES[1], "--"))


@styled
def reliability_diagrams(models: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Accuracy by confidence, a panel per model: on the dotted line a model is right as often as it is confident.

    models: by name the part of calibration.json that holds "raw" and "scaled", such as its "token" or its
    "answer"["gsm8k"]; "scaled" may be None. The grey bars are the shares of rows, before scaling.
    """
    figure, panels = grid_of(len(models), min(2, max(1, len(models))), 2.7)
    handles: dict[str, Any] = {}
    for axes, (name, parts) in zip(panels, models.items(), strict=False):
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle=":")
        errors = []
        for part, words, colour, line in CURVES:
            if (found := parts.get(part)) is None or "reliability" not in found:
                continue
            bins = found["reliability"]
            if part == "raw":
                width, total = 1 / len(bins["count"]), sum(bins["count"])
                middles = [(number + 0.5) * width for number in range(len(bins["count"]))]
                axes.bar(middles, [count / total for count in bins["count"]], 0.94 * width, color=LINE)
            points = [(x, y) for x, y in zip(bins["confidence"], bins["accuracy"], strict=True) if y is not None]
            (handles[words],) = axes.plot(*zip(*points, strict=True), color=colour, linestyle=line, marker="o", markersize=3)
            errors.append(f"{found[ECE_WIDTH]:.1%}")
        axes.set_title(f"{readable(name)}\nECE {', scaled '.join(errors) or 'not measured'}", loc="left", fontsize=9)
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence")
    panels[0].set_ylabel("accuracy")
    legend(figure, handles)
    return figure
