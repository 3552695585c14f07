"""Verdicts from the deciding judge: win rates at equal lengths of every UAL arm, against controls first, then SFT. Pure.

The order is fixed before the results are known, so SFT is only tested where the win rates against all controls were
conclusive. Several controls, and several UAL arms, are corrected for one another (`stats.sequence`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from scipy import special

from ual_ray.config.evaluate import WIN_RATE
from ual_ray.config.names import OVERALL
from ual_ray.formatting import plural
from ual_ray.report.findings import Findings, judged_key
from ual_ray.report.table import rate_text
from ual_ray.stats.alignment import LEFT_OUT, NOBODY, Absent
from ual_ray.stats.bootstrap import BETTER, INCONCLUSIVE, MIN_SEEDS, WORSE, Verdict
from ual_ray.stats.comparison import MOST_MISSING, Comparisons, Role, cut_reason, pairs_of
from ual_ray.stats.metrics import CUT
from ual_ray.stats.primary import settle
from ual_ray.stats.results import EVEN, Rate, WinRate, win_rates_of

# Of the pairs in which one model's answer is the longer one: beyond it, next to none is of equal lengths, and the fit goes on
# beyond the lengths that it has seen. Without an effect, 0.8 of 805 pairs gave 52% and no verdict, 0.9
# gave 57% and a verdict in half of the simulations with 8 seeds, 0.95 gave 63% and one in all.
MOST_LONGER = 0.85
# References in the order in which they are tested; any other one comes last.
ORDER: tuple[Role, ...] = ("control", "sft", "base")
# Roles of the arms and references whose win rates should be known where these decide.
TESTED = (("ual", "control"), ("ual", "sft"))
NOT_JUDGED = "their answers were not judged against each other; judge.against names what all are judged against"


@dataclass(frozen=True)
class JudgedVerdict:
    """The verdict on an arm's win rate over all judged benchmarks; `reason`: why nothing was tested, None where it was.

    `p_value` is two-sided, 1 where nothing was tested; `p_holm` is after the correction over steps and arms.
    """

    rate: WinRate
    seeds: int
    p_value: float
    reason: str | None
    p_holm: float = 1.0
    verdict: Verdict = INCONCLUSIVE

    def is_lost(self, level: float) -> bool:
        """Whether the arm is worse; one that was not reached in the order of tests counts by its own p-value at the level."""
        if self.reason is None:
            return self.verdict == WORSE
        high = self.rate.controlled.high
        return high is not None and high < EVEN and self.p_value <= 1 - level

    def sentence(self) -> str:
        """Word the verdict, with its win rate in percent, and why there is none."""
        return f"{self.finding()}{f'; {self.reason}' if self.reason else ''}"

    def finding(self) -> str:
        """Word the verdict, with its win rate in percent."""
        words = {BETTER: "is better than", WORSE: "is worse than", INCONCLUSIVE: "is inconclusive against"}[self.verdict]
        seeds = plural(self.seeds, "training seed")
        pairs = f"{self.rate.valid or 0:,} of {plural(self.rate.n or 0, 'pair')}"
        return f"{self.rate.arm} {words} {self.rate.reference}: {rate_in_percent(self.rate.controlled)}, {pairs}, {seeds}"


def rate_in_percent(rate: Rate) -> str:
    """Write a rate with its interval."""
    if rate.value is None or rate.low is None or rate.high is None:
        return "no win rate at equal lengths"
    return rate_text(rate, "%")


def judged_verdicts(findings: Findings) -> list[JudgedVerdict]:
    """Test every UAL arm's length-controlled win rate against 50%, reference after reference."""
    chains = judged_chains(findings)
    comparisons = findings.comparisons
    if WIN_RATE not in comparisons.primary:  # a family of its own
        comparisons = replace(comparisons, entries=(), primary=(WIN_RATE,), chosen_after=False)
    _, tested = settle(comparisons, findings.roles, _p_values(chains))
    decided = []
    for arm, chain in chains.items():
        gate: JudgedVerdict | None = None
        for step, own in zip(chain, tested[arm], strict=True):
            closed = f"not tested, as {gate.rate.reference} comes first" if gate else own.closed
            found = [_decide(one, p, findings, closed) for one, p in zip(step, own.p_values, strict=True)]
            gate = gate or next((one for one in found if one.verdict == INCONCLUSIVE), None)
            decided += found
    return decided


