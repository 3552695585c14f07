"""Evaluation as a step of a run."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray

from ual_ray import columns as col
from ual_ray.config import Config
from ual_ray.config.environment import version_of
from ual_ray.config.keys import engine_settings
from ual_ray.config.redact import redact_values
from ual_ray.evaluate import questions as gathering
from ual_ray.evaluate import stage as evaluation
from ual_ray.evaluate.lm_eval import ROWS_VERSION, evaluate_with_harness, is_task_file, task_digests
from ual_ray.formatting import count_list, plural
from ual_ray.parquet import content_digest, read_table, rows_digest
from ual_ray.run.cluster import cores_for_one
from ual_ray.run.machines import output_folder
from ual_ray.run.progress import meter
from ual_ray.run.stage_cache import Done
from ual_ray.run.step import (
    ARM_TAG,
    MODEL_TAG,
    STAGE_TAG,
    Place,
    Run,
    Session,
    Step,
    quarantined,
    run_logged_step,
    run_step,
)
from ual_ray.stats.metrics import MetricValue
from ual_ray.stats.results import metrics_of, read_results


def questions_step(session: Session, rows: Path | None, place: Place) -> Done:
    """Gather the questions of every benchmark; `folder`/questions.parquet, which all models are asked from."""
    config = session.config
    evaluation.check_engine(config)
    benchmarks = config.evaluate.benchmarks
    own_split = rows is not None and any(one.path is None for one in benchmarks.values())
    inputs: dict[str, Any] = {
        "benchmarks": gathering.digests(benchmarks),
        "rows": rows_digest(rows, [col.ID, col.SPLIT]) if rows and own_split else None,
    }

    def work(folder: Path) -> dict[str, Any]:
        return {"benchmarks": gathering.write_questions(benchmarks, rows, folder)}

    return run_step(session, Step("questions", "questions", inputs, place), work, _questions_line)


def _questions_line(metrics: Mapping[str, Any]) -> str:
    found = metrics["benchmarks"]
    asked = {name: count["questions"] for name, count in found.items() if count["questions"]}
    left_out = [name for name in found if name not in asked]
    text = f"{plural(sum(asked.values()), 'question')} ({count_list(asked)})"
    if bad := sum(count["bad"] for count in found.values()):
        text += f"; {plural(bad, 'row')} without a question"
    return f"{text}; left out, as the test split has none: {', '.join(left_out)}" if left_out else text


def evaluate_step(session: Session, name: str, model: str, questions: Path, place: Place, *, retry: bool = False) -> Done:
    """Have one model answer the questions; `folder`/results and `folder`/figures.json.

    Its answers are kept in the place's store, by a key of model and engine settings: of a benchmark that is added later only
    its own questions are asked. `retry` asks the questions again that failed with an engine error.
    """
    config = session.config
    model_and_engine = {
        "model": evaluation.model_digest(config, model),
        "engine": engine_settings(evaluation.engine_of(config), "answers"),
    }
    store = place.store_folder(model_and_engine)
    inputs: dict[str, Any] = model_and_engine | {"questions": content_digest(questions, [col.ID]), "name": name}
    step = Step("evaluate", f"evaluate {name}", inputs, place, {ARM_TAG: name, MODEL_TAG: model}, store, retry)

    def work(run: Run, folder: Path) -> dict[str, Any]:
        asked = read_table(questions, [col.ID, col.BENCHMARK])
        total = asked.num_rows
        run.params(redact_values({"evaluate": config.evaluate.model_dump(), "model": model, "engine": inputs["engine"]}))
        sets = _log_questions(run, asked, questions)
        with meter(session.console, step.title, total, "rows") as shown:
            result = evaluation.evaluate(config, name, model, questions, store, folder, shown)
        log_metrics(run, result["figures"], session.logged_model(model, name, str(inputs["model"])), sets)
        run.artifact(folder / col.FIGURES_FILE)
        if result["disagreements"]:
            run.artifact(folder / evaluation.DISAGREEMENTS_FILE)
        run.table(evaluation.sample_table(folder), "results_sample.json")
        return result

    return run_logged_step(session, step, work, _answers_line)


def _log_questions(run: Run, questions: pa.Table, path: Path) -> dict[str, str]:
    """Log the questions of every benchmark as a data set; return their digests."""
    ids: dict[str, list[str]] = {}
    for benchmark, number in zip(questions[col.BENCHMARK].to_pylist(), questions[col.ID].to_pylist(), strict=True):
        ids.setdefault(benchmark, []).append(number)
    digests = {benchmark: col.digest(sorted(own)) for benchmark, own in ids.items()}
    for benchmark, own in ids.items():
        run.dataset(benchmark, path, digests[benchmark], len(own), "evaluation")
    return digests


def log_metrics(run: Run, values: Sequence[Mapping[str, Any]], model: Mapping[str, str], digests: Mapping[str, str]) -> None:
    """Log a model's metrics, those of every benchmark with its data set, by which MLflow ranks models.

    digests: of the benchmarks' data sets. Standard errors and counts are metrics of the run alone.
    """
    for benchmark in dict.fromkeys(entry["benchmark"] for entry in values):
        named = metrics_of([entry for entry in values if entry["benchmark"] == benchmark])
        beside = {key: value for key, value in named.items() if key.endswith((".n", ".standard_error"))}
        dataset = (benchmark, digests[benchmark]) if benchmark in digests else None
        run.metrics({key: value for key, value in named.items() if key not in beside}, model=model, dataset=dataset)
        run.metrics(beside)


def _answers_line(metrics: Mapping[str, Any]) -> str:
    text, differ = f"{metrics['rows']} questions; {quarantined(metrics)}", metrics["disagreements"]
    return f"{text}; strict and flexible extraction differ on {differ}" if differ else text


def harness_step(
    session: Session, name: str, tasks: Sequence[str], place: Place, *, model: str | None = None, on_cluster: bool = False
) -> Done:
    """Run tasks of lm-evaluation-harness on a model; `folder`/results and `folder`/figures.json, as of benchmarks.

    model: None = the configured one. on_cluster: in a Ray task on the resources of one engine, whose memory is free
    afterwards, in place of this process.
    """
    config = session.config.model_copy(update={"model": model or session.config.model})
    tasks = [str(Path(task).resolve()) if is_task_file(task) else task for task in tasks]
    inputs = {
        "model": evaluation.model_digest(config, config.model),
        "engine": engine_settings(evaluation.engine_of(config), "answers"),
        "tasks": task_digests(tasks),
        "lm_eval": version_of("lm_eval"),
        "rows": ROWS_VERSION,
        "name": name,
    }
    tags = {STAGE_TAG: "evaluate", ARM_TAG: name, MODEL_TAG: config.model}
    step = Step("evaluate", f"lm-eval {name}", inputs, place, tags)

    def work(folder: Path) -> dict[str, Any]:
        run_tasks = partial(_harness_in_a_task, session) if on_cluster else evaluate_with_harness
        result = run_tasks(config, name, tasks, folder)
        with session.tracked(step.title, folder, tags) as run:
            sets = _log_questions(run, read_results(folder, [col.ID, col.BENCHMARK]), folder / col.RESULTS_FOLDER)
            log_metrics(run, result["harness"], session.logged_model(config.model, name, str(inputs["model"])), sets)
            run.artifact(folder / col.FIGURES_FILE)
            run.artifact(folder / col.HARNESS_FILE)
        return result

    done = run_step(session, step, work, _harness_line)
    for value in (MetricValue(**entry) for entry in done.metrics["harness"]):
        error = "" if value.standard_error is None else f" +- {value.standard_error:.4f}"
        session.say("lm-eval", f"{value.benchmark} {value.metric}: {value.value:.4f}{error} (n = {value.n})")
    return done


def _harness_in_a_task(session: Session, config: Config, name: str, tasks: Sequence[str], folder: Path) -> dict[str, Any]:
    session.connect()
    engine = config.engine
    cores = engine.cpus_per_actor if engine.gpus_per_actor else cores_for_one(engine)
    # One call per process: vLLM gives its memory back at its process's end.
    options: dict[str, Any] = {"num_cpus": cores, "num_gpus": engine.gpus_per_actor or None, "max_calls": 1}
    work = ray.remote(**options)(_evaluate_on_this_node)
    return ray.get(work.remote(config, name, tasks, folder.resolve()))


def _evaluate_on_this_node(config: Config, name: str, tasks: Sequence[str], folder: Path) -> dict[str, Any]:
    output = output_folder()
    config = config.model_copy(update={"model": output.fetched_model(config.model)})
    with output.writing(folder) as own:
        return evaluate_with_harness(config, name, tasks, own)


def _harness_line(metrics: Mapping[str, Any]) -> str:
    text = f"{metrics['rows']} questions kept as result rows"
    left_out = metrics["unpaired"]
    return f"{text}; without a score per question, so not compared: {', '.join(left_out)}" if left_out else text
