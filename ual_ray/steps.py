"""Each stage as a step of a run: its inputs' digest, its progress, its line on the terminal, its place in MLflow.

The pipeline and the single commands both go through here; a step that is done is recognised and not done again.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from ual_ray.config import Config, SmoothConfig
from ual_ray.elicit.finish import SCORED
from ual_ray.evaluate import questions as gathering
from ual_ray.evaluate import stage as evaluation
from ual_ray.progress import Meter, meter
from ual_ray.records import (
    ALPHA,
    GENERATED_TOKENS,
    ID,
    METRICS_FILE,
    PROMPT_TOKENS,
    SPLIT,
    VALIDATION_NLL,
    content_digest,
    file_digest,
    read_table,
)
from ual_ray.report import plots
from ual_ray.settings import redact_uri, redact_values
from ual_ray.smooth.stage import SCORED_DIGEST, SMOOTHED_FILE, SMOOTHING_READS, histogram, recorded_map, smooth
from ual_ray.sources.fingerprint import fingerprint
from ual_ray.sources.look import look
from ual_ray.sources.models import model_fingerprint
from ual_ray.tracking import Run, Tracker
from ual_ray.watch import watched
from ual_ray.workspace import DONE_FILE, STAGES, Done, run_stage, stage_digest

# Where a step works, given the digest of its inputs: below it for the pipeline, a fixed folder for a single command.
Place = Callable[[str], Path]

LINEAGE_SCORED = "ual_ray.scored"
LINEAGE_PROMPTS = "ual_ray.prompt_hash"
LINEAGE_MAP = "ual_ray.map"
LINEAGE_SMOOTHED = "ual_ray.smoothed"
LINEAGE_MODEL = "ual_ray.base_model"
STAGE_TAG = "ual_ray.stage"
ARM_TAG = "ual_ray.arm"
UNKNOWN = "unknown"


def below(folder: Path) -> Place:
    """Work in a part of the folder, named by the digest."""
    return lambda key: folder / key


@dataclass
class Session:
    """What all steps of one command share; the Ray cluster is started by the first step that needs it."""

    config: Config
    console: Console
    tracker: Tracker | None
    force: frozenset[str] = frozenset()
    stages: frozenset[str] = frozenset(STAGES)
    parent: Run | None = None
    cluster: ExitStack = field(default_factory=ExitStack)
    _connected: bool = False

    def connect(self) -> None:
        """Start or join the Ray cluster, once."""
        if not self._connected:
            from ual_ray.runtime import check_cluster, ray_cluster

            self.cluster.enter_context(ray_cluster(self.config.runtime))
            for wait in check_cluster(self.config, self.stages):
                self.say("cluster", f"waiting for it to grow: {wait}")
            self._connected = True

    def say(self, step: str, text: str) -> None:
        """Print one step's line."""
        self.console.print(f"[bold]{step:<14}[/bold] {redact_uri(text)}", highlight=False)

    def say_failures(self) -> None:
        """Say what could not be logged to MLflow, if anything."""
        if self.tracker is not None and (complaint := self.tracker.complaint()):
            self.say("mlflow", f"[red]{complaint}[/red]")

    def finish(self, step: str, done: Done, text: str) -> Done:
        """Print what a step found, and whether it was found before."""
        how = "done before" if done.reused else f"{done.seconds:.0f} s"
        self.say(step, f"{text} [dim]({how})[/dim]")
        return done

    @contextmanager
    def tracked(self, name: str, folder: Path, tags: Mapping[str, str]) -> Iterator[Run]:
        """Open the step's MLflow run below the pipeline's."""
        assert self.tracker is not None, "a step that logs was given no tracker"
        with (
            self.tracker.run(name, folder, tags, self.parent) as run,
            watched(self.config.tracking, self.tracker.uri, [run]),
        ):
            if self.parent is None:
                run.environment()
            yield run


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
                    LINEAGE_SCORED: ray.get(ray.remote(content_digest).remote(folder / SCORED, SMOOTHING_READS)),
                    LINEAGE_PROMPTS: ", ".join(figures["prompt_hashes"]),
                }
            )
            return figures

    done = run_stage(folder, inputs, work, force=force)
    return session.finish("elicit", done, _scored_line(config, done.figures))


