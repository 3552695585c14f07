"""A bridge to lm-evaluation-harness: its tasks on a checkpoint of this package, if lm-eval is installed.

Its samples become result rows, so that its tasks are compared question by question like benchmarks. A benchmark is a task or a
group as it was asked for; the rows of a group name their subtask as source. A score of a row is kept only if the harness's
figure of the benchmark is its mean: others, such as F1 or instruction-level accuracy, have no value per question. So a group
whose figures are means over its tasks, whatever their questions, or that has none, stands for its tasks.
"""

import logging
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from importlib.util import find_spec
from numbers import Real
from pathlib import Path
from typing import Any, SupportsFloat, TypeGuard

import numpy as np

from ual_ray import columns as col
from ual_ray.config import Config
from ual_ray.config.files import write_json, write_record
from ual_ray.config.keys import engine_settings
from ual_ray.config.names import OVERALL
from ual_ray.engines import EngineSpec
from ual_ray.engines.vllm_engine import engine_arguments, set_environment
from ual_ray.errors import UserError
from ual_ray.evaluate.compat_lm_eval import cpu_build_found_as_vllm
from ual_ray.evaluate.stage import engine_of, model_digest
from ual_ray.models.resolve import resolve_model
from ual_ray.parquet import write_rows
from ual_ray.stats.metrics import (
    ACCURACY,
    ACCURACY_NORMALISED,
    EXACT_MATCH,
    EXACT_MATCH_FLEXIBLE,
    EXACT_MATCH_STRICT,
    PROMPTS_LOOSE,
    PROMPTS_STRICT,
    Direction,
    MetricValue,
    directed,
    measure,
    metric_of,
)
from ual_ray.stats.results import read_results

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
# Raise it when the same results make other rows.
ROWS_VERSION = 2
logger = logging.getLogger(__name__)


def benchmark_of(task: str) -> str:
    """Name the benchmark that a task of the harness is here: apart from our own benchmark of the same name."""
    return f"lm_eval.{task}"


def metric_name(results: Mapping[str, Any], task: str, key: str) -> str:
    """Name a metric of the harness, given as "metric,filter"; one that has no name here tells its direction, if known."""
    metric, _, kind = key.partition(",")
    higher = (results.get("higher_is_better", {}).get(task) or {}).get(metric)
    direction: Direction | None = None if higher is None else "higher" if higher else "lower"
    return directed(NAMES.get(key) or (metric if kind == "none" else f"{metric}_{kind}"), direction)


