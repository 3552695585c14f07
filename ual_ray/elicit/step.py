"""Elicitation as a step of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ual_ray import columns as col
from ual_ray.config import Config
from ual_ray.config.redact import redact_values
from ual_ray.data.fingerprint import fingerprint
from ual_ray.data.peek import look
from ual_ray.models.resolve import model_fingerprint
from ual_ray.parquet import content_digest, file_digest
from ual_ray.plots import scores as plots
from ual_ray.run.progress import meter
from ual_ray.run.stage_cache import Done, run_stage, stage_digest
from ual_ray.run.step import (
    LINEAGE_MODEL,
    LINEAGE_PROMPTS,
    LINEAGE_SCORED,
    STAGE_TAG,
    Place,
    Session,
    _counts,
    _forget,
    _quarantined,
)


def elicit_step(session: Session, place: Place, store_place: Place, *, retry: bool = False) -> Done:
    """Read and score the data; `folder`/rows holds the canonical rows of all splits, `folder`/scored the scored ones.

    What engines measured is kept at `store_place`, by a key of its own, so that rows that several data sets share are sent
    once. `retry` sends the rows again that an engine failed on.
    """
    import ray

    from ual_ray.elicit import stage

    config = session.config
    measuring = _measuring(config)
    store = store_place(stage_digest(measuring))
    inputs: dict[str, Any] = {
        "source": fingerprint(config.data),
        "data": config.data.model_dump(exclude={"path", "max_bad_share"}),
        "measuring": measuring,
        "elicit": config.elicit.model_dump(include={"splits", "uncertainty", "ensemble", "length_residual"}),
        "labels": file_digest(Path(config.elicit.calibrate_with).expanduser()) if config.elicit.calibrate_with else None,
    }
    folder = place(stage_digest(inputs))
    force = _forget(session, "elicit", folder, store, retry=retry)

    def work() -> dict[str, Any]:
        seen = look(config.data)
        session.say("rows", f"{seen.size()} of {config.data.path} (format: {seen.format_name})")
        session.connect()
        expected = stage.expected_rows(config, seen)
        with (
            session.tracked("elicit", folder, {STAGE_TAG: "elicit", LINEAGE_MODEL: config.elicit.model}) as run,
            meter(session.console, "elicit", expected, "rows") as shown,
        ):
            run.params(redact_values({"elicit": config.elicit.model_dump(), "engine": config.engine.model_dump()}))
            run.dataset("rows", Path(config.data.path), inputs["source"], seen.estimated_rows or 0, "scoring")
            figures = stage.elicit(config, seen, folder, store, shown)
            run.metrics({**figures, "rows_per_second": shown.rate()})
            run.figure(plots.uncertainty_by_source(figures["histograms"]), "plots/uncertainty_by_source.png")
            run.tags(
                {
                    # In a task, as it takes memory by the number of rows, and the driver takes none.
                    LINEAGE_SCORED: ray.get(ray.remote(content_digest).remote(folder / col.SCORED_FOLDER, col.SMOOTHING_READS)),
                    LINEAGE_PROMPTS: ", ".join(figures["prompt_hashes"]),
                }
            )
            return figures

    done = run_stage(folder, inputs, work, force=force)
    return session.finish("elicit", done, _scored_line(config, done.figures))


def _measuring(config: Config) -> dict[str, Any]:
    """What a row's measurements depend on besides the row: elicitor, prompts, sampling, engine settings that matter."""
    from ual_ray.elicit.prompts import load_prompts

    elicit, engine = config.elicit, config.engine
    local = engine.kind != "openai"
    return {
        "model": model_fingerprint(elicit.model) if local else elicit.model,
        "adapter": file_digest(Path(elicit.adapter).expanduser()) if elicit.adapter else None,
        "prompts": load_prompts(elicit.templates).hash,
        "elicit": elicit.model_dump(exclude=NOT_MEASURED),
        "engine": engine.model_dump(include={"kind", "dtype", "max_model_len", "overlong", "arguments"}),
        "endpoint": None if local else engine.endpoint.model_dump(include={"url", "logprobs"}),
        "seed": config.seed,
    }


# Settings of elicitation that change no measurement: what is made of it afterwards, and where things are.
NOT_MEASURED = {
    *("model", "adapter", "templates", "uncertainty", "ensemble", "length_residual", "calibrate_with"),
    *("splits", "max_quarantine_share"),
}


def _scored_line(config: Config, figures: Mapping[str, Any]) -> str:
    means = ", ".join(f"{name} {value:.3f}" for name, value in figures["mean_uncertainty"].items() if value is not None)
    bad = f"; {figures['bad']} bad rows ({_counts(figures['bad_reasons'])})" if figures["bad"] else ""
    money = config.engine.cost(figures[col.PROMPT_TOKENS], figures[col.GENERATED_TOKENS])
    cost = f"; cost {money:.2f}" if money else ""
    return (
        f"{figures['rows']} of {figures['total_rows']} rows scored by {config.elicit.model} "
        f"({_counts(figures['splits'])}; {_counts(figures['sources'])}){bad}; "
        f"mean uncertainty: {means}; {_quarantined(figures)}; {figures['calls']:,} calls{cost}"
    )
