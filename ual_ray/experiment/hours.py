"""How long an experiment takes and what its devices cost, from the rates that its pilot, or what of it ran, measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ual_ray.config import Config
from ual_ray.config.experiment import ELICIT_FOLDER
from ual_ray.formatting import duration
from ual_ray.plan.outline import Outline, time_calibration, time_evaluation, time_scoring, time_training, totals
from ual_ray.plan.rates import Trial, read_trial
from ual_ray.run.stage_cache import DONE_FILE

# What is timed, and the rate that it needs.
NEEDED = {
    "scoring": "elicit.rows_per_second",
    "training": "train.tokens_per_second",
    "evaluation": "evaluate.seconds_per_question",
    "calibration": "calibrate.seconds_per_token",
}


def hours(
    config: Config, rows: int, folders: Sequence[Path], trials: int, given: Mapping[str, float]
) -> Iterator[tuple[str, str]]:
    """Yield the time of every stage, and of all, as if each step ran alone; what is finished counts too.

    rows: that are scored. folders: outputs of experiments, of which the last that measured a stage counts. trials: learning
    rates that are tried besides, per arm. given: rates in place of measured ones.
    """
    settings, whole, missing, notes = config.experiment, Outline(), list[str](), dict[str, None]()
    several = len(settings.scenarios) > 1
    models = _times(config, len(settings.seeds))
    for number, name in enumerate(settings.scenarios):
        found = [*_measured(folders, config, name)]
        plan, where = Outline(), f" ({name})" if several else ""
        for stage, rate in NEEDED.items():
            if (stage == "scoring" and number) or (stage == "calibration" and not config.evaluate.calibration.enabled):
                continue
            trial = next((one for one in reversed(found) if rate in one.rates), Trial())
            trial.rates |= given
            if rate in trial.rates and stage == "scoring":
                time_scoring(plan, config, rows, trial.rates, seed=0)
            elif rate in trial.rates and stage == "training":
                trained = round(rows * trial.trained / trial.rows) if trial.rows else rows
                time_training(plan, _times(config, len(settings.seeds) + trials), trained, trial.rates)
            elif rate in trial.rates:
                (time_evaluation if stage == "evaluation" else time_calibration)(plan, models, rows, trial)
            if stage not in plan.seconds:
                missing.append(f"{stage}{where}")
                notes |= dict.fromkeys(note for one in found for note in one.notes)
        yield from ((f"{text}{where}", line) for text, line in plan.lines if text.endswith(", time"))
        whole.device_hours += plan.device_hours
        whole.seconds[name] = sum(plan.seconds.values())
    if whole.device_hours:
        known = " of what is known" if missing else ""
        yield "time, in all", f"{duration(sum(whole.seconds.values()))}{known}, one step after another"
        yield from totals(whole, given)
    left_out = {"judging": config.judge.model, "tasks of lm-evaluation-harness": config.evaluate.lm_eval}
    if any(left_out.values()):
        yield "time, not counted", " and ".join(what for what, asked in left_out.items() if asked)
    if missing:
        yield "time, not known", "; ".join([f"of {', '.join(missing)}: run `ual pilot CONFIG`, which measures it", *notes])


def _measured(folders: Sequence[Path], config: Config, scenario: str) -> Iterator[Trial]:
    for folder in folders:
        if any(folder.glob(f"{ELICIT_FOLDER}/*/{DONE_FILE}")):
            yield read_trial(folder, config.train.num_workers, config.engine.max_actors, f"{scenario}/seed-*/")


def _times(config: Config, count: int) -> Config:
    """Repeat every arm, once per training."""
    arms = {f"{name} {number}": arm for name, arm in config.arms.items() for number in range(count)}
    return config.model_copy(update={"arms": arms})
