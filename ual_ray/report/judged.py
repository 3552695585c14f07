"""Verdicts from the deciding judge: win rates at equal lengths of every UAL arm, against controls first, then SFT. Pure.

The order is fixed before the results are known, so a later reference is only tested where all earlier ones were conclusive,
and no correction for several references is due. Several UAL arms are not corrected for one another.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ual_ray.report.findings import Findings, judged_key
from ual_ray.stats.bootstrap import BETTER, INCONCLUSIVE, MIN_SEEDS, WORSE, Verdict
from ual_ray.stats.comparison import MOST_CUT_DIFFERENCE, Role
from ual_ray.stats.metrics import CUT
from ual_ray.stats.results import Rate, WinRate, win_rates_of

OVERALL = "overall"
EVEN = 50.0
# References in the order in which they are tested; any other one comes last.
ORDER: tuple[Role, ...] = ("control", "sft", "base")


@dataclass(frozen=True)
class JudgedVerdict:
    """The verdict on an arm's win rate over all judged benchmarks; `reason`: why nothing was tested, None where it was."""

    rate: WinRate
    seeds: int
    verdict: Verdict
    reason: str | None

    def sentence(self) -> str:
        """Word the verdict, with its win rate in percent."""
        words = {BETTER: "is better than", WORSE: "is worse than", INCONCLUSIVE: "is inconclusive against"}[self.verdict]
        seeds = f"{self.seeds} training seed{'s' if self.seeds > 1 else ''}"
        why = f"; {self.reason}" if self.reason else ""
        pairs = f"{self.rate.valid or 0:,} of {self.rate.n or 0:,} pairs"
        return f"{self.rate.arm} {words} {self.rate.reference}: {rate_in_percent(self.rate.controlled)}, {pairs}, {seeds}{why}"


def rate_in_percent(rate: Rate) -> str:
    """Write a rate with its interval."""
    if rate.value is None or rate.low is None or rate.high is None:
        return "no win rate at equal lengths"
    return f"{rate.value:.1f}% [{rate.low:.1f}, {rate.high:.1f}]"


def judged_verdicts(findings: Findings) -> list[JudgedVerdict]:
    """Test every UAL arm's length-controlled win rate against 50%, reference after reference."""
    rates = [
        rate if findings.roles.get(rate.arm) == "ual" or findings.roles.get(rate.reference) != "ual" else mirrored(rate)
        for rate in win_rates_of(findings.win_rates)
        if rate.decides and rate.benchmark == OVERALL
    ]
    arms = [arm for arm in dict.fromkeys(rate.arm for rate in rates) if findings.roles.get(arm) == "ual"]
    return [verdict for arm in arms for verdict in _of_arm(findings, [rate for rate in rates if rate.arm == arm])]


def mirrored(rate: WinRate) -> WinRate:
    """Return the win rate of the reference against the arm: a pair is judged once, with either as the reference."""

    def turned(one: Rate) -> Rate:
        value, high, low = (None if number is None else 100 - number for number in (one.value, one.low, one.high))
        return Rate(value, low, high)

    return replace(
        rate,
        arm=rate.reference,
        reference=rate.arm,
        raw=turned(rate.raw),
        controlled=turned(rate.controlled),
        length=rate.reference_length,
        reference_length=rate.length,
    )


def _seeds(findings: Findings, rate: WinRate) -> int:
    """Count the training seeds whose answers were judged, which may be fewer than those that answered."""
    judged = findings.folders.get("judged", {})
    pairs = (judged_key(rate.arm, rate.reference), judged_key(rate.reference, rate.arm))
    return max(len(judged.get(pair, ())) for pair in pairs)


def _of_arm(findings: Findings, rates: list[WinRate]) -> list[JudgedVerdict]:
    def place(rate: WinRate) -> int:
        role = findings.roles.get(rate.reference)
        return ORDER.index(role) if role in ORDER else len(ORDER)

    found: list[JudgedVerdict] = []
    for rate in sorted(rates, key=place):
        seeds = _seeds(findings, rate)
        reason = _reason(findings, rate, seeds)
        if reason is None and any(earlier.verdict == INCONCLUSIVE for earlier in found):
            reason = f"not tested, as {found[-1].rate.reference} comes first"
        found.append(JudgedVerdict(rate, seeds, _verdict(rate.controlled) if reason is None else INCONCLUSIVE, reason))
    return found


def _verdict(rate: Rate) -> Verdict:
    assert rate.low is not None and rate.high is not None, "a rate without an interval has a reason"
    return BETTER if rate.low > EVEN else WORSE if rate.high < EVEN else INCONCLUSIVE


def _reason(findings: Findings, rate: WinRate, seeds: int) -> str | None:
    """State what forbids a verdict whatever the win rate is."""
    if rate.controlled.low is None or rate.controlled.high is None:
        return "nothing to test"
    if seeds < MIN_SEEDS:
        return f"a verdict needs {MIN_SEEDS} seeds"
    if not rate.benchmarks:
        return "judged by an older version, which did not record the benchmarks; run `ual run --rerun judge`"
    for benchmark in rate.benchmarks:
        cut = [_cut(findings, model, benchmark) for model in (rate.arm, rate.reference)]
        known = [share for share in cut if share is not None]
        if len(known) == 2 and abs(known[0] - known[1]) > MOST_CUT_DIFFERENCE:
            return f"{benchmark}: {known[0]:.0%} and {known[1]:.0%} of the answers were cut; raise max_new_tokens"
    return None


def _cut(findings: Findings, model: str, benchmark: str) -> float | None:
    values = (entry for entry in findings.metrics.get(model, []) if (entry.benchmark, entry.metric) == (benchmark, CUT))
    return next((entry.value for entry in values if entry.source == OVERALL), None)