def settled(findings: Findings) -> Comparisons:
    """Give the primary comparisons their verdicts, in their order with the win rates; name the pairs that were not judged."""
    compared = findings.comparisons
    compared = replace(compared, absent=(*compared.absent, *_not_judged(findings)))
    return settle(compared, findings.roles, _p_values(judged_chains(findings)))[0]


def _not_judged(findings: Findings) -> list[Absent]:
    """List the UAL arms and their references, apart from the untrained model, that lack the win rates which should decide."""
    if WIN_RATE not in findings.comparisons.primary:
        return []
    judged = {frozenset((rate.arm, rate.reference)) for rate in _deciding(findings)}
    told = {(one.arm, one.reference) for one in findings.comparisons.absent if one.reason == LEFT_OUT}
    there = {model: role for model, role in findings.roles.items() if model in findings.seeds}
    pairs = [(arm, other) for arm, other in pairs_of(there) if (there[arm], there[other]) in TESTED]
    reason = NOT_JUDGED if judged else NOBODY
    left = [pair for pair in pairs if frozenset(pair) not in judged and pair not in told]
    return [Absent(arm, other, WIN_RATE, reason) for arm, other in left]


def _p_values(chains: Mapping[str, Sequence[Sequence[JudgedVerdict]]]) -> dict[str, list[list[float]]]:
    return {arm: [[one.p_value for one in step] for step in chain] for arm, chain in chains.items()}


def judged_chains(findings: Findings) -> dict[str, list[list[JudgedVerdict]]]:
    """List per UAL arm what is tested, in steps: controls at once, then SFT, then others; without a verdict yet."""
    rates = [(_with_ual_first(rate, findings.roles), _seeds(findings, rate)) for rate in _deciding(findings)]
    chains = {}
    for arm in dict.fromkeys(rate.arm for rate, _ in rates if findings.roles.get(rate.arm) == "ual"):
        steps: dict[int, list[JudgedVerdict]] = {}
        for rate, seeds in rates:
            if rate.arm == arm:
                steps.setdefault(_place(findings, rate), []).append(_test(findings, rate, seeds))
        chains[arm] = [steps[place] for place in sorted(steps)]
    return chains


def _deciding(findings: Findings) -> list[WinRate]:
    """List the deciding judge's win rates over all benchmarks."""
    return [rate for rate in win_rates_of(findings.win_rates) if rate.decides and rate.benchmark == OVERALL]


def _place(findings: Findings, rate: WinRate) -> int:
    role = findings.roles.get(rate.reference)
    return ORDER.index(role) if role in ORDER else len(ORDER)


def _with_ual_first(rate: WinRate, roles: Mapping[str, Role]) -> WinRate:
    return mirrored(rate) if roles.get(rate.reference) == "ual" and roles.get(rate.arm) != "ual" else rate


def mirrored(rate: WinRate) -> WinRate:
    """Return the win rate of the reference against the arm: a pair is judged once, with either as the reference."""

    def turned(one: Rate) -> Rate:
        value, high, low = (None if number is None else 100 - number for number in (one.value, one.low, one.high))
        return replace(one, value=value, low=low, high=high)

    return replace(
        rate,
        arm=rate.reference,
        reference=rate.arm,
        raw=turned(rate.raw),
        controlled=turned(rate.controlled),
        length=rate.reference_length,
        reference_length=rate.length,
        longer=None if rate.longer is None else 1 - rate.longer,
    )


def _seeds(findings: Findings, rate: WinRate) -> int:
    """Count the training seeds whose answers were judged as this rate has them, which may be fewer than those that answered.

    Those of a judging the other way round are another rate's.
    """
    return len(findings.folders.get("judged", {}).get(judged_key(rate.arm, rate.reference), ()))