def _forget(session: Session, stage: str, folder: Path, store: Path, *, retry: bool) -> bool:
    """Forget what engines measured where the stage is forced, which is returned, or that it is done where it is tried again."""
    force = stage in session.force
    if force:
        shutil.rmtree(store, ignore_errors=True)
    if retry:
        (folder / DONE_FILE).unlink(missing_ok=True)
    return force


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
    money = config.engine.cost(figures[PROMPT_TOKENS], figures[GENERATED_TOKENS])
    cost = f"; cost {money:.2f}" if money else ""
    return (
        f"{figures['rows']} of {figures['total_rows']} rows scored by {config.elicit.model} "
        f"({_counts(figures['splits'])}; {_counts(figures['sources'])}){bad}; "
        f"mean uncertainty: {means}; {_quarantined(figures)}; {figures['calls']:,} calls{cost}"
    )


def smooth_step(session: Session, name: str, spec: SmoothConfig, scored: Path, place: Place) -> Done:
    """Give every training row its alpha; `folder`/smoothed.parquet. Prints the distribution before anything is trained."""
    inputs = {"scored": content_digest(scored, SMOOTHING_READS), "spec": spec.model_dump(), "seed": session.config.seed}
    folder = place(stage_digest(inputs))

    def work() -> dict[str, Any]:
        return smooth(scored, spec, session.config.seed, folder, str(inputs["scored"]))

    done = run_stage(folder, inputs, work, force="smooth" in session.force)
    figures = done.figures
    text = f"{figures['map']}: alpha mean {figures['mean']:.3f}, {figures['min']:.3f} to {figures['max']:.3f}"
    text += f"; {figures['missing']} scores missing ({spec.missing}), {figures['excluded']:.0f} rows excluded"
    session.finish(f"smooth {name}", done, text)
    bars = histogram(folder / SMOOTHED_FILE)
    if len(bars) > 1:
        longest = max(count for _, _, count in bars)
        for low, high, count in bars:
            session.console.print(
                f"{'':<15}{low:.3f} - {high:.3f} {'█' * round(30 * count / longest)} {count}", highlight=False
            )
    return done


def train_step(session: Session, name: str, smoothed: Path, rows: Path | None, place: Place) -> Done:
    """Fine-tune one arm; `folder`/model."""
    config = session.config
    inputs = {
        "smoothed": content_digest(smoothed, [ID, ALPHA]),
        "rows": content_digest(rows, [ID, SPLIT]) if rows else None,
        "train": config.train.model_dump(exclude=NOT_TRAINED_BY),
        "model": model_fingerprint(config.model),
        "seed": config.seed,
    }
    folder = place(stage_digest(inputs))

    def work() -> dict[str, Any]:
        session.connect()
        assert session.tracker is not None, "training logs"
        lineage = _lineage(name, config.model, smoothed, str(inputs["smoothed"]))
        with session.tracked(f"train {name}", folder, {STAGE_TAG: "train", **lineage}) as run:
            return _train_and_log(session, run, name, smoothed, rows, folder, lineage)

    done = run_stage(folder, inputs, work, force="train" in session.force)
    figures, last = done.figures, done.figures["last"]
    early = "" if last["step"] == figures["steps"] else f"{last['step']:.0f} of "
    exported = figures["exported"]
    text = f"{early}{figures['steps']} steps over {figures['train_rows']} rows; {figures['dropped_rows']} rows dropped; "
    text += f"training NLL {last['nll']:.3f}"
    if VALIDATION_NLL in last:
        text += f", validation NLL {figures['first_validation_nll']:.3f} -> {exported[VALIDATION_NLL]:.3f}"
        text += f" (best, step {exported['step']:.0f})" if exported["step"] != last["step"] else ""
    return session.finish(f"train {name}", done, f"{text}; {figures['median_tokens_per_second']:.0f} tokens/s")


# Settings that change where, how fast and how safely a model is trained, but its weights by no more than rounding: an
# interrupted training goes on with others of these.
NOT_TRAINED_BY = {
    *("num_workers", "min_workers", "cpus_per_worker", "gpus_per_worker", "micro_batch_size", "replicas", "accelerate_config"),
    *("reshard_after_forward", "activation_checkpointing", "cpu_offload", "uncertainty_bins", "peak_tflops"),
    *("checkpoint_every", "keep_checkpoints", "storage", "grace_seconds", "max_dropped_share", "max_failures"),
}


def _lineage(arm: str, model: str, smoothed: Path, digest: str) -> dict[str, str]:
    """Tags that link scored data -> alpha map -> training run -> registered model."""
    recorded = recorded_map(smoothed)
    return {
        ARM_TAG: arm,
        LINEAGE_MODEL: model,
        LINEAGE_SCORED: recorded.get(SCORED_DIGEST, UNKNOWN),
        LINEAGE_MAP: recorded.get("map", UNKNOWN),
        LINEAGE_SMOOTHED: digest,
    }


