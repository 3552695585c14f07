"""Values with their intervals: paired differences, win rates, AUROCs, differences by how much of the uncertainty is wrong."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import wrap

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ual_ray.plots.style import MUTED, TONES, WIDTH, grid_of, legend, line_style, readable, styled
from ual_ray.stats.bootstrap import BETTER, INCONCLUSIVE, WORSE
from ual_ray.stats.comparison import Comparison, groups_of
from ual_ray.stats.metrics import difference_unit, metric_of
from ual_ray.stats.results import WinRate
from ual_ray.stats.score_quality import Quality

VERDICT_COLOURS = {BETTER: TONES[0], WORSE: TONES[1], INCONCLUSIVE: MUTED}
# Inches.
LINE_HEIGHT, PANEL_HEIGHT, TITLE_HEIGHT = 0.24, 0.4, 0.15
# Characters of a label and of a line of its panel's title, together.
LONGEST_LINE = 72
# By reference arm: the share of rows with permuted uncertainty, the difference, and the ends of its interval.
Differences = Mapping[str, Sequence[tuple[float, float, float, float]]]
# Between the lines of two arms, so that their intervals do not cover each other.
ASIDE = 0.012


@dataclass(frozen=True)
class Interval:
    """A value with the ends of its interval; without a value the line is empty, without ends it is a point."""

    label: str
    value: float | None
    low: float | None
    high: float | None
    colour: str = TONES[0]


@dataclass(frozen=True)
class Panel:
    """Intervals on one scale, from top to bottom; `mark` is the value that means no difference."""

    title: str
    intervals: Sequence[Interval]
    mark: float
    limits: tuple[float, float] | None = None


def differences(comparisons: Sequence[Comparison]) -> Figure:
    """Every difference with its interval, a panel per metric of a benchmark; blue = better, orange = worse, grey = neither.

    Differences from the untrained model, which dwarf the others, have a panel of their own.
    """
    panels = []
    for group in groups_of(comparisons):
        better = {"lower": "left", "higher": "right"}[metric_of(group[0].metric).direction or "lower"]
        label, scale = difference_unit(group[0].metric)
        intervals = []
        for entry in group:
            value, low, high = (scale * part for part in (entry.difference, entry.ci_low, entry.ci_high))
            name = f"{readable(entry.arm, 16)} - {readable(entry.reference, 16)}"
            intervals.append(Interval(name, value, low, high, VERDICT_COLOURS[entry.verdict]))
        panels.append(Panel(f"{readable(group[0].benchmark)}: {label} ({better} = better)", intervals, 0.0))
    return draw(panels)


def win_rates(judged: Sequence[WinRate]) -> Figure:
    """Win rates in percent with their intervals, length-controlled where there is one; 50 = as good as the reference."""
    panels: dict[str, list[Interval]] = {"Win rate, % (50 = as good as the reference)": [], "Length-controlled win rate, %": []}
    for entry in judged:
        label = f"{readable(entry.arm, 12)} - {readable(entry.reference, 12)}, {readable(entry.benchmark, 12)}"
        label += "" if entry.decides else f" ({readable(entry.judge, 12)})"
        for intervals, rate in zip(panels.values(), (entry.raw, entry.controlled), strict=True):
            if rate.value is not None:
                intervals.append(Interval(label, rate.value, rate.low, rate.high))
    return draw([Panel(title, found, 50.0, (0, 100)) for title, found in panels.items() if found])


def aurocs(qualities: Mapping[str, Quality]) -> Figure:
    """AUROC of every score with its interval; 0.5 = chance."""
    intervals = [Interval(readable(name), one.auroc, one.auroc_low, one.auroc_high) for name, one in qualities.items()]
    return draw([Panel("AUROC, 95% intervals (0.5 = chance)", intervals, 0.5, (0, 1))])


@styled
def draw(panels: Sequence[Panel]) -> Figure:
    """Draw panels of intervals below each other."""
    longest = max((len(interval.label) for panel in panels for interval in panel.intervals), default=0)
    # A line ends before or after "left = better", not in it.
    titles = [wrap(panel.title.replace(" = ", "\u00a0=\u00a0"), LONGEST_LINE - longest) for panel in panels]
    heights = [
        LINE_HEIGHT * len(panel.intervals) + PANEL_HEIGHT + TITLE_HEIGHT * len(title)
        for panel, title in zip(panels, titles, strict=True)
    ] or [1.0]
    figure = Figure(figsize=(WIDTH, sum(heights)), layout="constrained")
    rows = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, panel, title in zip(rows, panels, titles, strict=False):
        for place, interval in enumerate(reversed(panel.intervals)):
            if interval.low is not None and interval.high is not None:
                axes.plot([interval.low, interval.high], [place, place], color=interval.colour, linewidth=1.8, linestyle="-")
            if interval.value is not None:
                axes.plot(interval.value, place, "o", color=interval.colour, markersize=4.5)
        labels = [interval.label for interval in reversed(panel.intervals)]
        axes.set_yticks(range(len(labels)), labels=labels)
        axes.set_ylim(-0.6, len(labels) - 0.4)
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_title("\n".join(title).replace("\u00a0", " "), loc="left", fontsize=9)
        axes.axvline(panel.mark, color=MUTED, linewidth=0.8, linestyle="--")
        if panel.limits is not None:
            axes.set_xlim(panel.limits)
    return figure


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
