"""The plots of a run: uncertainty by source, alpha by arm, loss curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib import colormaps
from matplotlib.figure import Figure

BINS = 20
BIN_METRIC = "nll/uncertainty_bin_"


def uncertainty_by_source(histograms: Mapping[str, Sequence[int]]) -> Figure:
    """Rows per interval of the uncertainty in [0, 1] (higher = more uncertain), stacked, one colour per source."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    below = [0] * max(map(len, histograms.values()), default=0)
    for name, counts in histograms.items():
        width = 1 / len(counts)
        axes.bar([(at + 0.5) * width for at in range(len(counts))], counts, width, bottom=below, label=name)
        below = [low + count for low, count in zip(below, counts, strict=True)]
    axes.set(xlabel="uncertainty (higher = more uncertain)", ylabel="rows", title="Uncertainty by source")
    axes.legend()
    return figure


def alpha_by_arm(alphas: Mapping[str, Sequence[float]]) -> Figure:
    """Histogram of the smoothing values of every arm that smooths."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, values in alphas.items():
        axes.hist(values, bins=BINS, histtype="step", linewidth=2, label=f"{name} (mean {sum(values) / len(values):.3f})")
    axes.set(xlabel="alpha", ylabel="rows", title="Label smoothing per sample")
    axes.legend()
    return figure


def loss_curves(metrics: Mapping[str, Sequence[Mapping[str, float]]]) -> Figure:
    """Unsmoothed NLL of training and validation over the steps: the only loss that arms can be compared by."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for index, (name, lines) in enumerate(metrics.items()):
        colour = f"C{index}"
        train = [(line["step"], line["nll"]) for line in lines if "nll" in line]
        held_out = [(line["step"], line["validation_nll"]) for line in lines if "validation_nll" in line]
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
