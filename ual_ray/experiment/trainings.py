"""The trainings of an experiment: every arm with every seed, as many side by side as the cluster has room for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import TypeVar

from ual_ray.models.resolve import parameter_count, resolve_model
from ual_ray.pipeline import register_arm, smooth_arm, train_arm
from ual_ray.report.gather import StageFolders
from ual_ray.run.cluster import groups_of_workers
from ual_ray.run.side_by_side import side_by_side
from ual_ray.run.step import Session
from ual_ray.train.estimate.state import least_bytes

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
        found[seed].smoothed = {arm: smooth_arm(session, arm, scored, homes[seed]) for arm in session.config.arms}
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
        found = min(found, int(free["memory"] // (MEMORY_FACTOR * least_bytes(parameters, train))))
    return max(1, found)
