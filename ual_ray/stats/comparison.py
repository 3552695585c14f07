"""The arms against their references, question by question: differences, intervals, Holm, and a verdict in words. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

from ual_ray import columns as col
from ual_ray.config import BASE
from ual_ray.config.names import CONSTANT, HELD_OUT, SFT, SHUFFLED
from ual_ray.stats.bootstrap import (
    INCONCLUSIVE,
    LEVEL,
    RESAMPLES,
    Verdict,
    bootstrap,
    holm,
    resampled_sums,
    resamples_needed,
    verdict,
)
from ual_ray.stats.metrics import NLL, Numbers, by_benchmark, likelihoods, metric_of, scores

# Plain SFT is what UAL has to beat; the shuffled control is what tells uncertainty from mere smoothing, and constant
# smoothing what tells a smoothing of its own per row from any. The untrained model comes last: it is below all of them.
REFERENCES = (SFT, SHUFFLED, CONSTANT, BASE)
# Named before any run: unsmoothed NLL on the held-out rows.
PRIMARY = (HELD_OUT, NLL)
# As reports of version 0.1.0 name them.
OLD_VERDICTS = {"cannot tell": INCONCLUSIVE}
# The columns of the result rows that a comparison reads, without texts.
COLUMNS = (col.ID, col.BENCHMARK, col.SOURCE, col.SCORES, col.NLL_SUM, col.TARGET_TOKENS)

# One arm's results by training seed; a model that was not trained has the same under every seed.
BySeed = Mapping[int, pa.Table]


@dataclass(frozen=True)
class Comparison:
    """One arm against one reference: `difference` = arm - reference over the `n` questions that both answered.

    The interval is at the level of the comparisons; `p_holm` is `p_value` after the step-down over the family.
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


@dataclass(frozen=True)
class Comparisons:
    """A family of comparisons, and how it was computed."""

    entries: tuple[Comparison, ...]
    level: float
    resamples: int
    seed: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        entries = [asdict(entry) for entry in self.entries]
        how = {"level": self.level, "resamples": self.resamples, "seed": self.seed, "family": len(entries)}
        return {"comparisons": entries, **how, "primary": {"benchmark": PRIMARY[0], "metric": PRIMARY[1]}}

    @staticmethod
    def from_dict(content: Mapping[str, Any]) -> Comparisons:
        """Read what `as_dict` wrote."""
        entries = [dict(entry) for entry in content["comparisons"]]
        for entry in entries:
            entry["verdict"] = OLD_VERDICTS.get(entry["verdict"], entry["verdict"])
        return Comparisons(
            tuple(Comparison(**entry) for entry in entries), content["level"], content["resamples"], content["seed"]
        )


# Of one model on one benchmark: training seed -> metric -> [questions, 2] of value and weight, NaN where it is missing.
_Aligned = dict[int, dict[str, Numbers]]


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

    def columns(self) -> Numbers:
        """[n, seeds x 4] of value, weight, reference's value, reference's weight."""
        parts = [part for pair in zip(self.mine, self.theirs, strict=True) for part in pair]
        return np.hstack(parts)[self.both]


