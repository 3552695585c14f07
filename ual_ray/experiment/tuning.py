"""The learning rate of every arm, chosen by its first training seed on validation rows, with as many trials for each arm.

The measure is the NLL at the temperature fitted to the validation tokens: raw NLL would decide against smoothing, and test
rows are not read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ual_ray.calibrate.step import validation_step
from ual_ray.config import Config
from ual_ray.config.files import write_json
from ual_ray.pipeline import train_arms, with_own_engine
from ual_ray.report.gather import StageFolders
from ual_ray.run.step import Place, Session

TRIALS_FILE = "learning_rates.json"

# arm -> learning rate -> NLL per validation token at the fitted temperature, in nats
Losses = Mapping[str, Mapping[float, float]]


def tuned(session: Session, rows: Path, scored: Path, tokens: Path, root: Path) -> Session:
    """Give every arm the best of experiment.learning_rates, where there are any; `root`/learning_rates.json has all trials.

    session: of a scenario, whose folder is `root`. The trials of the chosen rate are the first seed's trainings.
    """
    given = session.config.experiment
    if not given.learning_rates:
        return session
    home, seed = root / f"seed-{given.seeds[0]}", given.seeds[0]
    losses: dict[str, dict[float, float]] = {}
    for rate in given.learning_rates:
        label = ", ".join([*filter(None, [session.label]), f"seed {seed}", f"rate {rate:g}"])
        config = with_rates(session.config, dict.fromkeys(session.config.arms, rate)).model_copy(update={"seed": seed})
        trial = replace(session, config=config, label=label)
        for arm, model in train_arms(trial, rows, scored, tokens, home, StageFolders()).items():
            place = Place(home / "arms" / arm / "trials")
            measured = validation_step(with_own_engine(trial), arm, model, rows, place)
            losses.setdefault(arm, {})[rate] = measured.metrics["scaled_nll"]
    best = {arm: best_rate(found) for arm, found in losses.items()}
    _record(session, losses, best, root)
    return replace(session, config=with_rates(session.config, best))


def best_rate(losses: Mapping[float, float]) -> float:
    """Return the learning rate of the lowest finite loss, the first one where several have it."""
    return min(losses, key=lambda rate: losses[rate] if math.isfinite(losses[rate]) else math.inf)


def with_rates(config: Config, rates: Mapping[str, float]) -> Config:
    """Copy a configuration with the learning rates of its arms, and without those to try."""
    arms = {name: arm.model_copy(update={"learning_rate": rates[name]}) for name, arm in config.arms.items()}
    chosen = config.experiment.model_copy(update={"learning_rates": ()})
    return config.model_copy(update={"arms": arms, "experiment": chosen})


def _record(session: Session, losses: Losses, best: Mapping[str, float], root: Path) -> None:
    """Write all trials to the scenario's folder and to its run in MLflow, and print what was chosen."""
    trials = [
        {"arm": arm, "learning_rate": rate, "validation_nll_scaled": loss, "chosen": rate == best[arm]}
        for arm, found in losses.items()
        for rate, loss in found.items()
    ]
    write_json(root / TRIALS_FILE, {"trials": trials})
    if session.parent is not None:
        session.parent.table(_columns(trials), f"tables/{TRIALS_FILE}")
    for arm, found in losses.items():
        listed = ", ".join(f"{rate:g}: {loss:.4f}" for rate, loss in found.items())
        session.say("learning rate", f"{arm}: {best[arm]:g}, of {len(found)} by validation NLL after scaling ({listed})")


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in rows[0]}
