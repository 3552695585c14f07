"""What the trainings of an experiment show: means over seeds, and paired differences with their verdicts. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ual_ray.experiment.truth import Integers, Numbers, strata
from ual_ray.formatting import decimals, number
from ual_ray.stats.bootstrap import LEVEL, Verdict, bootstrap, holm, resampled_sums, verdict

KL, SCALED_KL, REGRET = "kl", "scaled_kl", "regret"
# By name: the column of the table. All of them are better when lower.
METRICS = {KL: "KL raw", SCALED_KL: "KL scaled", REGRET: "top-1 regret"}
# It compares the arms after the temperature that each of them is free to choose; chosen for that, but after the first runs.
PRIMARY = SCALED_KL
DIGITS = 4


@dataclass(frozen=True)
class Case:
    """One training: metrics of every test context, [test] each, their strata, the fitted temperature, seconds it took."""

    arm: str
    seed: int
    corruption: float
    values: dict[str, Numbers]
    strata: Integers
    temperature: float
    seconds: float

    def mean(self, metric: str, stratum: int | None = None) -> float:
        """Average a metric over the test contexts, of one stratum or of all."""
        values = self.values[metric]
        return float((values if stratum is None else values[self.strata == stratum]).mean())

    def summary(self) -> dict[str, Any]:
        """Return plain values: the means of all metrics, by stratum too."""
        means = {metric: self.mean(metric) for metric in METRICS}
        by_stratum = {
            name: {metric: self.mean(metric, place) for metric in METRICS if (self.strata == place).any()}
            for place, name in enumerate(strata_names())
        }
        own = {"arm": self.arm, "seed": self.seed, "corruption": self.corruption}
        return {**own, "temperature": self.temperature, "seconds": self.seconds, **means, "by_stratum": by_stratum}


@dataclass(frozen=True)
class Finding:
    """The difference `arm` - `reference` of a metric, over seeds; `p_holm` is `p_value` after Holm's step-down."""

    corruption: float
    metric: str
    arm: str
    reference: str
    difference: float
    ci_low: float
    ci_high: float
    p_value: float
    p_holm: float
    seeds: int
    verdict: Verdict


def compare(cases: Sequence[Case], corruption: float, arm: str) -> list[Finding]:
    """Compare an arm with every other one at a corruption, paired by seed and context.

    The family of Holm's correction is the references of one metric at one corruption.
    """
    found = []
    for metric in METRICS:
        own = values_of(cases, arm, corruption, metric)
        references = [name for name in arms(cases) if name != arm]
        estimates = []
        for reference in references:
            pairs = zip(own, values_of(cases, reference, corruption, metric), strict=True)
            # Every context has the weight 1.
            columns = np.stack(
                [part for mine, theirs in pairs for part in (mine, np.ones_like(mine), theirs, np.ones_like(mine))], axis=1
            )
            estimates.append(bootstrap(columns, resampled_sums(columns), LEVEL))
        adjusted = holm([estimate.p_value for estimate in estimates])
        for reference, estimate, p_holm in zip(references, estimates, adjusted.tolist(), strict=True):
            decided = verdict(estimate.difference, p_holm, "lower", len(own))
            numbers = (estimate.difference, estimate.ci_low, estimate.ci_high, estimate.p_value, p_holm)
            found.append(Finding(corruption, metric, arm, reference, *numbers, len(own), decided))
    return found


def values_of(cases: Iterable[Case], arm: str, corruption: float, metric: str) -> list[Numbers]:
    """List a metric of the test contexts per seed, in the order of the seeds."""
    chosen = [case for case in cases if (case.arm, case.corruption) == (arm, corruption)]
    return [case.values[metric] for case in sorted(chosen, key=lambda case: case.seed)]


def seed_means(cases: Iterable[Case], arm: str, corruption: float, metric: str) -> list[float]:
    """List the means of a metric per seed, in the order of the seeds."""
    return [float(values.mean()) for values in values_of(cases, arm, corruption, metric)]


def arms(cases: Iterable[Case]) -> list[str]:
    """List the arms in the order of the cases."""
    return [*dict.fromkeys(case.arm for case in cases)]


def corruptions(cases: Iterable[Case]) -> list[float]:
    """List the corruptions in the order of the cases."""
    return [*dict.fromkeys(case.corruption for case in cases)]


def strata_names() -> list[str]:
    """List the names of the strata by their numbers."""
    return [*strata(1)]


def tables(cases: Sequence[Case], findings: Sequence[Finding]) -> str:
    """Write the tables as Markdown, per corruption: the arms, their primary metric by stratum, and the comparisons."""
    parts = []
    for corruption in corruptions(cases):
        here = [case for case in cases if case.corruption == corruption]
        seeds = len({case.seed for case in here})
        parts += [
            f"## Corruption {corruption:g}",
            f"Mean over {seeds} seeds (standard deviation between seeds); lower is better.",
        ]
        parts.append(
            _table(["arm", *METRICS.values()], ([arm, *(_spread(here, arm, name) for name in METRICS)] for arm in arms(here)))
        )
        parts.append(f"{METRICS[PRIMARY]} by stratum:")
        rows = ([arm, *(_stratum_mean(here, arm, place) for place in range(len(strata_names())))] for arm in arms(here))
        parts.append(_table(["arm", *strata_names()], rows))
        parts.append(f"Comparisons, difference with its {LEVEL:.0%} interval over seeds; better = lower:")
        own = (finding for finding in findings if finding.corruption == corruption)
        parts.append(_table(["metric", "arms", "difference", "p (Holm)", "verdict"], map(_comparison, own)))
    return "\n\n".join(parts)


def _spread(cases: Sequence[Case], arm: str, metric: str) -> str:
    means = seed_means(cases, arm, cases[0].corruption, metric)
    spread = float(np.std(means, ddof=1)) if len(means) > 1 else None
    return f"{number(float(np.mean(means)), DIGITS)} ({number(spread, DIGITS)})"


def _stratum_mean(cases: Sequence[Case], arm: str, place: int) -> str:
    means = [case.mean(PRIMARY, place) for case in cases if case.arm == arm and (case.strata == place).any()]
    return number(float(np.mean(means)) if means else None, DIGITS)


def _comparison(finding: Finding) -> list[str]:
    digits = decimals(finding.ci_low, finding.ci_high, 0.0, DIGITS)
    value, low, high = (number(part, digits) for part in (finding.difference, finding.ci_low, finding.ci_high))
    return [
        METRICS[finding.metric],
        f"{finding.arm} - {finding.reference}",
        f"{value} [{low}, {high}]",
        number(finding.p_holm, DIGITS),
        finding.verdict,
    ]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))
