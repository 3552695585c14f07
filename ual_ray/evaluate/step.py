"""Evaluation as a step of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ual_ray import columns as col
from ual_ray.config.redact import redact_values
from ual_ray.evaluate import questions as gathering
from ual_ray.evaluate import stage as evaluation
from ual_ray.parquet import content_digest, read_table
from ual_ray.run.progress import meter
from ual_ray.run.stage_cache import Done, run_stage, stage_digest
from ual_ray.run.step import ARM_TAG, STAGE_TAG, Place, Session, _counts, _forget, _quarantined
from ual_ray.stats.results import metrics_of


def questions_step(session: Session, rows: Path | None, place: Place) -> Done:
    """Gather the questions of every benchmark; `folder`/questions.parquet, which all models are asked from."""
    config = session.config
    evaluation.check_engine(config)
    benchmarks = config.evaluate.benchmarks
    inputs: dict[str, Any] = {
        "benchmarks": gathering.digests(benchmarks),
        "rows": content_digest(rows, [col.ID, col.SPLIT])
        if rows and any(one.path is None for one in benchmarks.values())
        else None,
    }
    folder = place(stage_digest(inputs))

    def work() -> dict[str, Any]:
        return {"benchmarks": gathering.write_questions(benchmarks, rows, folder)}

    done = run_stage(folder, inputs, work)
    return session.finish("questions", done, _questions_line(done.figures["benchmarks"]))


def _questions_line(found: Mapping[str, Mapping[str, Any]]) -> str:
    asked = {name: count["questions"] for name, count in found.items() if count["questions"]}
    left_out = [name for name in found if name not in asked]
    text = f"{sum(asked.values())} questions ({_counts(asked)})"
    if bad := sum(count["bad"] for count in found.values()):
        text += f"; {bad} rows without a question"
    return f"{text}; left out, as the test split has none: {', '.join(left_out)}" if left_out else text


def evaluate_step(
    session: Session, name: str, model: str, questions: Path, place: Place, store_place: Place, *, retry: bool = False
) -> Done:
    """Have one model answer the questions; `folder`/results and `folder`/figures.json.

    Its answers are kept at `store_place`, by a key of model and engine settings: those to a benchmark that is added later
    are asked for alone. `retry` asks the questions again that an engine failed on.
    """
    config = session.config
    model_and_engine = {"model": evaluation.model_digest(config, model), "engine": evaluation.engine_settings(config)}
    store = store_place(stage_digest(model_and_engine))
    inputs: dict[str, Any] = model_and_engine | {"questions": content_digest(questions, [col.ID]), "name": name}
    folder = place(stage_digest(inputs))
    force = _forget(session, "evaluate", folder, store, retry=retry)

    def work() -> dict[str, Any]:
        total = read_table(questions, [col.ID]).num_rows
        session.connect()
        tags = {STAGE_TAG: "evaluate", ARM_TAG: name, "ual_ray.model": model}
        with (
            session.tracked(f"evaluate {name}", folder, tags) as run,
            meter(session.console, f"evaluate {name}", total, "rows") as shown,
        ):
            run.params(redact_values({"evaluate": config.evaluate.model_dump(), "model": model, "engine": inputs["engine"]}))
            run.dataset("questions", questions, inputs["questions"], total, "evaluation")
            result = evaluation.evaluate(config, name, model, questions, store, folder, shown)
            run.metrics(metrics_of(result["figures"]))
            run.artifact(folder / col.FIGURES_FILE)
            if result["disagreements"]:
                run.artifact(folder / evaluation.DISAGREEMENTS_FILE)
            run.table(evaluation.sample_table(folder), "results_sample.json")
            return result

    done = run_stage(folder, inputs, work, force=force)
    differ = done.figures["disagreements"]
    text = f"{done.figures['rows']} questions; {_quarantined(done.figures)}"
    text += f"; strict and flexible extraction differ on {differ}" if differ else ""
    return session.finish(f"evaluate {name}", done, text)
