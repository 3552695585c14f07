"""The plots of a run: uncertainty, alphas, loss curves, differences, win rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib import colormaps
from matplotlib.figure import Figure

from ual_ray.evaluate.metrics import metric_of
from ual_ray.evaluate.statistics import BETTER, CANNOT_TELL, WORSE
from ual_ray.records import VALIDATION_NLL
from ual_ray.report.comparison import Comparisons, groups_of
from ual_ray.report.findings import Judged

BINS = 20
BIN_METRIC = "nll/uncertainty_bin_"
VERDICT_COLOURS = {BETTER: "#2460a7", WORSE: "#a75a00", CANNOT_TELL: "0.5"}


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
        held_out = [(line["step"], line[VALIDATION_NLL]) for line in lines if VALIDATION_NLL in line]
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


def differences(comparisons: Comparisons) -> Figure:
    """Every difference with its interval, a panel per metric and benchmark; blue = better, orange = worse, grey = neither."""
    groups = groups_of(comparisons)
    heights = [len(group) + 1.5 for group in groups]
    figure = Figure(figsize=(7, max(2.0, 0.32 * sum(heights))), layout="constrained")
    panels = figure.subplots(max(1, len(groups)), 1, squeeze=False, height_ratios=heights or None)[:, 0]
    for axes, group in zip(panels, groups, strict=False):
        benchmark, metric = group[0].benchmark, group[0].metric
        for place, entry in enumerate(reversed(group)):
            colour = VERDICT_COLOURS[entry.verdict]
            axes.plot([entry.ci_low, entry.ci_high], [place, place], color=colour)
            axes.plot(entry.difference, place, "o", color=colour)
        names = [f"{entry.arm} - {entry.reference} (n = {entry.n:,})" for entry in reversed(group)]
        axes.set(yticks=range(len(group)), yticklabels=names, ylim=(-0.6, len(group) - 0.4))
        better = {"lower": "left", "higher": "right"}[metric_of(metric).direction or "lower"]
        axes.set_title(f"{benchmark}: {metric_of(metric).label} ({better} is better)", fontsize=9, loc="left")
        axes.axvline(0, color="0.6", linewidth=0.8)
    figure.suptitle(f"Paired differences, {comparisons.level:.0%} intervals")
    return figure


def win_rates(judged: Sequence[Judged]) -> Figure:
    """Win rates in percent with their intervals, raw and length-controlled; 50 = as good as the reference."""
    figure = Figure(figsize=(7, 0.7 * max(1, len(judged)) + 1.6), layout="constrained")
    axes = figure.subplots()
    for place, entry in enumerate(reversed(judged)):
        for shift, rate, colour, label in (
            (0.12, entry.raw, "C0", "raw"),
            (-0.12, entry.controlled, "C1", "length-controlled"),
        ):
            if rate.value is not None:
                axes.plot(rate.value, place + shift, "o", color=colour, label=label if place == 0 else None)
            if rate.low is not None and rate.high is not None:
                axes.plot([rate.low, rate.high], [place + shift] * 2, color=colour)
    names = [f"{entry.arm} - {entry.reference}, {entry.benchmark}\n{entry.valid} of {entry.n}" for entry in reversed(judged)]
    axes.set(yticks=range(len(judged)), yticklabels=names, xlim=(0, 100), ylim=(-0.6, len(judged) - 0.4))
    axes.set_xlabel("win rate, % (higher = better)")
    axes.axvline(50, color="0.6", linewidth=0.8)
    axes.set_title("Judged pairwise")
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
    return figure
