"""`ual experiment CONFIG`: arms x seeds x scenarios over one elicitation, as one run that resumes.

output/
  elicit/                       shared by all
  SCENARIO/base/, questions/    the model before training, and what every model is asked
  SCENARIO/tokens/              the rendered rows, which all arms and seeds share
  SCENARIO/learning_rates.json  the trials of experiment.learning_rates, and which were chosen
  SCENARIO/seed-N/arms/ARM/     alphas, training, answers and calibration of one arm and seed
  SCENARIO/report/              the arms over seeds
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from ual_ray import columns as col
from ual_ray.config import BASE, Config
from ual_ray.config.experiment import ANSWERS_FOLDER, ELICIT_FOLDER
from ual_ray.config.files import write_text
from ual_ray.config.load import dump
from ual_ray.config.redact import redact
from ual_ray.elicit.step import elicit_step
from ual_ray.experiment.scenarios import check_primary, check_sources, check_splits, count_sources, read_splits, select_step
from ual_ray.experiment.tuning import train_seeds, tuned
from ual_ray.pipeline import ask, measure, opened, record_primary
from ual_ray.report.findings import REPORT_FOLDER, Findings
from ual_ray.report.gather import StageFolders
from ual_ray.report.primary import not_counted, planned_seeds
from ual_ray.report.step import report
from ual_ray.run import StageName
from ual_ray.run.output import CONFIG_FILE, Workspace
from ual_ray.run.step import STAGE_TAG, Place, Session
from ual_ray.train.step import tokens_step

SCENARIO_TAG = "ual_ray.scenario"


def run(
    config: Config, console: Console, workspace: Workspace, force: frozenset[StageName] = frozenset()
) -> dict[str, Findings]:
    """Do everything that is not done yet, and report on every scenario; return what was found by scenario."""
    with opened(config, console, workspace, force) as session:
        elicited = elicit_step(session, Place(workspace.root / ELICIT_FOLDER)).folder
        rows = elicited / col.ROWS_FOLDER
        check_sources(count_sources(rows), config.experiment.scenarios)
        check_splits(read_splits(rows), config)
        check_primary(rows, config)
        return {name: _scenario(session, name, elicited, workspace.root) for name in config.experiment.scenarios}


def _scenario(session: Session, name: str, elicited: Path, output: Path) -> Findings:
    root, several = output / name, len(session.config.experiment.scenarios) > 1
    sources = session.config.experiment.scenarios[name]
    session = replace(session, config=session.config.in_scenario(name))
    with _tracked(session, name, root, several=several) as own:
        rows, scored = elicited / col.ROWS_FOLDER, elicited / col.SCORED_FOLDER
        rows, scored = select_step(own, sources, rows, scored, Place(root / "rows"))
        _write_config(own, root, session.config.seed)
        record_primary(own, root)
        _say_unplanned(own, root)
        questions, base = ask(own, rows, root), StageFolders()
        # Judging waits for the arms: judge.against may name one of them.
        no_judge = own.config.model_copy(update={"judge": own.config.judge.without_judges()})
        unjudged = replace(own, config=no_judge)
        measure(unjudged, root, rows, questions, {BASE: own.config.model}, base, store=output / ANSWERS_FOLDER)
        tokens = tokens_step(own, scored, rows, Place(root / "tokens"))
        tried = bool(own.config.experiment.learning_rates)
        own = tuned(own, rows, scored, tokens, root)
        by_seed = _train_and_measure(own, rows, scored, tokens, questions, root, base, tried=tried)
        base.elicited = elicited
        return report(own, _together(base, by_seed, own.config.seed), root / REPORT_FOLDER)


def _train_and_measure(
    session: Session,
    rows: Path,
    scored: Path,
    tokens: Path,
    questions: Path,
    root: Path,
    base: StageFolders,
    *,
    tried: bool,
) -> dict[int, StageFolders]:
    """Train every arm with every seed, then measure the models; return the folders by seed.

    tried: learning rates were tried, so the first seed is trained, and --force has been obeyed.
    """
    config = session.config
    homes = {seed: root / f"seed-{seed}" for seed in config.experiment.seeds}
    seeded = {seed: session.labelled(f"seed {seed}") for seed in homes}
    training = {seed: replace(own, config=config.model_copy(update={"seed": seed})) for seed, own in seeded.items()}
    if tried:
        first = config.experiment.seeds[0]
        training[first] = replace(training[first], force=session.force - {"train"})
    for seed, home in homes.items():
        _write_config(training[seed], home, seed)
    found = train_seeds(training, homes, rows, scored, tokens)
    for seed, results in found.items():
        results.evaluated |= base.evaluated
        models = {arm: str(folder / col.MODEL_FOLDER) for arm, folder in results.trained.items()}
        # What the models are asked, and how, does not depend on the seed that trained them.
        measure(seeded[seed], homes[seed], rows, questions, models, results)
    return found


@contextmanager
def _tracked(session: Session, name: str, root: Path, *, several: bool) -> Iterator[Session]:
    """Give a scenario a run of its own in MLflow, which its steps are below, where there are several scenarios."""
    if not several:
        yield session
        return
    with session.tracked(name, root, {STAGE_TAG: "scenario", SCENARIO_TAG: name}) as run:
        yield replace(session, parent=run, label=name)


def _write_config(session: Session, folder: Path, seed: int) -> None:
    """Let `ual report` and `ual promote` read the folder as they read that of a run."""
    config = session.config.model_copy(update={"seed": seed})
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / CONFIG_FILE, dump(redact(config)))


def _say_unplanned(session: Session, root: Path) -> None:
    """Print which seeds will not count, before they are trained."""
    planned = planned_seeds([root])
    if planned and (uncounted := {*session.config.experiment.seeds} - planned):
        session.say("seeds", not_counted(sorted(uncounted), len(planned)), style="yellow")


def _together(base: StageFolders, by_seed: Mapping[int, StageFolders], base_seed: int) -> dict[int, StageFolders]:
    """Put the results of the model before training, which every seed refers to, under one seed."""
    found = {
        seed: replace(one, evaluated={name: folder for name, folder in one.evaluated.items() if name not in base.evaluated})
        for seed, one in by_seed.items()
    }
    with_base = found.get(base_seed, StageFolders())
    kinds = {kind: getattr(base, kind) | getattr(with_base, kind) for kind in ("evaluated", "calibrated", "judged")}
    return found | {base_seed: replace(with_base, elicited=base.elicited, **kinds)}
