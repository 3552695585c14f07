"""The results of all models in one order of questions, and which of them are the same results twice. Pure.

Primary measures of which two models have no comparison are inconclusive, for a stated reason, and not left out.
"""

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute

from ual_ray import columns as col
from ual_ray.config import BASE
from ual_ray.config.evaluate import WIN_RATE
from ual_ray.config.names import HELD_OUT
from ual_ray.errors import UserError
from ual_ray.stats.metrics import BRIER_OF_TOKENS, NLL, NLL_ADJUSTED, NLL_SCALED, Numbers, by_benchmark, likelihoods, scores
from ual_ray.stats.results import token_sums

# The columns of the result rows that a comparison reads, without texts.
COLUMNS = (col.ID, col.BENCHMARK, col.SOURCE, col.SCORES, col.NLL_SUM, col.TARGET_TOKENS)
# Measures of which two trainings never have the same numbers.
LIKELIHOODS = frozenset((NLL, NLL_ADJUSTED, NLL_SCALED, BRIER_OF_TOKENS))

# One arm's results by training seed; a model that was not trained has the same under every seed.
BySeed = Mapping[int, pa.Table]
# Of one model on one benchmark: training seed -> metric -> [questions, 2] of value and weight, NaN where it is missing.
Aligned = dict[int, dict[str, Numbers]]
NOBODY = "no model has it"
LEFT_OUT = "there are results of it here that are not in the report, as where the configuration asks for them no more; "
LEFT_OUT += "it counts in the correction"


def align(results: Mapping[str, BySeed], tokens: Mapping[str, BySeed]) -> dict[str, dict[str, Aligned]]:
    """Bring every model's numbers into one order of questions per benchmark: benchmark -> model -> numbers.

    Token statistics count as results of HELD_OUT. Raises UserError for results that have a question twice.
    """
    parts: dict[str, list[tuple[str, int, pa.Array, dict[str, Numbers]]]] = {}
    for model in dict.fromkeys([*results, *tokens]):
        for training_seed in dict.fromkeys([*results.get(model, {}), *tokens.get(model, {})]):
            measured = _measured(model, training_seed, results.get(model, {}), tokens.get(model, {}))
            for benchmark, ids, numbers in measured:
                parts.setdefault(benchmark, []).append((model, training_seed, ids, numbers))
    found: dict[str, dict[str, Aligned]] = {}
    for benchmark, ours in parts.items():
        questions = pa.compute.unique(pa.chunked_array([ids for _, _, ids, _ in ours]))
        questions = questions.take(pa.compute.sort_indices(questions))
        for model, training_seed, ids, numbers in ours:
            aligned = found.setdefault(benchmark, {}).setdefault(model, {}).setdefault(training_seed, {})
            aligned |= _ordered(numbers, ids, questions)
    return found


def _measured(
    model: str, training_seed: int, results: BySeed, tokens: BySeed
) -> Iterator[tuple[str, pa.Array, dict[str, Numbers]]]:
    """Yield the benchmark, the questions and the numbers of one training's results, then of its token statistics."""
    if training_seed in results:
        for benchmark, rows in by_benchmark(results[training_seed].select(COLUMNS)):
            ids = rows[col.ID].combine_chunks()
            if repeated := len(ids) - len(ids.unique()):
                raise UserError(
                    f"the results of '{model}' on {benchmark} have questions twice, with the training seed {training_seed}",
                    got=f"{repeated} repeated ids among {len(ids)} rows",
                    expected="one row for each question, or it would count twice",
                    fix="remove copied files from the folder of the results, or `ual run --rerun evaluate`",
                )
            yield benchmark, ids, _numbers(rows)
    if training_seed in tokens:
        yield HELD_OUT, *token_sums(tokens[training_seed])


def _numbers(rows: pa.Table) -> dict[str, Numbers]:
    return {
        NLL: np.column_stack(likelihoods(rows)),
        **{name: np.column_stack([values, np.ones(len(values))]) for name, values in scores(rows).items()},
    }


def _ordered(numbers: Mapping[str, Numbers], ids: pa.Array, questions: pa.Array) -> dict[str, Numbers]:
    """Bring a model's numbers into the order of the questions; one that it did not answer is NaN."""
    found = pa.compute.index_in(questions, value_set=ids)
    place = found.fill_null(0).to_numpy(zero_copy_only=False)
    missing = found.is_null().to_numpy(zero_copy_only=False)
    ordered = {name: values[place] for name, values in numbers.items()}
    for values in ordered.values():
        values[missing] = np.nan
    return ordered


