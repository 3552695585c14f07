"""What more training seeds would show, from the variances that an experiment or its pilot measured."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from ual_ray.report.findings import Findings
from ual_ray.stats.bootstrap import MIN_SEEDS
from ual_ray.stats.comparison import Comparison
from ual_ray.stats.metrics import metric_of
from ual_ray.stats.power import POWER, detectable_difference, deviation_interval, question_error

SEEDS = (MIN_SEEDS, 5, 8, 12)


def print_power(findings: Findings, console: Console, where: str = "", seeds: Sequence[int] = ()) -> bool:
    """Print the smallest difference that each number of seeds would show, for every primary comparison of likelihoods.

    where: behind the first words, such as the scenario; seeds: numbers of seeds in addition to SEEDS. Return whether there
    was such a comparison.
    """
    entries = [
        entry
        for entry in findings.comparisons.entries
        if entry.primary and metric_of(entry.metric).unit != "share" and entry.seed_deviation is not None
    ]
    if not entries:
        return False
    console.print(
        f"Smallest true difference{where and f' {where}'} that would be conclusive in {POWER:.0%} of experiments, before "
        "Holm's correction, in nats per token:",
        highlight=False,
        markup=False,
    )
    for entry in entries:
        console.print(f"  {power_line(entry, findings.comparisons.level, seeds)}", highlight=False, markup=False)
    return True


def power_line(entry: Comparison, level: float, seeds: Sequence[int] = ()) -> str:
    """Word one comparison's power, and how well its seeds tell the deviation between seeds that it rests on."""
    assert entry.seed_deviation is not None and entry.error is not None, "a comparison over seeds"
    questions = question_error(entry.error, entry.seed_deviation, entry.seeds)
    numbers = sorted({*SEEDS, *(number for number in seeds if number >= MIN_SEEDS)})
    found = ", ".join(f"{n} seeds {detectable_difference(entry.seed_deviation, questions, n, level):.4f}" for n in numbers)
    low, high = deviation_interval(entry.seed_deviation, entry.seeds, level)
    deviation = f"deviation between seeds {entry.seed_deviation:.4f}, from {entry.seeds} seeds: {low:.4f} to {high:.4f}"
    return f"{entry.arm} - {entry.reference}: {found} ({deviation}; n = {entry.n:,})"
