"""Samples of lm-evaluation-harness as result rows, so that its tasks are compared question by question like benchmarks. Pure.

A benchmark is a task or a group as it was asked for; the rows of a group name their subtask as source. A score of a row is
kept only if the harness's figure of the task is its mean: others, such as F1 or instruction-level accuracy, have no value per
question.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from numbers import Real
from typing import Any, SupportsFloat, TypeGuard

import numpy as np

from ual_ray import columns as col
from ual_ray.columns import Message, digest
from ual_ray.stats.metrics import (
    ACCURACY,
    ACCURACY_NORMALISED,
    EXACT_MATCH,
    EXACT_MATCH_FLEXIBLE,
    EXACT_MATCH_STRICT,
    PROMPTS_LOOSE,
    PROMPTS_STRICT,
    Direction,
    directed,
)

# Its names, metric and filter, for what has a name here.
NAMES = {
    "exact_match,none": EXACT_MATCH,
    "exact_match,strict-match": EXACT_MATCH_STRICT,
    "exact_match,flexible-extract": EXACT_MATCH_FLEXIBLE,
    "acc,none": ACCURACY,
    "acc_norm,none": ACCURACY_NORMALISED,
    "prompt_level_strict_acc,none": PROMPTS_STRICT,
    "prompt_level_loose_acc,none": PROMPTS_LOOSE,
}
# The harness's rounding of a mean, far below any digit that is shown.
TOLERANCE = 1e-6


def benchmark_of(task: str) -> str:
    """Name the benchmark that a task of the harness is here: apart from our own benchmark of the same name."""
    return f"lm_eval.{task}"


def metric_name(results: Mapping[str, Any], task: str, key: str) -> str:
    """Name a metric of the harness, given as "metric,filter"; one that has no name here tells its direction, if known."""
    metric, _, kind = key.partition(",")
    higher = (results.get("higher_is_better", {}).get(task) or {}).get(metric)
    direction: Direction | None = None if higher is None else "higher" if higher else "lower"
    return NAMES.get(key) or directed(metric if kind == "none" else f"{metric}_{kind}", direction)


def result_rows(results: Mapping[str, Any], asked: Sequence[str], common: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Turn what `lm_eval.simple_evaluate` returned into rows of `columns.RESULTS`; `common` has the columns of the model.

    asked: the tasks and groups that were asked for. The id of a row depends on the question, the task's version and the number
    of examples shown, not on the model.
    """
    groups = results.get("group_subtasks", {})
    covered: set[str] = set()
    for name in asked:
        leaves = [task for task in _leaves(name, groups) if task in results["samples"]]
        covered |= {*leaves}
        for task in leaves:
            yield from _rows_of_task(results, name, task, common)
    # A tag stands for tasks without a group: each is a benchmark.
    for task in results["samples"]:
        if task not in covered:
            yield from _rows_of_task(results, task, task, common)


def unpaired(results: Mapping[str, Any]) -> list[str]:
    """List the figures of tasks, as "task metric", that are not means over questions: they are in lm_eval.json alone."""
    return [
        f"{task} {metric_name(results, task, key)}"
        for task, samples in results["samples"].items()
        for key, value in results["results"].get(task, {}).items()
        if is_figure(key, value) and key not in _kept(results, task, samples)
    ]


def is_figure(key: str, value: Any) -> bool:
    """Tell a metric from the alias, the number of samples and the standard errors."""
    metric, comma, _ = key.partition(",")
    return bool(comma) and not metric.endswith("_stderr") and _is_number(value)


def _leaves(name: str, groups: Mapping[str, Sequence[str]]) -> list[str]:
    below = groups.get(name) or ()
    return [leaf for part in below for leaf in _leaves(part, groups)] if below else [name]


def _is_number(value: Any) -> TypeGuard[SupportsFloat]:
    return isinstance(value, Real | np.bool_)


def _kept(results: Mapping[str, Any], task: str, samples: Sequence[Mapping[str, Any]]) -> set[str]:
    """Name the metrics, "metric,filter", whose figure is the mean of the samples' numbers."""
    kept = set()
    for key, figure in results["results"].get(task, {}).items():
        metric, _, kind = key.partition(",")
        found = [sample.get(metric) for sample in samples if sample["filter"] == kind]
        values = [float(value) for value in found if _is_number(value)]
        if not (is_figure(key, figure) and values and len(values) == len(found)):
            continue
        mean = float(np.mean(values))
        if math.isclose(mean, float(figure), rel_tol=TOLERANCE, abs_tol=TOLERANCE):
            kept.add(key)
    return kept


def _rows_of_task(results: Mapping[str, Any], name: str, task: str, common: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Put the samples of one question together: there is one for every filter of the answer."""
    samples = results["samples"][task]
    kept = _kept(results, task, samples)
    by_question: dict[Any, list[Mapping[str, Any]]] = {}
    for sample in samples:
        by_question.setdefault(sample["doc_id"], []).append(sample)
    asked_as = [benchmark_of(name), task, results.get("versions", {}).get(task), results.get("n-shot", {}).get(task)]
    seen: Counter[str] = Counter()
    for own in by_question.values():
        first = own[0]
        question = digest([*asked_as, first["doc_hash"], first["target_hash"]])
        seen[question] += 1
        scores = {
            metric_name(results, task, key): float(sample[metric])
            for sample in own
            for metric in sample["metrics"]
            if (key := f"{metric},{sample['filter']}") in kept
        }
        yield _row(own, scores) | {
            # A task may ask a question twice.
            col.ID: question if seen[question] == 1 else digest([question, seen[question]]),
            col.BENCHMARK: benchmark_of(name),
            col.SOURCE: task,
            **common,
        }


def _row(samples: Sequence[Mapping[str, Any]], scores: Mapping[str, float]) -> dict[str, Any]:
    first = samples[0]
    prompt, reply = first["arguments"][0][0], first["resps"][0][0]
    answers = {sample["filter"]: sample["filtered_resps"][0] for sample in samples}
    return dict.fromkeys(col.RESULTS.names) | {
        col.MESSAGES: [Message(role="user", content=str(prompt))],
        col.ANSWER: str(first["target"]),
        col.PREDICTION: reply if isinstance(reply, str) else None,
        col.EXTRACTED: [(kind, answer) for kind, answer in answers.items() if isinstance(answer, str)],
        col.SCORES: list(scores.items()),
        col.PROMPT_HASH: first["prompt_hash"][: col.ID_LENGTH],
        col.STATUS: col.STATUS_OK,
    }