def _train_and_log(
    session: Session, run: Run, name: str, smoothed: Path, rows: Path | None, folder: Path, lineage: Mapping[str, str]
) -> dict[str, Any]:
    from ual_ray.train import stage
    from ual_ray.train.metrics import read_metrics

    assert session.tracker is not None, "training logs"
    config = stage.with_dtype(session.config, session.tracker.output)
    run.params({"train": config.train.model_dump(), "smooth": recorded_map(smoothed)})
    run.params({"model": config.model, "seed": config.seed})
    table = read_table(smoothed, [ID, ALPHA])
    run.dataset(f"smoothed {name}", smoothed, lineage[LINEAGE_SMOOTHED], len(table), "training")
    # A run that was interrupted is reopened, and holds the steps up to there already.
    logged = run.last_step("smoothed_loss")

    def make_meter(steps: int) -> Meter:
        return Meter(session.console, f"train {name}", steps, "tokens")

    def on_step(line: dict[str, float]) -> None:
        if line["step"] > logged:
            run.metrics({key: value for key, value in line.items() if key != "step"}, step=int(line["step"]))

    figures = stage.train(config, smoothed, rows, folder, make_meter, on_step, lineage)
    lines = read_metrics(folder / METRICS_FILE)
    speeds = sorted(line["tokens_per_second"] for line in lines if "tokens_per_second" in line)
    figures["median_tokens_per_second"] = speeds[len(speeds) // 2]
    figures["first_validation_nll"] = next((x[VALIDATION_NLL] for x in lines if VALIDATION_NLL in x), None)
    run.metrics({key: value for key, value in figures.items() if key != "last"}, step=int(figures["last"]["step"]))
    run.figure(plots.loss_curves({name: lines}), "plots/loss.png")
    run.figure(plots.loss_by_bin(lines, figures["uncertainty_bin_edges"]), "plots/loss_by_uncertainty.png")
    run.figure(plots.alpha_by_arm({name: table[ALPHA].to_pylist()}), "plots/alpha.png")
    version = run.model(folder / stage.MODEL_FOLDER, f"{config.tracking.register_as}-{name}", lineage)
    return figures | {"registered_version": version}


def questions_step(session: Session, rows: Path | None, place: Place) -> Done:
    """Gather the questions of every benchmark; `folder`/questions.parquet, which all models are asked from."""
    config = session.config
    evaluation.check_engine(config)
    benchmarks = config.evaluate.benchmarks
    inputs: dict[str, Any] = {
        "benchmarks": gathering.digests(benchmarks),
        "rows": content_digest(rows, [ID, SPLIT]) if rows and any(one.path is None for one in benchmarks.values()) else None,
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
    inputs: dict[str, Any] = model_and_engine | {"questions": content_digest(questions, [ID]), "name": name}
    folder = place(stage_digest(inputs))
    force = _forget(session, "evaluate", folder, store, retry=retry)

    def work() -> dict[str, Any]:
        total = read_table(questions, [ID]).num_rows
        session.connect()
        tags = {STAGE_TAG: "evaluate", ARM_TAG: name, "ual_ray.model": model}
        with (
            session.tracked(f"evaluate {name}", folder, tags) as run,
            meter(session.console, f"evaluate {name}", total, "rows") as shown,
        ):
            run.params(redact_values({"evaluate": config.evaluate.model_dump(), "model": model, "engine": inputs["engine"]}))
            run.dataset("questions", questions, inputs["questions"], total, "evaluation")
            result = evaluation.evaluate(config, name, model, questions, store, folder, shown)
            run.metrics(evaluation.metrics_of(result["figures"]))
            run.artifact(folder / evaluation.FIGURES_FILE)
            if result["disagreements"]:
                run.artifact(folder / evaluation.DISAGREEMENTS_FILE)
            run.table(evaluation.sample_table(folder), "results_sample.json")
            return result

    done = run_stage(folder, inputs, work, force=force)
    differ = done.figures["disagreements"]
    text = f"{done.figures['rows']} questions; {_quarantined(done.figures)}"
    text += f"; strict and flexible extraction differ on {differ}" if differ else ""
    return session.finish(f"evaluate {name}", done, text)


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def _quarantined(figures: Mapping[str, Any]) -> str:
    reasons = f" ({_counts(figures['reasons'])})" if figures["reasons"] else ""
    return f"{figures['quarantined']} quarantined{reasons}"
