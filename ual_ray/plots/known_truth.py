"""The distance from a known truth, by how much of the uncertainty is wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from ual_ray.plots.style import grid_of, legend, line_style, readable, styled

# By arm: points of a corruption and the values of its seeds.
Curves = Mapping[str, Sequence[tuple[float, Sequence[float]]]]


@styled
def by_corruption(metrics: Mapping[str, Curves]) -> Figure:
    """Means over seeds by corruption, with the standard deviation between seeds; a panel per metric, a colour per arm."""
    figure, panels = grid_of(len(metrics), 1, 2.6)
    handles = {}
    for axes, (metric, arms) in zip(panels, metrics.items(), strict=True):
        for place, (arm, points) in enumerate(arms.items()):
            shares, values = zip(*sorted(points, key=lambda point: point[0]), strict=True)
            means = [float(np.mean(seeds)) for seeds in values]
            spread = [float(np.std(seeds, ddof=1)) if len(seeds) > 1 else 0.0 for seeds in values]
            style = line_style(place)
            handles[readable(arm)] = axes.errorbar(shares, means, spread, **style, marker="o", markersize=3.5, capsize=2)
        axes.set(xlabel="share of rows with permuted uncertainty", ylabel=f"{metric}, nats")
        axes.grid(axis="y")
    legend(figure, handles, 3)
    return figure
