"""Where models put the same tokens in feature space: Muller's projection, and the two principal directions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ual_ray.config.checksums import refuse_damage
from ual_ray.errors import UserError
from ual_ray.plots.style import INK, grid_of, legend, readable, styled

LONGEST_TOKEN = 14


@styled
def clusters(models: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Scatter of hidden states after the final norm, a colour per token, a row of panels per model.

    models: by name what clusters.npz holds. On the left, the plane through the output-layer rows (crosses) of the three most
    frequent tokens; on the right, the two principal directions of all chosen tokens. Scales differ from panel to panel:
    compare the distances within clusters with those between them.
    """
    figure, panels = grid_of(2 * len(models), 2, 2.7)
    handles: dict[str, Any] = {}
    for (name, points), plane, pca in zip(models.items(), panels[::2], panels[1::2], strict=False):
        plane.set_title(f"{readable(name)}: three tokens", loc="left", fontsize=9)
        pca.set_title(f"{readable(name)}: PCA", loc="left", fontsize=9)
        if "mueller" in points:
            _scatter(plane, points["mueller"], points["mueller_classes"], points["texts"])
            rows = points["mueller_templates"]
            plane.scatter(rows[:, 0], rows[:, 1], color=INK, marker="x", s=30)
        else:
            plane.text(0.5, 0.5, "fewer than three tokens", ha="center", va="center", transform=plane.transAxes)
        handles |= _scatter(pca, points["pca"], points["classes"], points["texts"])
        for axes in (plane, pca):
            axes.set(xticks=[], yticks=[])
    legend(figure, handles, 4)
    for handle in figure.legends[0].legend_handles if figure.legends else ():
        handle.set_sizes([25])  # type: ignore[union-attr]
    return figure


def read_points(file: Path) -> dict[str, Any]:
    """Read what `clusters` draws. Raises UserError for a damaged file."""
    fix = f"restore it from a copy, or remove {file.name}: the plot is then left out"
    refuse_damage("what a plot shows", file.parent, fix)
    try:
        with np.load(file, allow_pickle=False) as content:
            return dict(content)
    except Exception as error:  # of numpy, zipfile, zlib or struct: one of an earlier version, without a checksum
        raise UserError("what a plot shows is damaged", got=f"{file}: {error}", fix=fix) from error


def label(text: str) -> str:
    """Write a token so that blanks and line breaks can be seen."""
    return f"‘{readable(text.replace(' ', '␣').replace(chr(10), '↵').replace(chr(9), '→'), LONGEST_TOKEN)}’"


def _scatter(axes: Axes, points: Any, classes: Any, texts: Any) -> dict[str, Any]:
    found = {}
    for number in np.unique(classes):
        colour = colormaps["tab10" if number < 10 else "tab20"](int(number) % (10 if number < 10 else 20))
        mine = points[classes == number]
        # As pixels: thousands of points would make a page of megabytes.
        found[label(str(texts[number]))] = axes.scatter(
            mine[:, 0], mine[:, 1], s=5, alpha=0.6, linewidths=0, color=colour, rasterized=True
        )
    axes.set_aspect("equal", adjustable="datalim")
    return found
