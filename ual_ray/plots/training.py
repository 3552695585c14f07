"""Plots of a training. All losses are unsmoothed NLL in nats per token: smoothed losses of different arms do not compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from ual_ray import columns as col
from ual_ray.plots.style import TONES, WIDTH, grid_of, legend, line_style, readable, styled

BIN_METRIC = "nll/uncertainty_bin_"
# Longer curves are averaged over neighbouring steps.
MAX_POINTS = 100

Lines = Sequence[Mapping[str, float]]


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
