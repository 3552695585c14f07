"""The arms against their references, question by question: differences, intervals, Holm, and a verdict in words. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ual_ray import columns as col
from ual_ray.config import BASE
from ual_ray.config.evaluate import ADJUSTED_NLL
from ual_ray.config.names import HELD_OUT, NO_SMOOTHING
from ual_ray.config.registry import BASE_MAPS, MAPS
from ual_ray.stats.alignment import COLUMNS, Absent, Aligned, BySeed, absent_measures, align
from ual_ray.stats.bootstrap import (
    INCONCLUSIVE,
    LEVEL,
    MIN_SEEDS,
    RESAMPLES,
    Verdict,
    bootstrap,
    holm,
    is_bounded,
    resampled_sums,
    resamples_needed,
    shift_of_cut,
    verdict,
    widened,
)
from ual_ray.stats.metrics import (
    CUT,
    NLL,
    NLL_ADJUSTED,
    Numbers,
    by_benchmark,
    metric_of,
    scores,
)

Role = Literal["base", "sft", "control", "ual", "unknown"]
# A model is compared with those of a plainer role. Plain SFT is what UAL has to beat, a control tells uncertainty from mere
# smoothing, the untrained model is worse than all of them. The role is unknown where no map was recorded.
PLAINER: dict[Role, tuple[Role, ...]] = {
    "base": (),
    "sft": ("base",),
    "control": ("sft", "base"),
    "ual": ("sft", "control", "base"),
    "unknown": ("sft", "control", "base", "unknown"),
}
# What decides where no measures were recorded before the run. Not the NLL itself: a model that learnt labels smoothed by alpha
# gives up about alpha of every probability, which costs it NLL whatever it knows.
PRIMARY = (HELD_OUT, NLL_ADJUSTED)
UNRECORDED = (ADJUSTED_NLL,)
# Alphas that differ by less are one, up to rounding.
SAME_ALPHA = 1e-9
# Of the shares of cut answers: beyond it, a score measures how long answers are before how good they are.
MOST_CUT_DIFFERENCE = 0.05
MOST_CUT = 0.5
# Of the questions on which one of two models has a score in [0, 1]: the share on which one training may have none. Which ones
# these are may depend on the model, such as those whose answers failed, so a verdict holds whatever the missing scores are.
# Of a measure without bounds, such as a likelihood, none may be missing.
MOST_MISSING = 0.05


@dataclass(frozen=True)
class Comparison:
    """One arm against one reference: `difference` = arm - reference over the `n` questions that both answered, of `questions`.

    The interval is at the level of the comparisons; it and `p_value` hold whatever missing scores are. `p_holm` is `p_value`
    after the step-down over the family. Over several seeds there are `seed_deviation`, between them, and the standard error
    `error`. `exploratory`: a primary measure that was not reached in the order of tests. `reason`: why there is no verdict
    whatever the numbers are, None where there is one.
    """

    arm: str
    reference: str
    benchmark: str
    metric: str
    difference: float
    ci_low: float
    ci_high: float
    p_value: float
    p_holm: float
    verdict: Verdict
    n: int
    seeds: int
    primary: bool
    seed_deviation: float | None = None
    error: float | None = None
    exploratory: bool = False
    reason: str | None = None
    questions: int | None = None

    @property
    def guard(self) -> bool:
        """Whether an arm that is worse here is not promoted, whatever else it is better in."""
        return metric_of(self.metric).guard

    @property
    def allows_a_verdict(self) -> bool:
        """Whether it has the seeds that a verdict needs, and nothing forbids one."""
        return self.seeds >= MIN_SEEDS and self.reason is None


def described(measures: Sequence[str]) -> dict[str, Any]:
    """Describe primary measures, in their order, with a digest that changes with them."""
    return {"measures": [*measures], "digest": col.digest([*measures])}


@dataclass(frozen=True)
class Comparisons:
    """Comparisons, and how they were computed.

    primary: the measures that decide, in their order; chosen_after: they are not those that were recorded before the results.
    absent: those that could not be computed for two models, which are inconclusive.
    """

    entries: tuple[Comparison, ...]
    level: float
    resamples: int
    seed: int
    primary: tuple[str, ...] = UNRECORDED
    chosen_after: bool = False
    absent: tuple[Absent, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        entries = {"comparisons": [asdict(one) for one in self.entries], "absent": [asdict(one) for one in self.absent]}
        how = {"level": self.level, "resamples": self.resamples, "seed": self.seed}
        primary = described(self.primary) | {"chosen_after": self.chosen_after}
        return {**entries, **how, "primary": primary}

    @staticmethod
    def from_dict(content: Mapping[str, Any]) -> Comparisons:
        """Read what `as_dict` wrote."""
        return Comparisons(
            tuple(Comparison(**entry) for entry in content["comparisons"]),
            content["level"],
            content["resamples"],
            content["seed"],
            primary=tuple(content["primary"]["measures"]),
            chosen_after=content["primary"]["chosen_after"],
            absent=tuple(Absent(**one) for one in content["absent"]),
        )


@dataclass(frozen=True)
class _Pair:
    """What one comparison is computed from: the [questions, 2] of both models per seed, and the questions that all have."""

    arm: str
    reference: str
    benchmark: str
    metric: str
    mine: tuple[Numbers, ...]
    theirs: tuple[Numbers, ...]
    both: NDArray[np.bool_]
    primary: bool
    # Training seeds of which one of the two models alone has the metric.
    unpaired: tuple[int, ...] = ()
    # How far the difference may move where one model has more answers that were cut.
    shift: float = 0.0

    def columns(self) -> Numbers:
        """[n, seeds x 4] of value, weight, reference's value, reference's weight."""
        parts = [part for pair in zip(self.mine, self.theirs, strict=True) for part in pair]
        return np.hstack(parts)[self.both]

    def questions(self) -> int:
        """Count the questions on which a training has a value; those on which another one has none are not paired."""
        return int(np.logical_or.reduce([np.isfinite(part).all(axis=1) for part in (*self.mine, *self.theirs)]).sum())

    def bounded(self) -> bool:
        """Whether missing values are between known ends."""
        return is_bounded(self.metric, (*self.mine, *self.theirs))


def compare_models(
    results: Mapping[str, BySeed],
    roles: Mapping[str, Role] | None = None,
    tokens: Mapping[str, BySeed] | None = None,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
    primary: Sequence[str] = UNRECORDED,
    planned: int = 0,
) -> Comparisons:
    """Compare every arm with every reference of a plainer role, on every benchmark and score; rows pair by id.

    results: model -> training seed -> result rows (the columns COLUMNS). roles: by model; 'base' is the untrained model, others
    are unknown by default. tokens: model -> training seed -> rows of `columns.TOKEN_STATISTICS`, which the primary measure is
    computed from; they count as results of HELD_OUT. primary: the measures that decide, BENCHMARK.METRIC, in their order;
    `primary.settle` gives these comparisons their verdicts. planned: how many training seeds were planned before the results;
    fewer give no verdict, or who looks after every seed would find one by chance; nor do seeds of which one model alone has
    results, as those that diverged are the worst ones. Holm's families of the others are those
    between arms and those with the untrained model, guards apart from the rest, which would weaken them. More resamples are
    drawn than asked for where a family is so large that the smallest p-value would not survive it.
    """
    roles = {model: (roles or {}).get(model, "base" if model == BASE else "unknown") for model in results}
    cut, aligned = cut_shares(results), align(results, tokens or {})
    pairs = [_with_shift(pair, cut) for pair in _pairs(aligned, roles, primary)]
    compared = {(pair.arm, pair.reference, f"{pair.benchmark}.{pair.metric}") for pair in pairs}
    absent = absent_measures(aligned, pairs_of(roles), compared, primary)
    if not pairs:
        return Comparisons((), level, resamples, seed, tuple(primary), absent=absent)
    resamples = resamples_needed(len(pairs), level, resamples)
    found: dict[int, Comparison] = {}
    for places in _by_questions(pairs):
        found |= zip(places, _compare([pairs[place] for place in places], level, resamples, seed), strict=True)
    families: dict[tuple[bool, bool], list[int]] = {}
    for place, pair in enumerate(pairs):
        reason = cut_reason(*(cut.get((pair.benchmark, model)) for model in (pair.arm, pair.reference)))
        reason = reason or _missing_reason(pair) or _unfinished_reason(pair, planned) or _unpaired_reason(pair)
        found[place] = replace(found[place], reason=reason)
        if not pair.primary:
            family = roles[pair.reference] == "base", metric_of(pair.metric).guard
            families.setdefault(family, []).append(place)
    for places in families.values():
        for place, p_holm in zip(places, holm([found[place].p_value for place in places]), strict=True):
            found[place] = _judge(found[place], float(p_holm), level)
    entries = tuple(found[place] for place in range(len(pairs)))
    return Comparisons(entries, level, resamples, seed, tuple(primary), absent=absent)


def cut_shares(results: Mapping[str, BySeed]) -> dict[tuple[str, str], float]:
    """Average per (benchmark, model) over seeds the share of answers that reached max_new_tokens, in [0, 1], where known."""
    found: dict[tuple[str, str], list[float]] = {}
    for model, by_seed in results.items():
        for table in by_seed.values():
            for benchmark, rows in by_benchmark(table.select(COLUMNS)):
                if (values := scores(rows).get(CUT)) is not None:
                    found.setdefault((benchmark, model), []).append(float(np.nanmean(values)))
    return {key: float(np.mean(shares)) for key, shares in found.items()}


def _with_shift(pair: _Pair, cut: Mapping[tuple[str, str], float]) -> _Pair:
    mine, theirs = (cut.get((pair.benchmark, model)) for model in (pair.arm, pair.reference))
    return replace(pair, shift=shift_of_cut(pair.metric, mine, theirs))


def cut_reason(first: float | None, second: float | None) -> str | None:
    """Forbid a verdict on answers by their shares that were cut, None = not known: it would be one on their length."""
    if first is None or second is None:
        return None
    # Means over seeds of shares that are 5 points apart are so up to rounding.
    if round(abs(first - second), 9) > MOST_CUT_DIFFERENCE or max(first, second) > MOST_CUT:
        return f"{first:.0%} and {second:.0%} of the answers were cut; raise max_new_tokens"
    return None


def _missing_reason(pair: _Pair) -> str | None:
    """Forbid a verdict on the questions that are left where a training has no value on many."""
    tables = [*((pair.arm, part) for part in pair.mine), *((pair.reference, part) for part in pair.theirs)]
    known = {place: np.isfinite(part).all(axis=1) for place, (_, part) in enumerate(tables)}
    questions = pair.questions()
    least = min(known, key=lambda place: int(known[place].sum()))
    missing = questions - int(known[least].sum())
    if missing <= (MOST_MISSING * questions if pair.bounded() else 0):
        return None
    return f"{tables[least][0]} has no value on {missing:,} of {questions:,} questions; evaluate both on the same ones"


def _unfinished_reason(pair: _Pair, planned: int) -> str | None:
    seeds = len(pair.mine)
    return f"{seeds} of the {planned} training seeds that were planned" if MIN_SEEDS <= seeds < planned else None


def _unpaired_reason(pair: _Pair) -> str | None:
    """Forbid a verdict on the training seeds that are left: those that diverged or failed are not missing by chance."""
    seeds, listed = len(pair.mine), ", ".join(map(str, pair.unpaired))
    return f"the training seeds {listed} are there for one of the two only" if seeds >= MIN_SEEDS and pair.unpaired else None


def groups_of(entries: Sequence[Comparison]) -> list[list[Comparison]]:
    """Group what one scale can show: a metric of a benchmark; the differences from base dwarf the others, and are apart."""
    groups: dict[tuple[str, str, bool], list[Comparison]] = {}
    for entry in entries:
        groups.setdefault((entry.benchmark, entry.metric, entry.reference == BASE), []).append(entry)
    return list(groups.values())


def role_of(
    map_name: str | None, weight: str = "none", loss: str | None = None, alphas: tuple[float, float] | None = None
) -> Role:
    """Tell what an arm is for from its recorded map, weight and loss, never from its name; None where none was recorded.

    An arm under test is one that uses the rows' uncertainty as it is; another loss without it is a control. alphas: the least
    and the most, where known: one alpha for all rows is a constant, whatever map gave it, and one of 0 is plain training.
    """
    if map_name is None or map_name not in MAPS:
        return "unknown"
    low, high = alphas or (0.0, 1.0)
    if weight != "none" or (map_name in BASE_MAPS and high - low > SAME_ALPHA):
        return "ual"
    return "sft" if (map_name == NO_SMOOTHING or high <= SAME_ALPHA) and loss in (None, "sft") else "control"


def pairs_of(roles: Mapping[str, Role]) -> list[tuple[str, str]]:
    """List (arm, reference) by the models' roles: arms under test, then controls; all against base at the end.

    Models of unknown role are compared with each other too, the later with the earlier.
    """
    order, told = list(roles), list(PLAINER)[::-1]

    def references(arm: str) -> Iterator[str]:
        for plainer in PLAINER[roles[arm]]:
            before = order[: order.index(arm)] if plainer == roles[arm] else order
            yield from (name for name in before if roles[name] == plainer)

    pairs = [(arm, other) for arm in sorted(order, key=lambda name: told.index(roles[name])) for other in references(arm)]
    return sorted(pairs, key=lambda pair: roles[pair[1]] == "base")


def _pairs(aligned: Mapping[str, Mapping[str, Aligned]], roles: Mapping[str, Role], primary: Sequence[str]) -> Iterator[_Pair]:
    """Pair the models' aligned rows; a metric that is not measured for both models on one question gives no pair."""
    for benchmark in sorted(aligned, key=lambda name: (name != HELD_OUT, name)):
        models = aligned[benchmark]
        for arm, reference in pairs_of({name: role for name, role in roles.items() if name in models}):
            same = roles[reference] == "base"
            sides = models[arm], models[reference]
            yield from _pairs_of((arm, reference, benchmark), *sides, primary, same_under_all_seeds=same)


