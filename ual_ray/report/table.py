"""The results in tables: the metrics of every model, the differences with their verdicts, the win rates. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.markup import escape
from rich.table import Table

from ual_ray.config import BASE
from ual_ray.config.names import HELD_OUT, OVERALL
from ual_ray.formatting import MISSING, MOST_DECIMALS, count, decimals, number, percent, plural
from ual_ray.report.findings import Findings, get_nested
from ual_ray.stats.bootstrap import BETTER, INCONCLUSIVE, MIN_SEEDS, WORSE
from ual_ray.stats.comparison import Comparison, Comparisons
from ual_ray.stats.metrics import NLL, MetricValue, difference_unit, metric_of
from ual_ray.stats.primary import measure_of
from ual_ray.stats.results import EVEN, Rate, WinRate, agreements_of, win_rates_of

ARROWS = {"lower": " ↓", "higher": " ↑", None: ""}
PHRASES = {BETTER: "is better than", WORSE: "is worse than", INCONCLUSIVE: "is inconclusive against"}
VERDICTS = (BETTER, WORSE, INCONCLUSIVE)
# Sources beyond the largest are in the result of the evaluation, not in a table.
MAX_SOURCES = 8
ARMS = "arms"
CALIBRATED = ("nll", "accuracy", "ece_width", "ece_mass", "brier", "auroc", "aurc", "prr")
CLUSTERED = ("nc1", "silhouette", "scatter_ratio")
# A temperature changes confidences, never which token or choice comes first.
UNSCALED = ("accuracy",)
# What a terminal shows of calibration and clusters; the report has the rest.
BRIEF_CALIBRATED = (
    *(("nll", "scaled"), ("nll", "adjusted"), ("ece_width", "raw"), ("ece_width", "scaled"), ("brier", "raw"), ("aurc", "raw")),
)
BRIEF_NORM = "after_norm"
NORMS = {"before_norm": "before the final norm", "after_norm": "after the final norm"}


@dataclass(frozen=True)
class TableRow:
    """One row of a table, below the heading `section`; a terminal shows the `brief` ones."""

    section: str
    cells: tuple[str, ...]
    brief: bool = True


@dataclass(frozen=True)
class Grid:
    """A table of texts with its rows in sections; the first column is left-aligned, the others are right-aligned."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[TableRow, ...]

    def brief(self) -> Grid:
        """Leave out the rows that a terminal does not show."""
        return replace(self, rows=tuple(row for row in self.rows if row.brief))

    def markdown(self) -> str:
        """Write the table as Markdown."""
        lines = [_line(self.heads), _line(["---", *["---:"] * (len(self.heads) - 1)])]
        for section, rows in self.sections():
            lines += [_line([f"**{section}**", *[""] * (len(self.heads) - 1)])] if section else []
            lines += [_line(row.cells) for row in rows]
        return "\n".join(lines) + "\n"

    def rich(self) -> Table:
        """Draw the table for a terminal."""
        table = Table(title=escape(self.title), title_justify="left")
        for place, head in enumerate(self.heads):
            table.add_column(escape(head), justify="right" if place else "left", overflow="fold")
        for section, rows in self.sections():
            if section:
                table.add_row(f"[bold]{escape(section)}[/bold]")
            for row in rows:
                first, *others = map(escape, row.cells)
                table.add_row(f"  {first}" if section else first, *others, end_section=row is rows[-1])
        return table

    def columns(self) -> dict[str, list[str]]:
        """Give the table by column, as MLflow logs it."""
        by_head = {head: [row.cells[place] for row in self.rows] for place, head in enumerate(self.heads)}
        return {"section": [row.section for row in self.rows], **by_head}

    def sections(self) -> list[tuple[str, list[TableRow]]]:
        """Give the rows by section, in their order."""
        found: dict[str, list[TableRow]] = {}
        for row in self.rows:
            found.setdefault(row.section, []).append(row)
        return list(found.items())


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def tables(findings: Findings) -> dict[str, Grid]:
    """Make every table that has a row, by name: the models, differences, forgetting, win rates and judges, learning rates."""
    found = {
        "models": models(findings),
        "differences": differences(findings.comparisons),
        "forgetting": forgetting(findings),
        "win_rates": win_rates(findings),
        "agreement": agreement(findings),
        "trials": trials(findings),
    }
    return {name: grid for name, grid in found.items() if grid.rows}


