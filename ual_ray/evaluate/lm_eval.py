"""A bridge to lm-evaluation-harness: its tasks on a checkpoint of this package, if lm-eval is installed."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ual_ray.config import Config
from ual_ray.config.files import write_json
from ual_ray.engines import EngineSpec
from ual_ray.engines.vllm_engine import engine_arguments, set_environment
from ual_ray.errors import UserError
from ual_ray.evaluate.compat_lm_eval import cpu_build_found_as_vllm
from ual_ray.evaluate.stage import engine_of
from ual_ray.models.resolve import resolve_model
from ual_ray.stats.metrics import (
    ACCURACY,
    ACCURACY_NORMALISED,
    DIRECTIONS,
    EXACT_MATCH_FLEXIBLE,
    EXACT_MATCH_STRICT,
    OVERALL,
    MetricValue,
)

LM_EVAL_FILE = "lm_eval.json"
# Its names, metric and filter, for what has a name here.
NAMES = {
    "exact_match,strict-match": EXACT_MATCH_STRICT,
    "exact_match,flexible-extract": EXACT_MATCH_FLEXIBLE,
    "acc,none": ACCURACY,
    "acc_norm,none": ACCURACY_NORMALISED,
}

logger = logging.getLogger(__name__)


def run_lm_eval(
    model: str, tasks: Sequence[str], out: Path, options: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], list[MetricValue]]:
    """Run tasks of lm-evaluation-harness on a model, with vLLM where it is installed and transformers elsewhere.

    `options` go to `lm_eval.simple_evaluate` (limit, num_fewshot, gen_kwargs, model_args, ...; `engine_options` gives those of
    a configuration); the chat template is applied unless they set it otherwise. Writes `out`/lm_eval.json, which leaves the
    samples out; returns all that the package returned, and its numbers as metrics with standard errors. Raises UserError when
    the package is missing or a task is not known.
    """
    library = _library()
    settings: dict[str, Any] = {"apply_chat_template": True, "batch_size": "auto"} | dict(options or {})
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
    write_json(out / LM_EVAL_FILE, kept)
    return results, list(metric_values(results))


def metric_values(results: Mapping[str, Any]) -> Iterator[MetricValue]:
    """Turn the numbers of lm-evaluation-harness into metrics; those without a name here keep the one they have there."""
    for task, numbers in results["results"].items():
        n = int(results.get("n-samples", {}).get(task, {}).get("effective", 0))
        for key, value in numbers.items():
            # Keys without ",filter" are not metrics: the alias, the number of samples.
            metric, comma, kind = key.partition(",")
            if not comma or metric.endswith("_stderr") or isinstance(value, bool) or not isinstance(value, int | float):
                continue
            error = numbers.get(f"{metric}_stderr,{kind}")
            name = NAMES.get(key, metric if kind == "none" else f"{metric}_{kind}")
            if name not in DIRECTIONS:
                logger.info("%s of %s is a metric without a known direction", name, task)
            yield MetricValue(task, name, OVERALL, float(value), float(error) if isinstance(error, int | float) else None, n)


def engine_options(config: Config) -> dict[str, Any]:
    """Spell the engine of evaluation in the harness's terms: options for `run_lm_eval`; sets vLLM's environment."""
    engine = engine_of(config)
    set_environment(engine)
    if not find_spec("vllm"):
        return {"model_args": {"dtype": engine.dtype}}
    names = ("dtype", "max_model_len", "enforce_eager", "tensor_parallel_size", "disable_log_stats", "trust_remote_code")
    arguments = engine_arguments(EngineSpec(engine, config.model, trust_remote_code=config.trust_remote_code))
    return {"model_args": {name: arguments[name] for name in names} | engine.arguments}


def _library() -> Any:
    try:
        import lm_eval
    except ImportError as error:
        raise UserError("--lm-eval needs lm-evaluation-harness, which is not installed", fix="pip install lm-eval") from error
    return lm_eval