def compare_models(
    results: Mapping[str, BySeed], level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> Comparisons:
    """Compare every arm with every reference there is, on every benchmark and score; rows pair by id.

    results: model -> training seed -> result rows (the columns COLUMNS). More resamples are drawn than asked for where the
    family is so large that the smallest p-value would not survive it.
    """
    pairs = list(_pairs(results))
    if not pairs:
        return Comparisons((), level, resamples, seed)
    resamples = resamples_needed(len(pairs), level, resamples)
    found: dict[int, Comparison] = {}
    for places in _by_questions(pairs):
        found |= zip(places, _compare([pairs[place] for place in places], level, resamples, seed), strict=True)
    adjusted = holm([found[place].p_value for place in range(len(pairs))])
    entries = tuple(_judge(found[place], float(p_holm), level) for place, p_holm in enumerate(adjusted))
    return Comparisons(entries, level, resamples, seed)


def groups_of(entries: Sequence[Comparison]) -> list[list[Comparison]]:
    """Group what one scale can show: a metric of a benchmark; the differences from base dwarf the others, and are apart."""
    groups: dict[tuple[str, str, bool], list[Comparison]] = {}
    for entry in entries:
        groups.setdefault((entry.benchmark, entry.metric, entry.reference == BASE), []).append(entry)
    return list(groups.values())


def references_of(arm: str, models: Sequence[str]) -> list[str]:
    """Name the models that an arm is compared with: those that come before it, so that no pair is compared twice."""
    order = {name: place for place, name in enumerate((BASE, *(name for name in REFERENCES if name != BASE)))}
    last = len(order)
    return [name for name in REFERENCES if name in models and order[name] < order.get(arm, last)]


def pairs_of(models: Sequence[str]) -> list[tuple[str, str]]:
    """List (arm, reference) in the order they are told: arms under test, then the controls; all against base at the end."""
    arms = sorted(
        (name for name in models if name != BASE), key=lambda name: REFERENCES[::-1].index(name) if name in REFERENCES else -1
    )
    pairs = [(arm, reference) for arm in arms for reference in references_of(arm, models)]
    return sorted(pairs, key=lambda pair: pair[1] == BASE)


def _pairs(results: Mapping[str, BySeed]) -> Iterator[_Pair]:
    """Align the models' rows by question; a metric that is not measured for both models gives no pair."""
    aligned = _align(results)
    for benchmark in sorted(aligned, key=lambda name: (name != PRIMARY[0], name)):
        models = aligned[benchmark]
        for arm, reference in pairs_of(list(models)):
            yield from _pairs_of(arm, reference, benchmark, models[arm], models[reference])


def _pairs_of(arm: str, reference: str, benchmark: str, mine: _Aligned, theirs: _Aligned) -> Iterator[_Pair]:
    if reference == BASE:
        theirs = {seed: theirs.get(seed, next(iter(theirs.values()))) for seed in mine}
    seeds = sorted(set(mine) & set(theirs))
    metrics = {metric for seed in seeds for metric in mine[seed]}
    for metric in sorted(metrics, key=lambda name: (name != NLL, name)):
        measured = [seed for seed in seeds if metric in mine[seed] and metric in theirs[seed]]
        if not measured or metric_of(metric).direction is None:
            continue
        own, others = (tuple(side[seed][metric] for seed in measured) for side in (mine, theirs))
        both = np.logical_and.reduce([np.isfinite(part).all(axis=1) for part in (*own, *others)])
        if both.any():
            yield _Pair(arm, reference, benchmark, metric, own, others, both)


def _align(results: Mapping[str, BySeed]) -> dict[str, dict[str, _Aligned]]:
    """Bring every model's numbers into one order of questions per benchmark: benchmark -> model -> numbers."""
    tables: dict[str, dict[tuple[str, int], pa.Table]] = {}
    for model, by_seed in results.items():
        for training_seed, table in by_seed.items():
            for benchmark, rows in by_benchmark(table.select(COLUMNS)):
                tables.setdefault(benchmark, {})[model, training_seed] = rows
    found: dict[str, dict[str, _Aligned]] = {}
    for benchmark, parts in tables.items():
        questions = pa.compute.unique(pa.chunked_array([chunk for rows in parts.values() for chunk in rows[col.ID].chunks]))
        questions = questions.take(pa.compute.sort_indices(questions))
        for (model, training_seed), rows in parts.items():
            found.setdefault(benchmark, {}).setdefault(model, {})[training_seed] = _numbers(rows, questions)
    return found


def _numbers(rows: pa.Table, questions: pa.Array) -> dict[str, Numbers]:
    """Read a model's numbers in the order of the questions; one that it did not answer is NaN."""
    found = pa.compute.index_in(questions, value_set=rows[col.ID].combine_chunks())
    place = found.fill_null(0).to_numpy(zero_copy_only=False)
    missing = found.is_null().to_numpy(zero_copy_only=False)
    columns = {NLL: np.column_stack(likelihoods(rows))}
    columns |= {name: np.column_stack([values, np.ones(len(values))]) for name, values in scores(rows).items()}
    ordered = {name: values[place] for name, values in columns.items()}
    for values in ordered.values():
        values[missing] = np.nan
    return ordered


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
        found = bootstrap(own, sums, level, seed)
        named = (pair.arm, pair.reference, pair.benchmark, pair.metric)
        primary = (pair.benchmark, pair.metric) == PRIMARY
        seeds = len(pair.mine)
        yield Comparison(*named, **asdict(found), p_holm=found.p_value, verdict=INCONCLUSIVE, seeds=seeds, primary=primary)


def _judge(entry: Comparison, p_holm: float, level: float) -> Comparison:
    direction = metric_of(entry.metric).direction
    assert direction is not None, "a score without a direction is not compared"
    return replace(entry, p_holm=p_holm, verdict=verdict(entry.difference, p_holm, direction, level))
