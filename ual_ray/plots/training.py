"""Plots of a training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib import colormaps
from matplotlib.figure import Figure

from ual_ray import columns as col

BIN_METRIC = "nll/uncertainty_bin_"


def loss_curves(metrics: Mapping[str, Sequence[Mapping[str, float]]]) -> Figure:
    """Unsmoothed NLL of training and validation over the steps: the only loss that arms can be compared by."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for index, (name, lines) in enumerate(metrics.items()):
        colour = f"C{index}"
        train = [(line["step"], line["nll"]) for line in lines if "nll" in line]
        held_out = [(line["step"], line[col.VALIDATION_NLL]) for line in lines if col.VALIDATION_NLL in line]
        if train:
            axes.plot(*zip(*train, strict=True), color=colour, alpha=0.6, label=f"{name}, training")
        if held_out:
            axes.plot(*zip(*held_out, strict=True), color=colour, marker="o", label=f"{name}, validation")
    axes.set(xlabel="optimizer step", ylabel="unsmoothed NLL (nats per token)", title="Loss curves")
    axes.legend()
    return figure


def loss_by_bin(lines: Sequence[Mapping[str, float]], edges: Sequence[float]) -> Figure:
    """Unsmoothed training NLL over the steps, a curve per uncertainty bin, dark = uncertain; `edges` bound the bins."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for number, (low, high) in enumerate(zip(edges, edges[1:], strict=False), start=1):
        points = [(line["step"], line[key]) for line in lines if (key := f"{BIN_METRIC}{number}") in line]
        if points:
            shade = colormaps["viridis_r"](number / len(edges))
            axes.plot(*zip(*points, strict=True), color=shade, label=f"uncertainty {low:.3f} to {high:.3f}")
    axes.set(xlabel="optimizer step", ylabel="unsmoothed NLL (nats per token)", title="Training loss by uncertainty")
    if axes.lines:
        axes.legend()
    return figure


def loss_by_arm_and_bin(metrics: Mapping[str, Sequence[Mapping[str, float]]]) -> Figure:
    """Unsmoothed training NLL over the steps by uncertainty bin, a panel per arm on one scale, dark = uncertain."""
    arms = {arm: lines for arm, lines in metrics.items() if any(bins_of(line) for line in lines)}
    figure = Figure(figsize=(max(1, len(arms)) * 3.2 + 0.8, 3.6), layout="constrained")
    panels = figure.subplots(1, max(1, len(arms)), sharey=True, squeeze=False)[0]
    for axes, (arm, lines) in zip(panels, arms.items(), strict=False):
        numbers = sorted({number for line in lines for number in bins_of(line)})
        for number in numbers:
            points = [(line["step"], line[key]) for line in lines if (key := f"{BIN_METRIC}{number}") in line]
            shade = colormaps["viridis_r"]((number - 0.5) / len(numbers))
            axes.plot(*zip(*points, strict=True), color=shade, label=f"bin {number}")
        axes.set(xlabel="optimizer step", title=arm)
        axes.legend(title="uncertainty, 1 = least", fontsize=7, title_fontsize=7)
    panels[0].set_ylabel("unsmoothed NLL (nats per token)")
    figure.suptitle("Training loss by uncertainty")
    return figure


def bins_of(line: Mapping[str, float]) -> list[int]:
    """Name the uncertainty bins, from 1, that a line of training metrics has a loss for."""
    return [int(key.removeprefix(BIN_METRIC)) for key in line if key.startswith(BIN_METRIC)]