def _pairs_of(
    named: tuple[str, str, str], mine: Aligned, theirs: Aligned, primary: Sequence[str], *, same_under_all_seeds: bool
) -> Iterator[_Pair]:
    if same_under_all_seeds:
        theirs = {seed: theirs.get(seed, next(iter(theirs.values()))) for seed in mine}
    metrics = {metric for numbers in mine.values() for metric in numbers}
    for metric in sorted(metrics, key=lambda name: (name != PRIMARY[1], name != NLL, name)):
        sides = [{seed for seed, numbers in side.items() if metric in numbers} for side in (mine, theirs)]
        measured, unpaired = sorted(sides[0] & sides[1]), tuple(sorted(sides[0] ^ sides[1]))
        if not measured or metric_of(metric).direction is None:
            continue
        own, others = (tuple(side[seed][metric] for seed in measured) for side in (mine, theirs))
        both = np.logical_and.reduce([np.isfinite(part).all(axis=1) for part in (*own, *others)])
        if both.any():
            yield _Pair(*named, metric, own, others, both, f"{named[2]}.{metric}" in primary, unpaired)


def _by_questions(pairs: Sequence[_Pair]) -> list[list[int]]:
    """Group the pairs that rest on the same questions: they share their draws, which is quicker and no less right."""
    groups: dict[tuple[str, bytes], list[int]] = {}
    for place, pair in enumerate(pairs):
        groups.setdefault((pair.benchmark, np.packbits(pair.both).tobytes()), []).append(place)
    return list(groups.values())