def copied_seeds(
    results: Mapping[str, BySeed], tokens: Mapping[str, BySeed], models: Mapping[str, Mapping[int, str]] | None = None
) -> dict[str, dict[int, int]]:
    """Find the training seeds of a model that have the results of an earlier one: model -> seed -> the earlier seed.

    Two trainings never have the same likelihoods, while their few right answers may be the same. So a copy is a seed all of
    whose likelihoods, of the benchmarks that both seeds have, are the earlier seed's in every question; one that tells nothing,
    as it is alike in all questions, does not count. models: digests of the models that answered, by name and seed, as far as
    known; seeds with one digest are copies, whatever was measured. The model before training is the same under every seed.
    """
    found: dict[str, dict[int, int]] = {}
    for model in dict.fromkeys([*results, *tokens]):
        own, counted = results.get(model, {}), tokens.get(model, {})
        known: dict[int, dict[tuple[str, str], str]] = {}
        answered = (models or {}).get(model, {})
        for training_seed in dict.fromkeys([*own, *counted]) if model != BASE else ():
            marks = _marks(_measured(model, training_seed, own, counted))
            for earlier, theirs in known.items():
                shared = marks.keys() & theirs.keys()
                one = training_seed in answered and answered[training_seed] == answered.get(earlier)
                if one or (shared and all(marks[name] == theirs[name] for name in shared)):
                    found.setdefault(model, {})[training_seed] = earlier
                    break
            else:
                known[training_seed] = marks
    return found


def _marks(measured: Iterable[tuple[str, pa.Array, dict[str, Numbers]]]) -> dict[tuple[str, str], str]:
    """Hash each likelihood by benchmark and metric, whatever the order of the rows."""
    marks = {}
    for benchmark, ids, numbers in measured:
        order = pa.compute.sort_indices(ids).to_numpy()
        names = "\0".join(ids.take(order).to_pylist()).encode()
        for metric in LIKELIHOODS & numbers.keys():
            values = numbers[metric]
            known = values[np.isfinite(values).all(axis=1)]
            if len(known) > 1 and np.ptp(known[:, 0] / known[:, 1]) > 0:
                # All missing values are one.
                content = np.where(np.isnan(values), np.nan, values)[order].tobytes()
                marks[benchmark, metric] = hashlib.sha256(names + content).hexdigest()
    return marks


@dataclass(frozen=True)
class Absent:
    """A primary measure that could not be computed for an arm and a reference, and why."""

    arm: str
    reference: str
    measure: str
    reason: str


def absent_measures(
    aligned: Mapping[str, Mapping[str, Aligned]],
    pairs: Iterable[tuple[str, str]],
    compared: Collection[tuple[str, str, str]],
    primary: Sequence[str],
) -> tuple[Absent, ...]:
    """List the primary measures, apart from win rates, that pairs lack; compared: (arm, reference, measure) of those there."""
    lacking = [(arm, reference, name) for arm, reference in pairs for name in primary if name != WIN_RATE]
    return tuple(Absent(*one, _reason(aligned, *one)) for one in lacking if one not in compared)


def _reason(aligned: Mapping[str, Mapping[str, Aligned]], arm: str, reference: str, measure: str) -> str:
    benchmark, _, metric = measure.rpartition(".")
    models = aligned.get(benchmark, {})
    values = {
        model: {seed: numbers[metric] for seed, numbers in by_seed.items() if metric in numbers}
        for model, by_seed in models.items()
    }
    if not any(values.values()):
        return NOBODY
    mine, theirs = (values.get(model, {}) for model in (arm, reference))
    if without := [model for model, own in ((arm, mine), (reference, theirs)) if not own]:
        return f"{' and '.join(without)} {'has' if len(without) == 1 else 'have'} no values of it"
    if reference != BASE and not mine.keys() & theirs.keys():
        listed = (", ".join(map(str, sorted(own))) for own in (mine, theirs))
        return "no training seed is there for both: {} of {}, {} of {}".format(
            *(part for pair in zip(listed, (arm, reference), strict=True) for part in pair)
        )
    counts = (f"{_answered(own.values()):,} of {model}" for model, own in ((arm, mine), (reference, theirs)))
    return f"no question has values of every training of both, with {' and '.join(counts)}; evaluate both on the same ones"


def _answered(values: Iterable[Numbers]) -> int:
    """Count the questions on which a training of a model has a value."""
    return int(np.logical_or.reduce([np.isfinite(part).all(axis=1) for part in values]).sum())
