"""What more training seeds would show, from the variances that an experiment or its pilot measured."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from ual_ray.report.findings import Findings
from ual_ray.stats.bootstrap import MIN_SEEDS
from ual_ray.stats.comparison import Comparison
from ual_ray.stats.metrics import difference_unit
from ual_ray.stats.power import POWER, detectable_difference, deviation_interval, question_error
from ual_ray.stats.primary import measure_of

SEEDS = (MIN_SEEDS, 5, 8, 12)


def print_power(
    findings: Findings, console: Console, where: str = "", seeds: Sequence[int] = (), measures: Sequence[str] = ()
) -> bool:
    """Print the smallest difference that each number of seeds would show, for every primary comparison.

    where: behind the first words, such as the scenario; seeds: numbers of seeds in addition to SEEDS; measures: those that are
    primary elsewhere. One in which no answer differs, as at the floor, tells nothing. Return whether there was another one.
    """
    entries = [
        entry
        for entry in findings.comparisons.entries
        if (entry.primary or measure_of(entry) in measures) and entry.seed_deviation is not None and entry.error
    ]
    if not entries:
        return False
    console.print(
        f"Smallest true difference{where and f' {where}'} that would be conclusive in {POWER:.0%} of experiments, before "
        "Holm's correction:",
        highlight=False,
        markup=False,
    )
    for entry in entries:
        line = f"  {entry.benchmark}, {power_line(entry, findings.comparisons.level, seeds)}"
        console.print(line, highlight=False, markup=False)
    return True


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