def _compare(pairs: Sequence[_Pair], level: float, resamples: int, seed: int) -> Iterator[Comparison]:
    columns = [pair.columns() for pair in pairs]
    resampled = resampled_sums(np.hstack(columns), resamples, seed)
    start = 0
    for pair, own in zip(pairs, columns, strict=True):
        sums, start = resampled[:, start : start + own.shape[1]], start + own.shape[1]
        found = bootstrap(own, sums, level)
        questions = pair.questions()
        if (pair.shift or questions > found.n) and pair.bounded():
            found = widened(found, pair.mine, pair.theirs, pair.shift, level, resamples, seed)
        named = (pair.arm, pair.reference, pair.benchmark, pair.metric)
        others: dict[str, Any] = {"p_holm": found.p_value, "verdict": INCONCLUSIVE, "seeds": len(pair.mine)}
        yield Comparison(*named, **asdict(found) | others, primary=pair.primary, questions=questions)


def _judge(entry: Comparison, p_holm: float, level: float) -> Comparison:
    direction = metric_of(entry.metric).direction
    assert direction is not None, "a score without a direction is not compared"
    decided = verdict(entry.difference, p_holm, direction, entry.seeds, level) if entry.reason is None else INCONCLUSIVE
    return replace(entry, p_holm=p_holm, verdict=decided)
