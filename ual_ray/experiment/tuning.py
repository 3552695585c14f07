"""The trainings of an experiment: every arm with every seed, as many side by side as the cluster has room for.

The learning rate of every arm is chosen by its first training seed on validation rows, with as many trials for each arm.

The measure is the NLL at the temperature fitted to the validation tokens: raw NLL would decide against smoothing, and test
rows are not read. A trial that diverges has lost.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

from ual_ray import columns as col
from ual_ray.calibrate.step import validation_step
from ual_ray.config import Config
from ual_ray.config.experiment import TRIALS_FILE
from ual_ray.config.files import write_record
from ual_ray.errors import DivergedError, UserError
from ual_ray.models.resolve import parameter_count, resolve_model
from ual_ray.pipeline import register_arm, smooth_arm, train_arm, with_own_engine
from ual_ray.report.findings import at_an_end
from ual_ray.report.gather import StageFolders
from ual_ray.run.cluster import groups_of_workers
from ual_ray.run.side_by_side import side_by_side
from ual_ray.run.step import Place, Session
from ual_ray.train.estimate.state import heaviest, least_bytes

# OURS: memory of a training on CPUs over `least_bytes`, which leaves out activations and what the loss keeps.
MEMORY_FACTOR = 2.0
# For MLflow and the files of a training that was told to end, after train.grace_seconds.
ENDING_SECONDS = 10.0
Result = TypeVar("Result")


def train_seeds(
    sessions: Mapping[int, Session], homes: Mapping[int, Path], rows: Path, scored: Path, tokens: Path
) -> dict[int, StageFolders]:
    """Smooth and train every arm with every seed, whose folder is its home; return the folders by seed.

    The models are registered in MLflow in the order of seeds and arms, whichever training ends first.
    """
    found = {seed: StageFolders() for seed in sessions}
    for seed, session in sessions.items():
        found[seed].smoothed = {arm: smooth_arm(session, arm, scored, tokens, homes[seed]) for arm in session.config.arms}
    tasks = {
        session.titled(f"train {arm}"): partial(
            train_arm, session, arm, found[seed].smoothed[arm], rows, tokens, homes[seed], register=False
        )
        for seed, session in sessions.items()
        for arm in session.config.arms
    }
    first = next(iter(sessions.values()))
    trained = iter(in_parallel(first, tasks).values())
    for seed, session in sessions.items():
        for arm in session.config.arms:
            done = next(trained)
            register_arm(session, arm, found[seed].smoothed[arm], done)
            found[seed].trained[arm] = done.folder
    return found


def in_parallel(session: Session, tasks: Mapping[str, Callable[[], Result]]) -> dict[str, Result]:
    """Run trainings by their titles, as many at a time as there is room for; return their results in their order.

    One at a time until the first that is not finished has joined the cluster: what is finished needs none.
    """

    @cache
    def at_once() -> int:
        found = trainings_at_once(session)
        if found > 1 < len(tasks):
            session.say("trainings", f"up to {found} side by side (experiment.parallel={session.config.experiment.parallel})")
        return found

    def room() -> int:
        return at_once() if session.cluster.connected else 1

    return side_by_side(tasks, room, session.say_failed, session.config.train.grace_seconds + ENDING_SECONDS)


def trainings_at_once(session: Session) -> int:
    """Return how many trainings may run side by side on the cluster that was joined: experiment.parallel, or what it holds."""
    given = session.config.experiment.parallel
    if given != "auto":
        return given
    train, free = session.config.train, session.cluster.free
    found = groups_of_workers(train, free)
    parameters = None if train.gpus_per_worker else parameter_count(resolve_model(session.config.model))
    if parameters and "memory" in free:
        found = min(found, int(free["memory"] // (MEMORY_FACTOR * least_bytes(parameters, heaviest(session.config)))))
    return max(1, found)


@dataclass(frozen=True)
class Trial:
    """A training at a learning rate; loss: NLL per validation token at the fitted temperature, in nats; None = diverged."""

    arm: str
    rate: float
    loss: float | None
    reason: str | None = None


def tuned(session: Session, rows: Path, scored: Path, tokens: Path, root: Path) -> Session:
    """Give every arm the best of experiment.learning_rates, where there are any; `root`/learning_rates.json has all trials.

    session: of a scenario, whose folder is `root`. The trials of the chosen rate are the first seed's trainings; no trial is
    registered in MLflow. Raises UserError when all trials of an arm diverged.
    """
    given = session.config.experiment
    if not given.learning_rates:
        (root / TRIALS_FILE).unlink(missing_ok=True)
        return session
    home, seed = root / f"seed-{given.seeds[0]}", given.seeds[0]
    first = replace(session.labelled(f"seed {seed}"), config=session.config.model_copy(update={"seed": seed}))
    smoothed = {arm: smooth_arm(first, arm, scored, tokens, home) for arm in session.config.arms}
    at_rate = {rate: _with_rate(first, rate) for rate in given.learning_rates}
    tasks = {
        own.titled(f"train {arm}"): partial(_train, own, arm, smoothed[arm], rows, tokens, home)
        for arm in session.config.arms
        for own in at_rate.values()
    }
    trained = iter(in_parallel(first, tasks).values())
    trials = [
        _measured(own, arm, rate, next(trained), rows, home) for arm in session.config.arms for rate, own in at_rate.items()
    ]
    best = {arm: best_rate([trial for trial in trials if trial.arm == arm]) for arm in session.config.arms}
    _record(session, trials, best, root)
    if lost := [arm for arm, rate in best.items() if rate is None]:
        raise _all_diverged(lost[0], trials)
    return replace(session, config=with_rates(session.config, best))


def _with_rate(session: Session, rate: float) -> Session:
    config = with_rates(session.config, dict.fromkeys(session.config.arms, rate))
    return replace(session.labelled(f"rate {rate}"), config=config)


def _train(session: Session, arm: str, smoothed: Path, rows: Path, tokens: Path, home: Path) -> Path | str:
    """Train an arm at a learning rate; return the model, or why the training diverged."""
    try:
        done = train_arm(session, arm, smoothed, rows, tokens, home, register=False, trial=True)
    except DivergedError as error:
        reason = str(error).splitlines()[0]
        session.say(session.titled(f"train {arm}"), f"diverged, so this learning rate has lost: {reason}", style="yellow")
        return reason
    return done.folder / col.MODEL_FOLDER


def _measured(session: Session, arm: str, rate: float, trained: Path | str, rows: Path, home: Path) -> Trial:
    """Measure a trained model on validation rows; `trained`: what `_train` returned."""
    if isinstance(trained, str):
        return Trial(arm, rate, None, trained)
    place = Place(home / "arms" / arm / "trials")
    loss = float(validation_step(with_own_engine(session), arm, str(trained), rows, place).metrics["scaled_nll"])
    return Trial(arm, rate, loss) if math.isfinite(loss) else Trial(arm, rate, None, f"the validation NLL is {loss}")


def best_rate(trials: Sequence[Trial]) -> float | None:
    """Return the learning rate of the lowest loss, the first one where several have it; None when all trials diverged."""
    kept = [trial for trial in trials if trial.loss is not None]
    return min(kept, key=lambda trial: trial.loss or 0.0).rate if kept else None


def with_rates(config: Config, rates: Mapping[str, float | None]) -> Config:
    """Copy a configuration with the learning rates of its arms, and without those to try."""
    arms = {name: arm.model_copy(update={"learning_rate": rates[name]}) for name, arm in config.arms.items()}
    chosen = config.experiment.model_copy(update={"learning_rates": ()})
    return config.model_copy(update={"arms": arms, "experiment": chosen})


def _all_diverged(arm: str, trials: Sequence[Trial]) -> UserError:
    own = [trial for trial in trials if trial.arm == arm]
    return UserError(
        f"experiment.learning_rates: the arm '{arm}' diverged at each of them",
        got="; ".join(f"{trial.rate:g}: {trial.reason}" for trial in own),
        expected="a learning rate at which every arm trains with a finite loss",
        fix="add lower learning rates, or drop the arm",
    )


def _record(session: Session, trials: Sequence[Trial], best: Mapping[str, float | None], root: Path) -> None:
    """Write all trials to the scenario's folder and to its run in MLflow, and print what was chosen."""
    entries = [
        {
            "arm": trial.arm,
            "learning_rate": trial.rate,
            "validation_nll_scaled": trial.loss,
            "chosen": trial.rate == best[trial.arm],
            "diverged": trial.reason,
        }
        for trial in trials
    ]
    write_record(root / TRIALS_FILE, {"trials": entries})
    if session.parent is not None:
        session.parent.table(_columns(entries), f"tables/{TRIALS_FILE}")
    for arm, rate in best.items():
        own = [trial for trial in trials if trial.arm == arm]
        diverged = sum(trial.loss is None for trial in own)
        listed = ", ".join(f"{x.rate:g}: {'diverged' if x.loss is None else f'{x.loss:.4f}'}" for x in own)
        count = f"{len(own)}, {diverged} of them diverged," if diverged else str(len(own))
        chosen = "none" if rate is None else f"{rate:g}"
        session.say("learning rate", f"{arm}: {chosen}, of {count} by validation NLL after scaling ({listed})")
    for text in at_an_end(entries):
        session.say("learning rate", text, style="yellow")


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in rows[0]}
