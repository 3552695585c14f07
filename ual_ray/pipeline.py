"""The stages in order: rows -> elicit -> (smooth -> train) per arm -> evaluate, calibrate and judge all models -> report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from ual_ray.calibrating import calibrate_step
from ual_ray.config import BASE, REFERENCE_ANSWERS, Config
from ual_ray.elicit.finish import SCORED
from ual_ray.evaluate.pairs import Side
from ual_ray.evaluate.questions import QUESTIONS_FILE
from ual_ray.judging import judge_step
from ual_ray.records import ALPHA, ID, METRICS_FILE, RESULTS_FOLDER, read_table
from ual_ray.report.findings import REPORT_FOLDER, Findings
from ual_ray.reporting import Results, report
from ual_ray.settings import redact_uri, redact_values
from ual_ray.smooth.stage import SMOOTHED_FILE
from ual_ray.sources.prepare import ROWS_FOLDER
from ual_ray.steps import (
    LINEAGE_MODEL,
    STAGE_TAG,
    Session,
    below,
    elicit_step,
    evaluate_step,
    questions_step,
    smooth_step,
    train_step,
)
from ual_ray.tracking import Tracker
from ual_ray.train.loop import MODEL_FOLDER
from ual_ray.train.metrics import read_metrics
from ual_ray.watch import watched
from ual_ray.workspace import CONFIG_FILE, Workspace, point_to


def run(config: Config, console: Console, workspace: Workspace, force: frozenset[str] = frozenset()) -> Findings:
    """Do everything that is not done yet, and report. What is wrong with the input is `preflight.check`'s to find before."""
    with workspace.held():
        workspace.claim(config)
        tags = {STAGE_TAG: "pipeline", "ual_ray.data": redact_uri(config.data.path), LINEAGE_MODEL: config.model}
        with (
            Tracker(config.tracking, workspace.root) as tracker,
            tracker.run(workspace.root.name, workspace.root, tags) as parent,
            watched(config.tracking, tracker.uri, [parent]),
        ):
            session = Session(config, console, tracker, force, parent=parent)
            parent.params(redact_values({"data": config.data.model_dump(), "model": config.model, "seed": config.seed}))
            parent.artifact(workspace.root / CONFIG_FILE)
            parent.environment()
            with session.cluster:
                findings = report(session, do_stages(session, workspace.root), workspace.root / REPORT_FOLDER)
        session.say_failures()
        return findings


def do_stages(session: Session, root: Path) -> Results:
    """Do all stages but the report."""
    config, results = session.config, Results()

    elicited = elicit_step(session, below(root / "elicit"), below(root / "elicit" / "store"))
    point_to(root / "elicit", elicited.folder)
    rows, scored = elicited.folder / ROWS_FOLDER, elicited.folder / SCORED
    results.elicited, results.histograms = elicited.folder, elicited.figures["histograms"]
    models = {BASE: config.model}
    for arm, spec in config.arms.items():
        results.smoothed[arm] = smooth_step(session, arm, spec, scored, below(root / "arms" / arm / "smooth")).folder
    for arm, folder in results.smoothed.items():
        smoothed = folder / SMOOTHED_FILE
        results.alphas[arm] = read_table(smoothed, [ID, ALPHA])[ALPHA].to_pylist()
        trained = results.trained[arm] = train_step(session, arm, smoothed, rows, below(root / "arms" / arm / "train")).folder
        results.metrics[arm] = read_metrics(trained / METRICS_FILE)
        models[arm] = str(trained / MODEL_FOLDER)
    _measure(session, root, rows, models, results)
    return results


def _measure(session: Session, root: Path, rows: Path, models: Mapping[str, str], results: Results) -> None:
    """Ask every model the questions, measure its calibration, and have its answers judged."""
    config = session.config
    # A server elicits and judges; the arms are here, and only an engine of our own can load them.
    local = session
    if config.engine.kind == "openai":
        engine = config.engine.model_copy(update={"kind": "vllm"})
        local = replace(session, config=config.model_copy(update={"engine": engine}))
    questions = questions_step(local, rows, below(root / "questions")).folder / QUESTIONS_FILE
    for name, model in models.items():
        home = root / BASE if name == BASE else root / "arms" / name
        place = home / "evaluate"
        folder = evaluate_step(local, name, model, questions, below(place), below(place / "store")).folder
        results.evaluated[name] = folder
        point_to(place, folder)
        if config.evaluate.calibration.enabled:
            answers = folder / RESULTS_FOLDER
            place = home / "calibrate"
            results.calibrated[name] = calibrate_step(local, name, model, rows, answers, below(place)).folder
            point_to(place, results.calibrated[name])
    if config.judge.model is not None:
        _judge(session, root, results)


def _judge(session: Session, root: Path, results: Results) -> None:
    """Have every model's open-ended answers compared with those of judge.against."""
    against = session.config.judge.against
    sides = {name: Side(folder / RESULTS_FOLDER, name) for name, folder in results.evaluated.items()}
    reference = Side(None, REFERENCE_ANSWERS) if against == REFERENCE_ANSWERS else sides[against]
    for name, side in sides.items():
        if name != against:
            place = root / "judge" / f"{name}-vs-{against}"
            results.judged[name] = judge_step(session, side, reference, below(place), below(root / "judge" / "store")).folder
            point_to(place, results.judged[name])