def models(findings: Findings) -> Grid:
    """Put the metrics of all models side by side, each with its standard error, then calibration and clusters."""
    names = findings.models
    rows = [*_arm_rows(findings), *_benchmark_rows(findings), *_calibration_rows(findings), *_cluster_rows(findings)]
    return Grid("Every model on the same questions", ("metric", "n", *names), tuple(rows))


def _arm_rows(findings: Findings) -> Iterator[TableRow]:
    for label, means in (("training row", findings.alphas), ("token", findings.token_alphas)):
        if means:
            cells = (number(means.get(model), 3) for model in findings.models)
            yield TableRow(ARMS, (f"mean alpha per {label}", MISSING, *cells))
    if any(count > 1 for count in findings.seeds.values()):
        cells = (MISSING if model == BASE else str(findings.seeds.get(model, 1)) for model in findings.models)
        yield TableRow(ARMS, ("training seeds", MISSING, *cells))


def _benchmark_rows(findings: Findings) -> Iterator[TableRow]:
    by_key = {
        model: {(entry.benchmark, entry.metric, entry.source): entry for entry in found}
        for model, found in findings.metrics.items()
    }
    for key in _keys(findings):
        benchmark, metric, source = key
        found = [by_key[model].get(key) for model in findings.models]
        label = metric_of(metric).label if source == OVERALL else f"… {source}"
        n = spread_of([entry.n for entry in found if entry is not None])
        yield TableRow(benchmark, (f"{label}{ARROWS[metric_of(metric).direction]}", n, *map(cell, found)))


def _keys(findings: Findings) -> list[tuple[str, str, str]]:
    """Order the rows: the held-out rows first, then by benchmark; NLL first, its largest sources under it."""
    sizes: dict[tuple[str, str, str], int] = {}
    for entry in (entry for found in findings.metrics.values() for entry in found):
        sizes.setdefault((entry.benchmark, entry.metric, entry.source), entry.n)

    def order(key: tuple[str, str, str]) -> tuple[Any, ...]:
        benchmark, metric, source = key
        return (benchmark != HELD_OUT, benchmark, metric != NLL, metric, source != OVERALL, -sizes[key], source)

    shown: list[tuple[str, str, str]] = []
    for key in sorted(sizes, key=order):
        if sum(other[:2] == key[:2] for other in shown) <= MAX_SOURCES:
            shown.append(key)
    return shown


def _calibration_rows(findings: Findings) -> Iterator[TableRow]:
    """Calibration of every arm before and after temperature scaling, the baseline that smoothing has to beat."""
    found = findings.calibration
    yield from _rows_of("calibration of tokens", findings.models, {m: get_nested(c, "token") for m, c in found.items()})
    temperatures = [number(get_nested(found.get(model), "temperature"), 3) for model in findings.models]
    if any(value != MISSING for value in temperatures):
        yield TableRow("calibration of tokens", ("temperature, fitted on validation rows", MISSING, *temperatures), brief=False)
    for benchmark in sorted({name for content in found.values() for name in get_nested(content, "answer") or {}}):
        answers = {model: get_nested(content, "answer", benchmark) for model, content in found.items()}
        yield from _rows_of(f"calibration of answers, {benchmark}", findings.models, answers)


def _rows_of(section: str, names: Sequence[str], found: Mapping[str, Any]) -> Iterator[TableRow]:
    for metric in CALIBRATED:
        for kind, words in (("raw", ""), ("scaled", ", scaled"), ("adjusted", ", adjusted"))[: 1 if metric in UNSCALED else 3]:
            parts = [{"n": get_nested(found.get(model), "n")} | (get_nested(found.get(model), kind) or {}) for model in names]
            yield from _metric_row(section, metric, words, parts, brief=(metric, kind) in BRIEF_CALIBRATED)


def _cluster_rows(findings: Findings) -> Iterator[TableRow]:
    for norm, where in NORMS.items():
        parts = [get_nested(findings.clusters.get(model), norm) or {} for model in findings.models]
        for metric in CLUSTERED:
            yield from _metric_row(f"clusters {where}", metric, "", parts, brief=norm == BRIEF_NORM)


