"""What calibration measures: reliability diagrams, and where models put the same tokens in feature space.

The latter are Muller's projection, and the two principal directions.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ual_ray.config.files import refuse_damage
from ual_ray.errors import UserError
from ual_ray.plots.style import INK, LINE, MUTED, TONES, grid_of, legend, readable, styled
from ual_ray.stats.metrics import ECE_WIDTH

CURVES = (("raw", "as trained", TONES[0], "-"), ("scaled", "temperature-scaled", TONES[1], "--"))
LONGEST_TOKEN = 14


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
