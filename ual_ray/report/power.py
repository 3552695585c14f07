"""What more training seeds would show, from the variances between seeds and over questions that were measured. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from ual_ray.report.findings import Findings
from ual_ray.report.table import Grid, TableRow
from ual_ray.stats.bootstrap import MIN_SEEDS
from ual_ray.stats.comparison import Comparison
from ual_ray.stats.metrics import difference_unit
from ual_ray.stats.power import POWER, detectable_difference, deviation_interval, question_error
from ual_ray.stats.primary import measure_of

SEEDS = (MIN_SEEDS, 5, 8, 12)


def power_title(where: str = "") -> str:
    """Head lines or a table; where: such as the scenario."""
    place = where and f" {where}"
    return f"Smallest true difference{place} that would be conclusive in {POWER:.0%} of experiments, before Holm's correction"


def power_lines(findings: Findings, seeds: Sequence[int] = (), measures: Sequence[str] = ()) -> list[str]:
    """Word the smallest difference that each number of seeds would show, for every primary comparison over seeds.

    seeds: numbers of seeds in addition to SEEDS; measures: those that are primary elsewhere. A comparison in which no answer
    differs, as at the floor, tells nothing.
    """
    return [
        f"{entry.benchmark}, {power_line(entry, findings.comparisons.level, seeds)}"
        for entry in _comparisons(findings, measures)
    ]


def power_line(entry: Comparison, level: float, seeds: Sequence[int] = ()) -> str:
    """Word one comparison's power, and how well its seeds tell the deviation between seeds that it rests on."""
    (deviation, low, high), differences = _power(entry, level, _numbers(seeds))
    found = ", ".join(f"{n} seeds {difference}" for n, difference in zip(_numbers(seeds), differences, strict=True))
    told = f"deviation between seeds {deviation}, from {entry.seeds} seeds: {low} to {high}"
    return f"{difference_unit(entry.metric)[0]}, {entry.arm} - {entry.reference}: {found} ({told}; n = {entry.n:,})"


def power_grid(findings: Findings, seeds: Sequence[int] = ()) -> Grid:
    """Make the table of what `power_lines` words."""
    rows = []
    for entry in _comparisons(findings, ()):
        (deviation, low, high), differences = _power(entry, findings.comparisons.level, _numbers(seeds))
        section = f"{entry.benchmark}: {difference_unit(entry.metric)[0]}"
        cells = (
            f"{entry.arm} - {entry.reference}",
            *differences,
            f"{deviation} [{low}, {high}]",
            str(entry.seeds),
            f"{entry.n:,}",
        )
        rows.append(TableRow(section, cells))
    heads = (
        "arm - reference",
        *(f"{number} seeds" for number in _numbers(seeds)),
        "deviation between seeds",
        "from seeds",
        "n",
    )
    return Grid(power_title(), heads, tuple(rows))


def _comparisons(findings: Findings, measures: Sequence[str]) -> list[Comparison]:
    return [
        entry
        for entry in findings.comparisons.entries
        if (entry.primary or measure_of(entry) in measures) and entry.seed_deviation is not None and entry.error
    ]


def _numbers(seeds: Sequence[int]) -> list[int]:
    return sorted({*SEEDS, *(number for number in seeds if number >= MIN_SEEDS)})


def _power(entry: Comparison, level: float, numbers: Sequence[int]) -> tuple[list[str], list[str]]:
    """Write the deviation between seeds with the ends of its interval, and the difference that each number of seeds finds."""
    assert entry.seed_deviation is not None and entry.error is not None, "a comparison over seeds"
    factor = difference_unit(entry.metric)[1]
    deviation, digits = factor * entry.seed_deviation, 4 if factor == 1 else 2
    questions = question_error(factor * entry.error, deviation, entry.seeds)
    told = [deviation, *deviation_interval(deviation, entry.seeds, level)]
    found = [detectable_difference(deviation, questions, number, level) for number in numbers]
    return [f"{value:.{digits}f}" for value in told], [f"{value:.{digits}f}" for value in found]