def _metric_row(
    section: str, metric: str, words: str, parts: Sequence[Mapping[str, Any]], *, brief: bool
) -> Iterator[TableRow]:
    """Make the row of a metric from the part of each model that holds it; no row where no model has it."""
    if any(part.get(metric) is not None for part in parts):
        label = f"{metric_of(metric).label}{words}{ARROWS[metric_of(metric).direction]}"
        cells = (value_text(metric, part.get(metric), part.get(f"{metric}_standard_error")) for part in parts)
        counts = spread_of([part["n"] for part in parts if part.get("n") is not None])
        yield TableRow(section, (label, counts, *cells), brief)


def differences(comparisons: Comparisons) -> Grid:
    """List every comparison with its interval, its p-value after Holm, and the verdict."""
    interval = f"difference [{percent(comparisons.level)} interval]"
    heads = ("arm - reference", "verdict", interval, "p, Holm", "n")
    rows = tuple(
        TableRow(
            f"{entry.benchmark}: {_unit(entry)}{' (primary)' if entry.primary else ''}",
            (
                f"{entry.arm} - {entry.reference}",
                entry.verdict,
                difference_text(entry),
                p_text(entry.p_holm, comparisons.level),
                paired_text(entry),
            ),
            brief=entry.reference != BASE,
        )
        for entry in comparisons.entries
    )
    return Grid("Differences by question, paired", heads, rows)


def forgetting(findings: Findings) -> Grid:
    """List what every arm changed on the benchmarks other than the held-out rows: before and after training, paired."""
    values = {
        (model, entry.benchmark, entry.metric): entry
        for model, found in findings.metrics.items()
        for entry in found
        if entry.source == OVERALL
    }
    rows = tuple(
        TableRow(
            f"{entry.benchmark}: {_unit(entry)}",
            (
                entry.arm,
                entry.verdict,
                *(cell(values.get((model, entry.benchmark, entry.metric))) for model in (BASE, entry.arm)),
                difference_text(entry),
                paired_text(entry),
            ),
            brief=False,
        )
        for entry in findings.comparisons.entries
        if entry.reference == BASE and entry.benchmark != HELD_OUT
    )
    heads = ("arm", "verdict", "before training", "after", f"change [{percent(findings.comparisons.level)} interval]", "n")
    return Grid("Forgetting: benchmarks before and after training, paired by question", heads, rows)


def _unit(entry: Comparison) -> str:
    return f"{difference_unit(entry.metric)[0]}{ARROWS[metric_of(entry.metric).direction]}"


def win_rates(findings: Findings) -> Grid:
    """List every judge's win rates of each arm in percent with their intervals, valid verdicts, mean lengths, position bias."""
    heads = ("arm - against", "valid of n", "win rate, %", "length-controlled, %", "mean lengths", "orders disagree")
    entries = win_rates_of(findings.win_rates)
    several = not all(entry.decides for entry in entries)

    def section(entry: WinRate) -> str:
        judge = f"{entry.judge} ({'decides' if entry.decides else 'shown'})" if several else ""
        return " ".join(filter(None, [judge, "" if entry.benchmark == OVERALL else entry.benchmark]))

    rows = tuple(
        TableRow(
            section(entry),
            (
                f"{entry.arm} - {entry.reference}",
                f"{count(entry.valid)} of {count(entry.n)}",
                rate_text(entry.raw),
                rate_text(entry.controlled),
                f"{number(entry.length, 0)} / {number(entry.reference_length, 0)}",
                MISSING if entry.flipped is None else f"{entry.flipped:.1%}",
            ),
        )
        for entry in entries
    )
    return Grid("Judged pairwise; 50% = as good as the reference; lengths in characters", heads, rows)


def agreement(findings: Findings) -> Grid:
    """List how often every two judges prefer the same answer, and Cohen's kappa of their verdicts."""
    rows = tuple(
        TableRow(
            entry.judges,
            (
                f"{entry.arm} - {entry.reference}",
                f"{entry.n:,}",
                MISSING if entry.share is None else f"{entry.share:.1%}",
                number(entry.kappa, 2),
            ),
        )
        for entry in agreements_of(findings.win_rates)
    )
    return Grid("Agreement of the judges", ("arm - against", "n", "same verdict", "Cohen's kappa"), rows)