def _test(findings: Findings, rate: WinRate, seeds: int) -> JudgedVerdict:
    reason = _reason(findings, rate, seeds)
    p_value = 1.0 if reason else two_sided(rate, seeds, findings.comparisons.level, _unknown(findings, rate))
    return JudgedVerdict(rate, seeds, p_value, reason)


def _unknown(findings: Findings, rate: WinRate) -> float:
    """Return how many points of its lead a win rate may owe to what is not known.

    As if every pair without a verdict were for the model that is behind, and as many pairs as it has more answers cut.
    """
    value = rate.controlled.value or 0.0
    ahead, behind = (rate.arm, rate.reference) if value > EVEN else (rate.reference, rate.arm)
    missing = 1 - (rate.valid or 0) / rate.n if rate.n else 0.0
    cut = [[_cut(findings, model, benchmark) or 0.0 for model in (behind, ahead)] for benchmark in rate.benchmarks]
    return missing * max(value, 100 - value) + 100 * max((max(0.0, more - less) for more, less in cut), default=0.0)


def two_sided(rate: WinRate, seeds: int, level: float, unknown: float = 0.0) -> float:
    """Return the p-value of a win rate over training seeds against 50%, from its t interval with seeds - 1 degrees of freedom.

    unknown: points of its lead that do not count. Never below 2^(1 - valid pairs), as that of a comparison. An end at 0 or 100
    may be cut off, so the longer side counts.
    """
    value, low, high = rate.controlled.value, rate.controlled.low, rate.controlled.high
    assert value is not None and low is not None and high is not None, "a rate without an interval has a reason"
    margin, lead = max(high - value, value - low), max(0.0, abs(value - EVEN) - unknown)
    freedom = seeds - 1
    in_errors = float(special.stdtrit(freedom, (1 + level) / 2)) * lead / margin if margin > 0 else float("inf")
    p_value = 2 * float(special.stdtr(freedom, -in_errors)) if lead > 0 else 1.0
    return min(1.0, max(p_value, 2.0 ** (1 - (rate.valid or 0))))


def _decide(one: JudgedVerdict, p_holm: float, findings: Findings, closed: str | None) -> JudgedVerdict:
    if one.reason is None and closed is not None:
        return replace(one, p_holm=p_holm, reason=closed)
    rate = one.rate.controlled
    if one.reason is not None or p_holm > 1 - findings.comparisons.level or rate.low is None or rate.high is None:
        return replace(one, p_holm=p_holm)
    # An interval that touches 50% never comes with a verdict, whatever the p-value is rounded to.
    verdict: Verdict = BETTER if rate.low > EVEN else WORSE if rate.high < EVEN else INCONCLUSIVE
    return replace(one, p_holm=p_holm, verdict=verdict)


def _reason(findings: Findings, rate: WinRate, seeds: int) -> str | None:
    """State what forbids a verdict whatever the win rate is."""
    if rate.controlled.low is None or rate.controlled.high is None:
        return "nothing to test"
    trained = [findings.seeds.get(model, 0) for model in (rate.arm, rate.reference)]
    if seeds < (needed := max(MIN_SEEDS, findings.planned_seeds, *trained)):
        return f"a verdict needs {needed} seeds"
    if not rate.benchmarks or rate.longer is None:
        return "judged by an older version, which did not record benchmarks or lengths; run `ual run --rerun judge`"
    if abs(rate.longer - 0.5) > MOST_LONGER - 0.5:
        side = rate.arm if rate.longer > 0.5 else rate.reference
        return f"the answers of {side} are almost always the longer ones, so a rate at equal lengths is a guess"
    if rate.n and (missing := rate.n - (rate.valid or 0)) > MOST_MISSING * rate.n:
        return f"{missing:,} of {rate.n:,} pairs have no verdict of the judge, which may depend on their answers"
    for benchmark in rate.benchmarks:
        if reason := cut_reason(*(_cut(findings, model, benchmark) for model in (rate.arm, rate.reference))):
            return f"{benchmark}: {reason}"
    return None


def _cut(findings: Findings, model: str, benchmark: str) -> float | None:
    values = (entry for entry in findings.metrics.get(model, []) if (entry.benchmark, entry.metric) == (benchmark, CUT))
    return next((entry.value for entry in values if entry.source == OVERALL), None)
