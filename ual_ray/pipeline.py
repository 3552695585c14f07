"""The stages in order: rows -> elicit -> (smooth -> train) per arm -> evaluate, calibrate and judge all models -> report."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from rich.console import Console

from ual_ray import columns as col
from ual_ray.calibrate.step import calibrate_step
from ual_ray.config import BASE, REFERENCE_ANSWERS, Config
from ual_ray.config.redact import redact_uri, redact_values
from ual_ray.elicit.step import elicit_step
from ual_ray.evaluate.step import evaluate_step, harness_step, questions_step
from ual_ray.judge.pairs import AnswerSet, make_pairs
from ual_ray.judge.stage import open_ended_benchmarks, read_answers
from ual_ray.judge.step import judge_step
from ual_ray.report.findings import REPORT_FOLDER, Findings, judged_key
from ual_ray.report.gather import StageFolders
from ual_ray.report.primary import record
from ual_ray.report.step import report
from ual_ray.run import StageName
from ual_ray.run.output import CONFIG_FILE, Workspace
from ual_ray.run.precision import with_inference_dtype
from ual_ray.run.side_by_side import side_by_side
from ual_ray.run.stage_cache import Done
from ual_ray.run.step import LINEAGE_MODEL, STAGE_TAG, Place, Session
from ual_ray.smooth.step import smooth_step
from ual_ray.tracking.tracker import Tracker
from ual_ray.tracking.watcher import watched
from ual_ray.train.step import register_model, tokens_step, train_step

# Of calibrations that are told to end.
ENDING_SECONDS = 10.0
PRIMARY_TAG = "ual_ray.primary"


def run(config: Config, console: Console, workspace: Workspace, force: frozenset[StageName] = frozenset()) -> Findings:
    """Do everything that is not done yet, and report. What is wrong with the input is `preflight.check`'s to find before."""
    with opened(config, console, workspace, force) as session:
        record_primary(session, workspace.root)
        stages = do_stages(session, workspace.root)
        return report(session, {config.seed: stages}, workspace.root / REPORT_FOLDER)


def record_primary(session: Session, root: Path) -> None:
    """Record which measures decide, before there are results: in a file, and as a tag in MLflow."""
    recorded = record(session.config, root)
    if session.parent is not None:
        session.parent.tags({PRIMARY_TAG: ", ".join(recorded["measures"]), f"{PRIMARY_TAG}.digest": recorded["digest"]})


@contextmanager
def opened(config: Config, console: Console, workspace: Workspace, force: frozenset[StageName]) -> Iterator[Session]:
    """Claim the output folder and open MLflow's run of the whole, which the steps' runs are below."""
    with workspace.held():
        workspace.claim(config)
        tags = {STAGE_TAG: "pipeline", "ual_ray.data": redact_uri(config.data.path), LINEAGE_MODEL: config.model}
        with (
            Tracker(config.tracking, workspace.root) as tracker,
            tracker.run(workspace.root.name, workspace.root, tags) as parent,
            watched(config.tracking, tracker.uri, [parent]),
        ):
            session = Session(with_inference_dtype(config, workspace.root), console, tracker, force, parent=parent)
            parent.params(redact_values({"data": config.data.model_dump(), "model": config.model, "seed": config.seed}))
            parent.artifact(workspace.root / CONFIG_FILE)
            parent.environment()
            with session.cluster:
                yield session
        session.say_failures()


def do_stages(session: Session, root: Path) -> StageFolders:
    """Do all stages but the report."""
    results = StageFolders()
    elicited = elicit_step(session, Place(root / "elicit"))
    rows, scored = elicited.folder / col.ROWS_FOLDER, elicited.folder / col.SCORED_FOLDER
    results.elicited = elicited.folder
    tokens = tokens_step(session, scored, rows, Place(root / "tokens"))
    models = {BASE: session.config.model, **train_arms(session, rows, scored, tokens, root, results)}
    measure(session, root, rows, ask(session, rows, root), models, results)
    return results


def train_arms(session: Session, rows: Path, scored: Path, tokens: Path, root: Path, results: StageFolders) -> dict[str, str]:
    """Smooth and train every arm in `root`/arms; return the models by arm. `results` gets the folders.

    tokens: the rendered rows, which arms share: an arm costs its alphas, not its texts.
    """
    arms = session.config.arms
    results.smoothed |= {arm: smooth_arm(session, arm, scored, tokens, root) for arm in arms}
    results.trained |= {arm: train_arm(session, arm, results.smoothed[arm], rows, tokens, root).folder for arm in arms}
    return {arm: str(results.trained[arm] / col.MODEL_FOLDER) for arm in arms}


def smooth_arm(session: Session, arm: str, scored: Path, tokens: Path, root: Path) -> Path:
    """Give the rows the alphas of an arm in `root`/arms/ARM; return their folder."""
    spec = session.config.arms[arm]
    # With the loss that it trains with, which tells a control from the baseline.
    spec = spec.model_copy(update={"loss": spec.loss or session.config.train.loss})
    return smooth_step(session, arm, spec, scored, Place(root / "arms" / arm / "smooth"), tokens).folder


