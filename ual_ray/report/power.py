"""What more training seeds would show, from the variances between seeds and over questions that were measured. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from ual_ray.report.findings import Findings
from ual_ray.stats.bootstrap import MIN_SEEDS
from ual_ray.stats.comparison import Comparison
from ual_ray.stats.metrics import difference_unit
from ual_ray.stats.power import POWER, detectable_difference, deviation_interval, question_error
from ual_ray.stats.primary import measure_of

SEEDS = (MIN_SEEDS, 5, 8, 12)


def power_title(where: str = "") -> str:
    """Head the lines; where: such as the scenario."""
    place = where and f" {where}"
    return f"Smallest true difference{place} that would be conclusive in {POWER:.0%} of experiments, before Holm's correction:"


def power_lines(findings: Findings, seeds: Sequence[int] = (), measures: Sequence[str] = ()) -> list[str]:
    """Word the smallest difference that each number of seeds would show, for every primary comparison over seeds.

    seeds: numbers of seeds in addition to SEEDS; measures: those that are primary elsewhere. A comparison in which no answer
    differs, as at the floor, tells nothing.
    """
    return [
        f"{entry.benchmark}, {power_line(entry, findings.comparisons.level, seeds)}"
        for entry in findings.comparisons.entries
        if (entry.primary or measure_of(entry) in measures) and entry.seed_deviation is not None and entry.error
    ]


def power_line(entry: Comparison, level: float, seeds: Sequence[int] = ()) -> str:
    """Word one comparison's power, and how well its seeds tell the deviation between seeds that it rests on."""
    assert entry.seed_deviation is not None and entry.error is not None, "a comparison over seeds"
    unit, factor = difference_unit(entry.metric)
    deviation, digits = factor * entry.seed_deviation, 4 if factor == 1 else 2
    questions = question_error(factor * entry.error, deviation, entry.seeds)
    numbers = sorted({*SEEDS, *(number for number in seeds if number >= MIN_SEEDS)})
    found = ", ".join(f"{n} seeds {detectable_difference(deviation, questions, n, level):.{digits}f}" for n in numbers)
    low, high = (f"{end:.{digits}f}" for end in deviation_interval(deviation, entry.seeds, level))
    told = f"deviation between seeds {deviation:.{digits}f}, from {entry.seeds} seeds: {low} to {high}"
    return f"{unit}, {entry.arm} - {entry.reference}: {found} ({told}; n = {entry.n:,})"
