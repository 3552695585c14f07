"""Plots of uncertainties, alphas and trainings.

All losses are unsmoothed NLL in nats per token: smoothed losses of different arms do not compare.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ual_ray import columns as col
from ual_ray.plots.style import INK, MUTED, TONES, WIDTH, grid_of, legend, line_style, readable, styled
from ual_ray.stats.score_quality import Distribution

BINS = 20
# Sources with a colour of their own; the others share one.
MAX_SOURCES = len(TONES)
BIN_METRIC = "nll/uncertainty_bin_"
# Longer curves are averaged over neighbouring steps.
MAX_POINTS = 100
Lines = Sequence[Mapping[str, float]]


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


@styled
def loss_curves(metrics: Mapping[str, Lines]) -> Figure:
    """Unsmoothed NLL over the steps, a colour per arm: training as a thin line, validation as a line with dots."""
    figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
    axes = figure.subplots()
    handles = {}
    for number, (name, lines) in enumerate(metrics.items()):
        style = line_style(number)
        train, validation = curve(lines, "nll"), curve(lines, col.VALIDATION_NLL)
        if len(train):
            (handles[readable(name)],) = axes.plot(*train.T, **style, linewidth=0.8, alpha=0.7)
        if len(validation):
            (handles[readable(name)],) = axes.plot(*validation.T, **style, marker="o", markersize=3.5)
    axes.set(xlabel="optimizer step", ylabel="NLL, nats per token")
    axes.grid(axis="y")
    legend(figure, handles, 3)
    return figure


@styled
def loss_by_uncertainty(metrics: Mapping[str, Lines], edges: Sequence[float] = ()) -> Figure:
    """Unsmoothed training NLL over the steps by bin of uncertainty, a panel per arm, on one scale; stronger = more uncertain.

    `edges` bound the bins, where they are known.
    """
    arms = {arm: lines for arm, lines in metrics.items() if any(bins_of(line) for line in lines)}
    numbers = sorted({number for lines in arms.values() for line in lines for number in bins_of(line)})
    figure, panels = grid_of(len(arms), min(2, max(1, len(arms))), 2.4)
    handles = {}
    for axes, (arm, lines) in zip(panels, arms.items(), strict=False):
        axes.sharey(panels[0])
        for number in numbers:
            bounds = f": {edges[number - 1]:.2f} to {edges[number]:.2f}" if number < len(edges) else ""
            shade = 0.25 + 0.75 * number / len(numbers)
            points = curve(lines, f"{BIN_METRIC}{number}")
            if len(points):
                (handles[f"bin {number}{bounds}"],) = axes.plot(*points.T, color=TONES[0], alpha=shade)
        axes.set_title(readable(arm), loc="left")
        axes.grid(axis="y")
    for axes in panels[::2]:
        axes.set_ylabel("NLL, nats per token")
    for axes in panels[-2:]:
        axes.set_xlabel("optimizer step")
    legend(figure, handles)
    return figure


def curve(lines: Lines, key: str) -> np.ndarray:
    """Take a metric over the steps, [points, 2] of step and value, averaged over neighbours where there are many steps."""
    points = np.array([(line["step"], line[key]) for line in lines if line.get(key) is not None], dtype=np.float64)
    if len(points) <= MAX_POINTS:
        return points.reshape(-1, 2)
    return np.stack([part.mean(axis=0) for part in np.array_split(points, MAX_POINTS)])


def bins_of(line: Mapping[str, float]) -> list[int]:
    """List the uncertainty bins, from 1, that a line of training metrics has a loss for."""
    return [int(key.removeprefix(BIN_METRIC)) for key in line if key.startswith(BIN_METRIC)]