def result_rows(results: Mapping[str, Any], asked: Sequence[str], common: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Turn what `lm_eval.simple_evaluate` returned into rows of `columns.RESULTS`; `common` has the columns of the model.

    asked: the tasks and groups that were asked for. The id of a row depends on the question, the task's version and the number
    of examples shown, not on the model.
    """
    for name, leaves in _benchmarks(results, asked).items():
        kept = _kept(results, name, leaves)
        for task in leaves:
            yield from _rows_of_task(results, name, task, kept, common)


def unpaired(results: Mapping[str, Any], asked: Sequence[str]) -> list[str]:
    """List the figures, as "task metric", that are not means over a benchmark's questions: they are in lm_eval.json alone."""
    kept: dict[str, set[str]] = {}
    for name, leaves in _benchmarks(results, asked).items():
        for one in (name, *leaves):
            kept.setdefault(one, set()).update(_kept(results, name, leaves))
    return [
        f"{task} {metric_name(results, task, key)}"
        for task in dict.fromkeys([*results["samples"], *asked])
        for key, value in results["results"].get(task, {}).items()
        if is_figure(key, value) and key not in kept.get(task, set())
    ]


def _benchmarks(results: Mapping[str, Any], asked: Sequence[str]) -> dict[str, list[str]]:
    """List the benchmarks with their tasks: what was asked for, or its tasks where no figure is of all questions."""
    groups = results.get("group_subtasks", {})
    found: dict[str, list[str]] = {}
    covered: set[str] = set()
    for name in asked:
        leaves = [task for task in dict.fromkeys(_leaves(name, groups)) if task in results["samples"]]
        covered |= {*leaves}
        kept = _kept(results, name, leaves)
        found |= {name: leaves} if kept else {}
        # Where all tasks have one figure, as 0 of a small model, either mean is it: other models have the group or its tasks.
        alike = any(len({results["results"][task].get(key) for task in leaves}) == 1 for key in kept)
        found |= {task: [task] for task in leaves} if alike or not kept else {}
    # A tag stands for tasks without a group: each is a benchmark.
    return found | {task: [task] for task in results["samples"] if task not in covered}


def is_figure(key: str, value: Any) -> bool:
    """Tell a metric from the alias, the number of samples and the standard errors."""
    metric, comma, _ = key.partition(",")
    return bool(comma) and not metric.endswith("_stderr") and _is_number(value)


def _leaves(name: str, groups: Mapping[str, Sequence[str]]) -> list[str]:
    below = groups.get(name) or ()
    return [leaf for part in below for leaf in _leaves(part, groups)] if below else [name]


def _is_number(value: Any) -> TypeGuard[SupportsFloat]:
    return isinstance(value, Real | np.bool_)


def _kept(results: Mapping[str, Any], name: str, leaves: Sequence[str]) -> set[str]:
    """Name the metrics, "metric,filter", whose figure of a task or group is the mean of all its samples' numbers."""
    samples = [sample for task in leaves for sample in results["samples"][task]]
    kept = set()
    for key, figure in results["results"].get(name, {}).items():
        metric, _, kind = key.partition(",")
        found = [sample.get(metric) for sample in samples if sample["filter"] == kind]
        values = [float(value) for value in found if _is_number(value)]
        if not (is_figure(key, figure) and values and len(values) == len(found)):
            continue
        mean = float(np.mean(values))
        if math.isclose(mean, float(figure), rel_tol=TOLERANCE, abs_tol=TOLERANCE):
            kept.add(key)
    return kept


def _rows_of_task(
    results: Mapping[str, Any], name: str, task: str, kept: set[str], common: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """Put the samples of one question together: there is one for every filter of the answer."""
    by_question: dict[Any, list[Mapping[str, Any]]] = {}
    for sample in results["samples"][task]:
        by_question.setdefault(sample["doc_id"], []).append(sample)
    asked_as = [benchmark_of(name), task, results.get("versions", {}).get(task), results.get("n-shot", {}).get(task)]
    seen: Counter[str] = Counter()
    for own in by_question.values():
        first = own[0]
        question = col.digest([*asked_as, first["doc_hash"], first["target_hash"]])
        seen[question] += 1
        scores = {
            metric_name(results, task, key): float(sample[metric])
            for sample in own
            for metric in sample["metrics"]
            if (key := f"{metric},{sample['filter']}") in kept
        }
        yield _row(own, scores) | {
            # A task may ask a question twice.
            col.ID: question if seen[question] == 1 else col.digest([question, seen[question]]),
            col.BENCHMARK: benchmark_of(name),
            col.SOURCE: task,
            **common,
        }


def _row(samples: Sequence[Mapping[str, Any]], scores: Mapping[str, float]) -> dict[str, Any]:
    first = samples[0]
    prompt, reply = first["arguments"][0][0], first["resps"][0][0]
    answers = {sample["filter"]: sample["filtered_resps"][0] for sample in samples}
    return dict.fromkeys(col.RESULTS.names) | {
        col.MESSAGES: [col.Message(role="user", content=str(prompt))],
        col.ANSWER: str(first["target"]),
        col.PREDICTION: reply if isinstance(reply, str) else None,
        col.EXTRACTED: [(kind, answer) for kind, answer in answers.items() if isinstance(answer, str)],
        col.SCORES: list(scores.items()),
        col.PROMPT_HASH: first["prompt_hash"][: col.ID_LENGTH],
        col.STATUS: col.STATUS_OK,
    }


def run_lm_eval(
    model: str, tasks: Sequence[str], out: Path, options: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], list[MetricValue]]:
    """Run tasks of lm-evaluation-harness on a model, with vLLM where it is installed and transformers elsewhere.

    `options` go to `lm_eval.simple_evaluate` (limit, num_fewshot, gen_kwargs, model_args, ...; `engine_options` gives those of
    a configuration); the chat template is applied unless they set it otherwise. Writes `out`/lm_eval.json, which leaves the
    samples out; returns all that the package returned, samples included, and its numbers as metrics with standard errors.
    Raises UserError when the package is missing or a task is not known.
    """
    library = _library()
    settings: dict[str, Any] = {"apply_chat_template": True, "batch_size": "auto", "log_samples": True} | dict(options or {})
    backend = settings.pop("model", "vllm" if find_spec("vllm") else "hf")
    arguments = {"pretrained": resolve_model(model)} | dict(settings.pop("model_args", {}))
    try:
        with cpu_build_found_as_vllm():
            results = library.simple_evaluate(model=backend, model_args=arguments, tasks=list(tasks), **settings)
    except (KeyError, ValueError, FileNotFoundError) as error:
        raise UserError(
            "lm-evaluation-harness cannot run the tasks",
            got=f"{', '.join(tasks)}: {error}",
            expected="names that `lm_eval --tasks list` prints; most tasks download their data",
        ) from error
    out.mkdir(parents=True, exist_ok=True)
    kept = {key: value for key, value in results.items() if key != "samples"}
    write_json(out / col.HARNESS_FILE, kept)
    return results, list(metric_values(results))


def evaluate_with_harness(config: Config, name: str, tasks: Sequence[str], folder: Path) -> dict[str, Any]:
    """Run tasks on the configured model; `folder` gets its results as `evaluate` writes them, figures.json and lm_eval.json.

    Returns the content of figures.json, with the harness's own figures as `harness` and those that have no score per question
    as `unpaired`. `name` is what the report calls the model. Raises UserError as `run_lm_eval` does.
    """
    results, values = run_lm_eval(config.model, tasks, folder, engine_options(config))
    fingerprint = model_digest(config, config.model)
    common = {
        col.MODEL: name,
        col.MODEL_DIGEST: fingerprint,
        col.ENGINE_DIGEST: col.digest(engine_settings(engine_of(config), "answers")),
    }
    rows = list(result_rows(results, tasks, common))
    rows_folder = folder / col.RESULTS_FOLDER
    rows_folder.mkdir(parents=True, exist_ok=True)
    write_rows(rows, col.RESULTS, rows_folder / "harness.parquet")
    result = {
        "name": name,
        col.MODEL_DIGEST: fingerprint,
        "rows": len(rows),
        "unpaired": unpaired(results, tasks),
        "figures": [value.as_dict() for value in measure(read_results(folder))],
        "harness": [value.as_dict() for value in values],
    }
    write_record(folder / col.FIGURES_FILE, result)
    return result


def metric_values(results: Mapping[str, Any]) -> Iterator[MetricValue]:
    """Turn the numbers of lm-evaluation-harness into metrics; those without a name here keep the one they have there."""
    for task, numbers in results["results"].items():
        n = int(results.get("n-samples", {}).get(task, {}).get("effective", 0))
        for key, value in numbers.items():
            if not is_figure(key, value):
                continue
            metric, _, kind = key.partition(",")
            error = numbers.get(f"{metric}_stderr,{kind}")
            name = metric_name(results, task, key)
            if metric_of(name).direction is None:
                logger.info("%s of %s is a metric without a known direction", name, task)
            spread = float(error) if isinstance(error, int | float) else None
            yield MetricValue(benchmark_of(task), name, OVERALL, float(value), spread, n)


def engine_options(config: Config) -> dict[str, Any]:
    """Spell the engine of evaluation in the harness's terms: options for `run_lm_eval`; sets vLLM's environment."""
    engine = engine_of(config)
    set_environment(engine)
    if not find_spec("vllm"):
        return {"model_args": {"dtype": engine.dtype}}
    names = (
        *("dtype", "max_model_len", "enforce_eager", "tensor_parallel_size", "gpu_memory_utilization"),
        *("disable_log_stats", "trust_remote_code"),
    )
    arguments = engine_arguments(EngineSpec(engine, config.model, trust_remote_code=config.trust_remote_code))
    return {"model_args": {name: arguments[name] for name in names if name in arguments} | engine.arguments}


def is_task_file(task: str) -> bool:
    """Tell the path of a task's own YAML file from the name of a task of the harness."""
    return task.endswith((".yaml", ".yml"))


def task_digests(tasks: Sequence[str]) -> list[str]:
    """Name what tasks depend on: their names, and the content of task files and of the code and templates next to them."""
    return [col.digest(_parts_of(Path(task))) if is_task_file(task) else task for task in tasks]


def check_tasks(tasks: Sequence[str]) -> None:
    """Raise UserError for tasks and task files that lm-evaluation-harness does not find, and where it is missing."""
    _library()
    from lm_eval.tasks import TaskManager

    known = TaskManager().all_tasks
    if unknown := [task for task in tasks if not (Path(task).is_file() if is_task_file(task) else task in known)]:
        raise UserError(
            "evaluate.lm_eval: lm-evaluation-harness does not know the tasks",
            got=", ".join(unknown),
            expected="names that `lm_eval --tasks list` prints, or paths of task files (.yaml)",
            fix=", ".join(name for task in unknown for name in get_close_matches(task, known)) or "correct or drop them",
        )


def _parts_of(path: Path) -> list[tuple[str, str]]:
    beside = [part for part in path.parent.iterdir() if part.suffix in (".yaml", ".yml", ".py") or part == path]
    return [(path.name, ""), *sorted((part.name, part.read_text(encoding="utf-8")) for part in beside if part.is_file())]


def _library() -> Any:
    try:
        import lm_eval
    except ImportError as error:
        raise UserError(
            "--lm-eval and evaluate.lm_eval need lm-evaluation-harness, which is not installed",
            fix="pip install 'lm-eval>=0.4.13,<0.5'",
        ) from error
    return lm_eval
