"""The plots of a run: uncertainty, alphas, loss curves, differences, win rates."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from ual_ray.report.comparison import Comparisons, groups_of
from ual_ray.report.findings import Judged
from ual_ray.stats.bootstrap import BETTER, INCONCLUSIVE, WORSE
from ual_ray.stats.metrics import metric_of

VERDICT_COLOURS = {BETTER: "#2460a7", WORSE: "#a75a00", INCONCLUSIVE: "0.5"}


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
