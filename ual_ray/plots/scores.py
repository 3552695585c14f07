"""Plots of uncertainties and alphas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ual_ray.plots.style import INK, MUTED, TONES, WIDTH, grid_of, legend, line_style, readable, styled
from ual_ray.stats.score_quality import Distribution

BINS = 20
# Sources with a colour of their own; the others share one.
MAX_SOURCES = len(TONES)


@styled
def uncertainty_by_source(histograms: Mapping[str, Sequence[int]]) -> Figure:
    """Rows per interval of the uncertainty in [0, 1] (higher = more uncertain), stacked; the largest sources by name."""
    figure = Figure(figsize=(WIDTH, 3), layout="constrained")
    axes = figure.subplots()
    ordered = sorted(histograms.items(), key=lambda item: -sum(item[1]))
    parts = [(f"{readable(name)} ({sum(counts):,})", np.array(counts)) for name, counts in ordered[:MAX_SOURCES]]
    if rest := [np.array(counts) for _, counts in ordered[MAX_SOURCES:]]:
        total = np.sum(rest, axis=0)
        parts.append((f"{len(rest)} other sources ({total.sum():,})", total))
    below, handles = np.zeros(1), {}
    for (name, counts), colour in zip(parts, (*TONES, MUTED), strict=False):
        middles = (np.arange(len(counts)) + 0.5) / len(counts)
        handles[name] = axes.bar(middles, counts, 0.94 / len(counts), bottom=below, color=colour, linewidth=0)
        below = below + counts
    axes.set(xlabel="uncertainty (higher = more uncertain)", ylabel="rows", xlim=(0, 1))
    axes.grid(axis="y")
    legend(figure, handles)
    return figure


@styled
def distributions(found: Mapping[str, Distribution | None]) -> Figure:
    """Share of rows per twentieth of the score's range, a panel per name, all on one scale; below each its quartiles.

    The line below a panel reaches from the least to the greatest value, its thick part over the middle half; the mark is the
    median.
    """
    figure, panels = grid_of(len(found), 2, 1.7)
    shares = {name: np.array(each.histogram) / each.n for name, each in found.items() if each is not None}
    top = max((float(share.max()) for share in shares.values()), default=1.0)
    for axes, (name, each) in zip(panels, found.items(), strict=False):
        axes.set_title(f"{readable(name)} (n = {each.n if each else 0:,})", fontsize=9, loc="left")
        axes.set(xlim=(0, 1), ylim=(-0.16 * top, 1.03 * top), yticks=[])
        if each is not None:
            _distribution(axes, each, shares[name], top)
    return figure


def _distribution(axes: Axes, found: Distribution, shares: np.ndarray, top: float) -> None:
    axes.bar((np.arange(len(shares)) + 0.5) / len(shares), shares, 0.94 / len(shares), color=TONES[0], linewidth=0)
    axes.axhline(0, color=MUTED, linewidth=0.8)
    low = -0.09 * top
    axes.plot([found.minimum, found.maximum], [low, low], color=MUTED, linewidth=1)
    axes.plot([found.lower_quartile, found.upper_quartile], [low, low], color=TONES[0], linewidth=4, solid_capstyle="butt")
    axes.plot([found.median] * 2, [low - 0.05 * top, low + 0.05 * top], color=INK, linewidth=1.5)


@styled
def alpha_by_arm(alphas: Mapping[str, Sequence[float] | np.ndarray]) -> Figure:
    """Rows per interval of alpha, a line per arm, on one scale; an arm with one alpha for all rows is one bar."""
    figure = Figure(figsize=(WIDTH, 3), layout="constrained")
    axes = figure.subplots()
    values = {name: np.asarray(found, dtype=np.float64) for name, found in alphas.items()}
    top = max((float(found.max(initial=0.0)) for found in values.values()), default=0.0) or 1.0
    handles = {}
    for number, (name, found) in enumerate(values.items()):
        mean = f"{found.mean():.3f}" if len(found) else "none"
        counts, edges = np.histogram(found, bins=BINS, range=(0, top))
        line = axes.stairs(counts, edges, linewidth=1.6, **line_style(number))
        handles[f"{readable(name)} (mean {mean})"] = line
    axes.set(xlabel="alpha (label smoothing)", ylabel="rows", xlim=(0, top))
    axes.grid(axis="y")
    legend(figure, handles)
    return figure
