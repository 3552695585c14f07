"""The words on the measures of a report: what each of them tells, and the guards that stand against a promotion. Pure."""

from __future__ import annotations

from ual_ray.config import BASE
from ual_ray.formatting import plural
from ual_ray.report.findings import Findings, get_nested
from ual_ray.report.table import CALIBRATED, CLUSTERED, NORMS, sentence
from ual_ray.stats.bootstrap import MIN_SEEDS, WORSE
from ual_ray.stats.comparison import Comparisons
from ual_ray.stats.metrics import LENGTH_CONTROLLED_WIN_RATE, METRICS, WIN_RATE

# In the repository: what was measured with enough training seeds.
RESULTS = "docs/results.md"


def unanswered(findings: Findings) -> str | None:
    """State that a run has too few training seeds for an answer, up to the name of the file that has one (RESULTS)."""
    seeds = max((findings.seeds.get(model, 1) for model in findings.models if model != BASE), default=MIN_SEEDS)
    if seeds >= MIN_SEEDS:
        return None
    return (
        f"{plural(seeds, 'training seed')} cannot tell whether uncertainty helps. `ual experiment CONFIG` measures it on your "
        "data; what was measured so far is in "
    )


def notes(findings: Findings) -> list[tuple[str, str]]:
    """List the label of every measure of a report, with what it tells and does not; measures of other programs have none."""
    there = {entry.metric for found in findings.metrics.values() for entry in found}
    there |= {entry.metric for entry in findings.comparisons.entries}
    there |= {WIN_RATE, LENGTH_CONTROLLED_WIN_RATE} if findings.win_rates else set()
    calibrated = [get_nested(found, "token", "raw") or {} for found in findings.calibration.values()]
    clustered = [get_nested(found, norm) or {} for found in findings.clusters.values() for norm in NORMS]
    for names, parts in ((CALIBRATED, calibrated), (CLUSTERED, clustered)):
        there |= {name for name in names for part in parts if part.get(name) is not None}
    return [(metric.label, metric.tells) for name, metric in METRICS.items() if name in there]


def absent_lines(comparisons: Comparisons) -> list[str]:
    """Word the primary measures that could not be computed, with the pairs of models that lack them, and why."""
    pairs: dict[tuple[str, str], list[str]] = {}
    for one in comparisons.absent:
        pairs.setdefault((one.measure, one.reason), []).append(f"{one.arm} - {one.reference}")
    return [f"{measure} is inconclusive for {', '.join(listed)}: {reason}." for (measure, reason), listed in pairs.items()]


def guard_lines(comparisons: Comparisons) -> list[str]:
    """Word the guards: every arm that is worse with certainty, or that none is, and those not tested; empty without one."""
    found = [entry for entry in comparisons.entries if entry.guard]
    if not found:
        return []
    labels = ", ".join(sorted({METRICS[entry.metric].label for entry in found}))
    lines = [f"Guard, not to be promoted: {sentence(entry)}" for entry in found if entry.verdict == WORSE]
    tested = {entry.arm for entry in found if entry.allows_a_verdict}
    if tested and not lines:
        lines.append(f"Guard, {labels}: no arm is worse with certainty than a model that it was compared with.")
    if missing := ", ".join(sorted({entry.arm for entry in comparisons.entries} - tested)):
        needed = f"{MIN_SEEDS} training seeds, and the calibration of an arm and of its reference"
        lines.append(f"Guard, {labels}: not tested for {missing}, as that needs {needed}.")
    return lines
