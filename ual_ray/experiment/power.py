"""What more training seeds would show, from the variances that an experiment or its pilot measured."""

from __future__ import annotations

from rich.console import Console

from ual_ray.report.findings import Findings
from ual_ray.stats.bootstrap import MIN_SEEDS
from ual_ray.stats.comparison import Comparison
from ual_ray.stats.power import POWER, detectable_difference, question_error

SEEDS = (MIN_SEEDS, 5, 8, 12)


def print_power(findings: Findings, console: Console) -> None:
    """Print the smallest difference that each number of seeds would show, for every primary comparison over seeds."""
    entries = [entry for entry in findings.comparisons.entries if entry.primary and entry.seed_deviation is not None]
    if not entries:
        return
    console.print(
        f"Smallest true difference that would be conclusive in {POWER:.0%} of experiments, before Holm's correction, in nats "
        "per token:",
        highlight=False,
    )
    for entry in entries:
        console.print(f"  {power_line(entry, findings.comparisons.level)}", highlight=False, markup=False)


def power_line(entry: Comparison, level: float) -> str:
    """Word one comparison's power."""
    assert entry.seed_deviation is not None and entry.error is not None, "a comparison over seeds"
    questions = question_error(entry.error, entry.seed_deviation, entry.seeds)
    found = ", ".join(f"{n} seeds {detectable_difference(entry.seed_deviation, questions, n, level):.4f}" for n in SEEDS)
    return f"{entry.arm} - {entry.reference}: {found} (deviation between seeds {entry.seed_deviation:.4f}, n = {entry.n:,})"
