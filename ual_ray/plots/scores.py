"""Plots of uncertainties and alphas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

BINS = 20


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
