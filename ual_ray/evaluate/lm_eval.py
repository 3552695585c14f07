"""A bridge to lm-evaluation-harness: its tasks on a checkpoint of this package, if lm-eval is installed."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ual_ray import columns as col
from ual_ray.columns import digest
from ual_ray.config import Config
from ual_ray.config.files import write_json, write_record
from ual_ray.config.keys import engine_settings
from ual_ray.engines import EngineSpec
from ual_ray.engines.vllm_arguments import engine_arguments, set_environment
from ual_ray.errors import UserError
from ual_ray.evaluate.compat_lm_eval import cpu_build_found_as_vllm
from ual_ray.evaluate.lm_eval_rows import benchmark_of, is_figure, metric_name, result_rows, unpaired
from ual_ray.evaluate.stage import engine_of, model_digest
from ual_ray.models.resolve import resolve_model
from ual_ray.parquet import write_rows
from ual_ray.stats.metrics import OVERALL, MetricValue, measure, metric_of
from ual_ray.stats.results import read_results

logger = logging.getLogger(__name__)


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
        col.ENGINE_DIGEST: digest(engine_settings(engine_of(config), "answers")),
    }
    rows = list(result_rows(results, tasks, common))
    rows_folder = folder / col.RESULTS_FOLDER
    rows_folder.mkdir(parents=True, exist_ok=True)
    write_rows(rows, col.RESULTS, rows_folder / "harness.parquet")
    result = {
        "name": name,
        col.MODEL_DIGEST: fingerprint,
        "rows": len(rows),
        "unpaired": unpaired(results),
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
    names = ("dtype", "max_model_len", "enforce_eager", "tensor_parallel_size", "disable_log_stats", "trust_remote_code")
    arguments = engine_arguments(EngineSpec(engine, config.model, trust_remote_code=config.trust_remote_code))
    return {"model_args": {name: arguments[name] for name in names} | engine.arguments}


def is_task_file(task: str) -> bool:
    """Tell the path of a task's own YAML file from the name of a task of the harness."""
    return task.endswith((".yaml", ".yml"))


def task_digests(tasks: Sequence[str]) -> list[str]:
    """Name what tasks depend on: their names, and the content of task files and of the code and templates next to them."""
    return [digest(_parts_of(Path(task))) if is_task_file(task) else task for task in tasks]


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
