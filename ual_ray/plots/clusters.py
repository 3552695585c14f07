"""Where models put the same tokens in feature space, side by side: Muller's projection, and the two main directions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

PANEL = 3.1
COLOURS = 20
LONGEST_LABEL = 14


def clusters(models: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Scatter of hidden states after the final norm, a colour per token, a column per model.

    models: by name what clusters.npz holds. Above, the plane through the output-layer rows (crosses) of the three most
    frequent tokens; below, the two principal directions of all chosen tokens. Scales differ from panel to panel, so it is the
    distances within against those between clusters that can be compared.
    """
    figure = Figure(figsize=(max(2, len(models)) * PANEL, 2 * PANEL + 0.9), layout="constrained")
    panels = figure.subplots(2, len(models), squeeze=False)
    handles: dict[str, Any] = {}
    for column, (name, points) in enumerate(models.items()):
        above, below = panels[0][column], panels[1][column]
        above.set_title(f"{name}: three tokens", fontsize=9)
        below.set_title(f"{name}: PCA", fontsize=9)
        if "mueller" in points:
            _scatter(above, points["mueller"], points["mueller_classes"], points["texts"])
            templates = points["mueller_templates"]
            above.scatter(templates[:, 0], templates[:, 1], color="black", marker="x", s=30)
        else:
            above.text(0.5, 0.5, "fewer than three tokens", ha="center", va="center", transform=above.transAxes)
        handles |= _scatter(below, points["pca"], points["classes"], points["texts"])
        for axes in (above, below):
            axes.set(xticks=[], yticks=[])
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=5, fontsize=8, markerscale=3)
    figure.suptitle("Hidden states of frequent tokens")
    return figure


def label(text: str) -> str:
    """Write a token so that it can be seen, and so that matplotlib takes it as it is: blanks and line breaks shown."""
    shown = text.replace(" ", "␣").replace("\n", "\\n").replace("\t", "\\t")
    shown = shown if len(shown) <= LONGEST_LABEL else f"{shown[: LONGEST_LABEL - 1]}…"
    # Two dollar signs would be a formula; a leading underscore hides an entry of the legend.
    return f"‘{shown}’".replace("$", r"\$")


def _scatter(axes: Axes, points: Any, classes: Any, texts: Any) -> dict[str, Any]:
    found = {}
    for number in np.unique(classes):
        mine = points[classes == number]
        colour = _colour(number)
        found[label(str(texts[number]))] = axes.scatter(mine[:, 0], mine[:, 1], s=5, alpha=0.6, linewidths=0, color=colour)
    axes.set_aspect("equal", adjustable="datalim")
    return found


def _colour(number: int) -> Any:
    from matplotlib import colormaps

    return colormaps["tab10" if number < 10 else "tab20"](int(number) % (10 if number < 10 else COLOURS))