def trials(findings: Findings) -> Grid:
    """List the trials of every arm: validation NLL after scaling, which one was chosen, why one has no NLL."""
    rows = tuple(
        TableRow(
            "",
            (
                trial["arm"],
                f"{trial['learning_rate']:g}",
                number(trial["validation_nll_scaled"], 4),
                f"diverged: {trial['diverged']}" if trial.get("diverged") else "chosen" if trial["chosen"] else MISSING,
            ),
            brief=False,
        )
        for trial in findings.trials
    )
    heads = ("arm", "learning rate", "validation NLL, scaled", "outcome")
    return Grid("Learning rates tried with the first training seed", heads, rows)


def cell(entry: MetricValue | None) -> str:
    """Write a value with its standard error, shares in percent."""
    return MISSING if entry is None else value_text(entry.metric, entry.value, entry.standard_error)


def value_text(metric: str, value: float | None, error: float | None) -> str:
    """Write a metric's value with its standard error, shares in percent; a missing one as a dash."""
    if value is None:
        return MISSING
    scale, digits, unit = {"share": (100, 1, "%"), "percent": (1, 1, "%")}.get(metric_of(metric).unit, (1, 3, ""))
    suffix = "" if error is None else f" ± {scale * error:.{digits}f}"
    return f"{scale * value:z.{digits}f}{unit}{suffix}"


def difference_text(entry: Comparison) -> str:
    """Write a difference with its interval: shares in percentage points; an interval without 0 does not seem to reach it."""
    _, scale = difference_unit(entry.metric)
    digits = decimals(scale * entry.ci_low, scale * entry.ci_high, 0.0, 2 if scale == 100 else 4)
    value, low, high = (f"{scale * part:+z.{digits}f}" for part in (entry.difference, entry.ci_low, entry.ci_high))
    return f"{value} [{low}, {high}]"


def paired_text(entry: Comparison) -> str:
    """Write the number of questions on which all trainings have a value, and of how many, where another one has one."""
    of = "" if entry.questions is None or entry.questions == entry.n else f" of {entry.questions:,}"
    return f"{entry.n:,}{of}"


def primary_of(comparisons: Comparisons) -> list[Comparison]:
    """List the primary comparisons, measure by measure in the order of the tests."""
    found = [entry for entry in comparisons.entries if entry.primary and measure_of(entry) in comparisons.primary]
    return sorted(found, key=lambda entry: comparisons.primary.index(measure_of(entry)))


def sentence(entry: Comparison) -> str:
    """Word a comparison with its interval, its unit, its n and what limits it."""
    why = f"; {entry.reason}" if entry.reason else ""
    return f"{finding(entry)}; {measure_of(entry)} ({direction_text(entry)}){why}"


def finding(entry: Comparison) -> str:
    """Word a comparison with its interval and its n, where the measure is named elsewhere."""
    seeds = plural(entry.seeds, "training seed")
    few = f" of the {MIN_SEEDS} that a verdict needs" if entry.seeds < MIN_SEEDS else ""
    verdict = f"{entry.arm} {PHRASES[entry.verdict]} {entry.reference}"
    return f"{verdict}: {difference_text(entry)}, n = {paired_text(entry)}, {seeds}{few}"


def direction_text(entry: Comparison) -> str:
    """Write the unit of a difference, and which way is better."""
    return f"{difference_unit(entry.metric)[0]}; {metric_of(entry.metric).direction} is better"


def p_text(p_value: float, level: float) -> str:
    """Write a p-value; one below a thousandth as that, and one near 1 - level so that its side is seen."""
    return "<0.001" if p_value < 0.001 else f"{p_value:.{decimals(p_value, p_value, round(1 - level, MOST_DECIMALS), 3)}f}"


def rate_text(rate: Rate, unit: str = "") -> str:
    """Write a rate in percent with its interval, which does not seem to reach 50 where it does not."""
    if rate.low is None or rate.high is None:
        return number(rate.value, 1)
    digits = decimals(rate.low, rate.high, EVEN, 1)
    value, low, high = (number(part, digits) for part in (rate.value, rate.low, rate.high))
    return f"{value}{unit} [{low}, {high}]"


def spread_of(counts: Sequence[int]) -> str:
    """Write the number of rows of the models: one number, or the minimum and the maximum."""
    if not counts:
        return MISSING
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,}-{high:,}"
