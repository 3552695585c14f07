"""What an arm gains over the others where the truth is known, by how much of the uncertainty is wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from ual_ray.plots.style import grid_of, legend, line_style, readable, styled

# By reference arm: the share of rows with permuted uncertainty, the difference, and the ends of its interval.
Differences = Mapping[str, Sequence[tuple[float, float, float, float]]]
# Between the lines of two arms, so that their intervals do not cover each other.
ASIDE = 0.012


@styled
def by_corruption(metrics: Mapping[str, Differences], arm: str) -> Figure:
    """Draw the differences of `arm` from each other arm, with their intervals; a panel per metric, a colour per reference."""
    figure, panels = grid_of(len(metrics), 1, 2.6)
    handles = {}
    for axes, (metric, references) in zip(panels, metrics.items(), strict=True):
        axes.axhline(0, color="0.5", linewidth=0.8)
        for place, (reference, points) in enumerate(references.items()):
            shares, values, low, high = zip(*sorted(points), strict=True)
            beside = [share + ASIDE * (place - (len(references) - 1) / 2) for share in shares]
            lengths = [[value - end for value, end in zip(values, low, strict=True)]]
            lengths += [[end - value for value, end in zip(values, high, strict=True)]]
            drawn = axes.errorbar(beside, values, lengths, **line_style(place), marker="o", markersize=3.5, capsize=2)
            handles[readable(f"{arm} - {reference}")] = drawn
        axes.set(xlabel="share of rows with permuted uncertainty", ylabel=f"{metric}, nats (below 0: better)")
        axes.grid(axis="y")
    legend(figure, handles, 4)
    return figure