def train_arm(
    session: Session,
    arm: str,
    smoothed: Path,
    rows: Path,
    tokens: Path,
    root: Path,
    *,
    register: bool = True,
    trial: bool = False,
) -> Done:
    """Train an arm in `root`/arms/ARM by its own settings, as `train_step` does; smoothed: what `smooth_arm` returned."""
    place, settings = Place(root / "arms" / arm / "train"), session.config.arms[arm].training(session.config.train)
    file = smoothed / col.SMOOTHED_FILE
    return train_step(session, arm, file, rows, place, settings, tokens, register=register, trial=trial)


def register_arm(session: Session, arm: str, smoothed: Path, trained: Done) -> None:
    """Register the model of an arm that `train_arm` trained without registering it."""
    register_model(session, arm, smoothed / col.SMOOTHED_FILE, trained, session.config.arms[arm].training(session.config.train))


def with_own_engine(session: Session) -> Session:
    """Evaluate with an engine of our own: a server elicits and judges, but the arms are here."""
    if not session.config.engine.remote:
        return session
    engine = session.config.engine.model_copy(update={"kind": "vllm"})
    return replace(session, config=session.config.model_copy(update={"engine": engine}))


def ask(session: Session, rows: Path, root: Path) -> Path:
    """Gather the questions that all models are asked, in `root`/questions; return their file."""
    return questions_step(with_own_engine(session), rows, Place(root / "questions")).folder / col.QUESTIONS_FILE


def measure(
    session: Session,
    root: Path,
    rows: Path,
    questions: Path,
    models: Mapping[str, str],
    results: StageFolders,
    store: Path | None = None,
) -> None:
    """Ask every model the questions, run the harness's tasks, measure calibration, have answers judged; fill `results`.

    store: folder of the models' answers, where several roots share it.
    """
    config, own = session.config, with_own_engine(session)
    for name, model in models.items():
        place = Place(_home(root, name) / "evaluate", store=store)
        results.evaluated[name] = evaluate_step(own, name, model, questions, place).folder
    for name, model in models.items() if config.evaluate.lm_eval else ():
        harness_step(own, name, config.evaluate.lm_eval, Place(_home(root, name) / "lm_eval"), model=model, on_cluster=True)
    if config.evaluate.calibration.enabled:
        results.calibrated |= _calibrate(own, root, rows, models, results)
    if config.judge.model is not None:
        _judge(session, root, results, {BASE: config.model, **models})


def _calibrate(session: Session, root: Path, rows: Path, models: Mapping[str, str], results: StageFolders) -> dict[str, Path]:
    """Measure the calibration of every model in a task each, which Ray runs side by side where there is room."""

    def calibrate(name: str) -> Path:
        answers, place = results.evaluated[name] / col.RESULTS_FOLDER, Place(_home(root, name) / "calibrate")
        return calibrate_step(session, name, models[name], rows, answers, place).folder

    def room() -> int:
        # On CPUs a task takes all cores, and can reuse the process, with its imports, of the one before.
        return len(models) if session.cluster.connected and session.config.engine.gpus_per_actor else 1

    tasks = {name: partial(calibrate, name) for name in models}
    return side_by_side(tasks, room, lambda name, error: session.say_failed(f"calibrate {name}", error), ENDING_SECONDS)


def _home(root: Path, name: str) -> Path:
    """Return the folder of a model's results."""
    return root / BASE if name == BASE else root / "arms" / name


def _judge(session: Session, root: Path, results: StageFolders, models: Mapping[str, str]) -> None:
    """Have every model's open-ended answers compared with those of every reference in judge.against."""
    sides = {name: AnswerSet(folder / col.RESULTS_FOLDER, name) for name, folder in results.evaluated.items()}
    references = {
        name: AnswerSet(None, name) if name == REFERENCE_ANSWERS else sides[name] for name in session.config.judge.references
    }
    judged: set[frozenset[str]] = set()
    for against, reference in references.items():
        for name, answers in sides.items():
            # Of two references, each pair is judged once: the other way round has the same verdicts.
            if name == against or frozenset((name, against)) in judged:
                continue
            judged.add(frozenset((name, against)))
            key = judged_key(name, against)
            place = Place(root / "judge" / key, store=root / "judge" / "store")
            results.judged[key] = judge_step(session, answers, reference, place, model=models[name]).folder


def evaluate_alone(session: Session, name: str, rows: Path | None, out: Path, *, retry: bool = False) -> None:
    """Ask the configured model every question, and measure its calibration on the rows where there are any."""
    config = session.config
    questions = questions_step(session, rows, Place(out / "questions")).folder / col.QUESTIONS_FILE
    done = evaluate_step(session, name, config.model, questions, Place(out / "evaluate"), retry=retry)
    if rows is not None and config.evaluate.calibration.enabled:
        calibrate_step(session, name, config.model, rows, done.folder / col.RESULTS_FOLDER, Place(out / "calibrate"))


def judge_alone(session: Session, candidate: Path | None, reference: Path | None, out: Path, *, retry: bool = False) -> None:
    """Compare two sets of answers; None = those that the questions came with. Raises UserError where nothing can be paired."""
    sides = [AnswerSet(None) if path is None else read_answers(path, None, out / "answers") for path in (candidate, reference)]
    make_pairs(sides[0], sides[1], session.config.seed, open_ended_benchmarks(session.config))  # before Ray and the judge start
    judge_step(session, sides[0], sides[1], Place(out / "judge"), retry=retry)
