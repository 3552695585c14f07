"""`ual evaluate` and `ual judge`: the steps of stage 4 on one model alone, outside a pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ual_ray.calibrating import calibrate_step
from ual_ray.evaluate.lm_eval import engine_options, run_lm_eval
from ual_ray.evaluate.pairs import Side
from ual_ray.evaluate.questions import QUESTIONS_FILE
from ual_ray.evaluate.stage import metrics_of
from ual_ray.judging import judge_step, side
from ual_ray.records import RESULTS_FOLDER
from ual_ray.steps import STAGE_TAG, Session, below, evaluate_step, questions_step
from ual_ray.workspace import point_to


def evaluate_alone(session: Session, name: str, rows: Path | None, out: Path, *, retry: bool = False) -> None:
    """Ask the configured model every question, and measure its calibration on the rows where there are any."""
    config = session.config
    questions = questions_step(session, rows, below(out / "questions")).folder / QUESTIONS_FILE
    home = out / "evaluate"
    done = evaluate_step(session, name, config.model, questions, below(home), below(home / "store"), retry=retry)
    point_to(home, done.folder)
    if rows is not None and config.evaluate.calibration.enabled:
        place = out / "calibrate"
        answers = done.folder / RESULTS_FOLDER
        point_to(place, calibrate_step(session, name, config.model, rows, answers, below(place)).folder)


def judge_alone(session: Session, candidate: Path | None, reference: Path | None, out: Path) -> None:
    """Compare two sets of answers; None = those that the questions came with."""
    sides = [Side(None) if path is None else side(path, None, out / "answers") for path in (candidate, reference)]
    done = judge_step(session, sides[0], sides[1], below(out / "judge"), below(out / "judge" / "store"))
    point_to(out / "judge", done.folder)


def run_harness(session: Session, name: str, tasks: Sequence[str], out: Path) -> None:
    """Run tasks of lm-evaluation-harness on the configured model; its numbers go to `out`/lm_eval.json and MLflow."""
    _, figures = run_lm_eval(session.config.model, tasks, out, engine_options(session.config))
    with session.tracked(f"lm-eval {name}", out / "lm_eval", {STAGE_TAG: "evaluate"}) as run:
        run.metrics(metrics_of([figure.as_dict() for figure in figures]))
    for figure in figures:
        error = "" if figure.standard_error is None else f" +- {figure.standard_error:.4f}"
        session.say("lm-eval", f"{figure.benchmark} {figure.metric}: {figure.value:.4f}{error} (n = {figure.n})")
