"""Rates that were measured: read from the output of a trial, or given as KEY=VALUE. Nothing here has a default."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from ual_ray.config.files import read_object
from ual_ray.errors import UserError
from ual_ray.run.output import recorded_config
from ual_ray.run.stage_cache import DONE_FILE, newest

# What a rate is, by its key.
RATES = {
    "elicit.rows_per_second": "rows per second of one actor once it has started",
    "elicit.start_seconds": "seconds until an actor has loaded its model",
    "elicit.calls_per_row": "requests per row",
    "elicit.prompt_tokens_per_row": "prompt tokens per row",
    "elicit.generated_tokens_per_row": "generated tokens per row",
    "train.tokens_per_second": "tokens per second of all training workers together",
    "train.tokens_per_row": "tokens per training row",
    "train.start_seconds": "seconds of a training around its steps: start, validation, checkpoints, export",
    "evaluate.start_seconds": "seconds of the evaluation of one model around its questions",
    "evaluate.seconds_per_question": "seconds per question of the evaluation of one model, on all actors together",
    "calibrate.start_seconds": "seconds of the calibration of one model around its tokens",
    "calibrate.seconds_per_token": "seconds per token of the calibration of one model",
    "failures_per_actor_hour": "failures per hour of one actor, such as preemptions of spot machines",
    "price_per_device_hour": "price of an hour of one device: a GPU, or a CPU core where no GPUs are asked for",
}
# These may be 0.
MAY_BE_ZERO = {key for key in RATES if key.endswith("start_seconds")} | {
    "elicit.generated_tokens_per_row",
    "failures_per_actor_hour",
}

# Metrics and seconds of a stage.
Finished = tuple[Mapping[str, Any], float]


@dataclass
class Trial:
    """What trials measured: rates by the keys of `RATES`; scored rows; questions by benchmark; calibrated tokens by split.

    trained: rows that a training had. capped: benchmarks that may have more questions, as max_rows was reached. notes: what the
    trials do not tell.
    """

    rates: dict[str, float] = field(default_factory=dict)
    rows: int = 0
    trained: int = 0
    questions: dict[str, int] = field(default_factory=dict)
    capped: set[str] = field(default_factory=set)
    tokens: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def update(self, other: Trial) -> None:
        """Take what the other one measured in place of one's own."""
        self.rates |= other.rates
        # Questions and tokens grow with the rows that they were counted of.
        if other.questions or other.tokens or not (self.questions or self.tokens):
            self.rows = other.rows or self.rows
        if other.questions:
            self.questions, self.capped = other.questions, other.capped
        self.tokens, self.trained = other.tokens or self.tokens, other.trained or self.trained
        self.notes = self.notes + other.notes


def parse_rates(given: Iterable[str]) -> dict[str, float]:
    """Read KEY=VALUE rates. Raises UserError for an unknown key, and for what is not a positive number."""
    rates = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or key not in RATES:
            known = "".join(f"\n    {name}: {what}" for name, what in RATES.items())
            raise UserError(
                "--rate is not KEY=VALUE with a known rate",
                got=text,
                expected=known,
                fix="such as --rate elicit.rows_per_second=2",
            )
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not (0 < number < math.inf or (number == 0 and key in MAY_BE_ZERO)):
            lowest = "0 or a positive number" if key in MAY_BE_ZERO else "a positive number"
            raise UserError(f"--rate {key} is not a rate", got=value, expected=f"{lowest}: {RATES[key]}")
        rates[key] = number
    return rates


def read_trial(folder: Path, num_workers: int, max_actors: int | None = None, homes: str = "") -> Trial:
    """Read what a finished `ual run`, `ual elicit` or `ual train` has measured.

    num_workers, max_actors: of the configuration that is planned; None = as many actors as the trial had. homes: of an
    experiment, the pattern of the folders that its arms are in, such as SCENARIO/seed-*/. Raises UserError for a folder
    without a finished stage.
    """
    stages = [*_finished(folder, homes)]
    trial, splits = Trial(), dict[str, int]()
    for metrics, _ in stages:
        if "scoring_seconds" in metrics and metrics["rows"]:
            splits = metrics.get("splits", {})
            trial.rates |= _elicit(metrics, trial.notes)
            trial.rows = metrics["rows"]
    if trainings := [(metrics, seconds) for metrics, seconds in stages if "median_tokens_per_second" in metrics]:
        trial.rates |= _train(trainings, num_workers, trial.notes)
        trial.trained = trainings[0][0]["train_rows"]
    if evaluations := [*_of_models(folder, "evaluate", homes)]:
        had = _section(folder, "engine").get("max_actors")
        planned = max_actors or had
        if had in (1, None, planned):
            times = (planned or 1) if had == 1 else 1
            trial.rates |= _evaluate(evaluations, trial.rates.get("elicit.start_seconds", 0.0), times, trial.notes)
        else:
            trial.notes.append(
                f"the trial evaluated with engine.max_actors={had}, not {planned}: evaluation is not timed. Repeat it with "
                f"{planned}, or with 1"
            )
        trial.questions = {name: counts["rows"] for name, counts in evaluations[-1][0]["benchmarks"].items()}
        benchmarks = _section(folder, "evaluate").get("benchmarks") or {}
        most = {name: (settings or {}).get("max_rows") for name, settings in benchmarks.items()}
        trial.capped = {name for name, count in trial.questions.items() if count >= (most.get(name) or math.inf)}
    if calibrations := [done for done in _of_models(folder, "calibrate", homes) if "rows" in done[0]]:
        taken = calibrations[-1][0]["rows"]
        trial.tokens = {split: _all_tokens(counts, splits.get(split)) for split, counts in taken.items()}
        trial.rates |= _calibrate(calibrations, sum(counts["tokens"] for counts in taken.values()))
    if not trial.rates and not trial.notes:
        raise UserError(
            "--trial has no finished stage to measure",
            got=folder,
            expected="the output folder of a finished `ual run`, `ual elicit` or `ual train`",
            fix="run a short trial: `ual elicit DATA -c CONFIG data.max_rows=50 engine.batch_size=8 engine.max_actors=1 "
            "--out trial`",
        )
    return trial


def _elicit(metrics: Mapping[str, Any], notes: list[str]) -> dict[str, float]:
    rows, seconds, actors = metrics["rows"], metrics["scoring_seconds"], metrics.get("actors")
    per_row = {
        "elicit.calls_per_row": metrics["calls"] / rows,
        "elicit.prompt_tokens_per_row": metrics["prompt_tokens"] / rows,
        "elicit.generated_tokens_per_row": metrics["generated_tokens"] / rows,
    }
    steady = metrics.get("rows_per_second")
    if not actors or not steady:
        notes.append(
            "the trial's scoring has no steady rate, as after a single batch: scoring is not timed. Repeat it with a smaller "
            "engine.batch_size and another --out, or give --rate elicit.rows_per_second=..."
        )
        return per_row
    start = max(0.0, seconds - metrics.get("sent_rows", rows) / steady)
    return per_row | {"elicit.rows_per_second": steady / actors, "elicit.start_seconds": start}


def _train(trainings: Sequence[Finished], workers: int, notes: list[str]) -> dict[str, float]:
    first = trainings[0][0]
    rates = {"train.tokens_per_row": first["train_tokens"] / first["train_rows"]}
    if (measured := first.get("num_workers")) not in (None, workers):
        notes.append(f"the trial trained with train.num_workers={measured}, not {workers}: training is not timed")
        return rates
    speeds = [metrics["median_tokens_per_second"] for metrics, _ in trainings]
    around = [
        max(0.0, seconds - metrics["last"]["tokens_seen"] / metrics["median_tokens_per_second"])
        for metrics, seconds in trainings
        if not metrics.get("resumed")
    ]
    if not around:
        notes.append("the trial's trainings were interrupted: training is not timed. Repeat it with another output")
        return rates
    return rates | {"train.tokens_per_second": fmean(speeds), "train.start_seconds": fmean(around)}


def _evaluate(evaluations: Sequence[Finished], engine_start: float, times: int, notes: list[str]) -> dict[str, float]:
    """Tell the start of a model's engine from its answers.

    engine_start: of trials by versions that did not measure it. times: how many times as many actors will answer.
    """
    timed = [(metrics, seconds) for metrics, seconds in evaluations if metrics.get("sent_rows", metrics["rows"])]
    if not timed:
        notes.append("the trial's answers are of earlier runs: evaluation is not timed. Repeat it with another output")
        return {}
    engines = [metrics.get("start_seconds", engine_start) for metrics, _ in timed]
    starts = [min(seconds, own + _around(metrics, seconds)) for own, (metrics, seconds) in zip(engines, timed, strict=True)]
    working = sum(seconds for _, seconds in timed) - sum(starts)
    sent = sum(metrics.get("sent_rows", metrics["rows"]) for metrics, _ in timed)
    return {
        "evaluate.start_seconds": fmean(starts),
        "evaluate.seconds_per_question": working / sent / times,
    }


def _calibrate(calibrations: Sequence[Finished], tokens: int) -> dict[str, float]:
    starts = [min(seconds, metrics.get("start_seconds", 0.0) + _around(metrics, seconds)) for metrics, seconds in calibrations]
    working = sum(seconds for _, seconds in calibrations) - sum(starts)
    return {
        "calibrate.start_seconds": fmean(starts),
        "calibrate.seconds_per_token": working / (len(calibrations) * tokens),
    }


def _around(metrics: Mapping[str, Any], seconds: float) -> float:
    """Seconds of a stage around its own work, such as Ray's task, MLflow's run and plots: they do not grow with the rows."""
    return max(0.0, seconds - metrics.get("seconds", seconds))


def _all_tokens(taken: Mapping[str, Any], rows: int | None) -> int:
    """Tokens of all `rows` of a split, of which calibration took the first ones, up to its max_tokens."""
    looked_at = taken.get("rows", 0) + sum(taken.get("dropped", {}).values())
    return round(taken["tokens"] * max(1.0, rows / looked_at)) if rows and looked_at else taken["tokens"]


def _section(folder: Path, name: str) -> dict[str, Any]:
    """Read a section from the configuration of a run; empty without one."""
    return recorded_config(folder).get(name) or {}


def _of_models(folder: Path, stage: str, homes: str) -> Iterator[Finished]:
    """Yield a stage that every model of a `ual run` has."""
    for model in (folder / "base", *_arms(folder, homes)):
        yield from _in(model / stage)


def _finished(folder: Path, homes: str) -> Iterator[Finished]:
    """Yield scorings and trainings in an output folder, those of `ual run` and of single commands."""
    for place in (folder, folder / "elicit", *(arm / "train" for arm in _arms(folder, homes))):
        yield from _in(place)


def _arms(folder: Path, homes: str) -> list[Path]:
    """Return the folders of a run's arms, without those of earlier configurations of this output."""
    own = _section(folder, "arms")
    return [arm for arm in sorted(folder.glob(f"{homes}arms/*")) if not own or arm.name in own]


def _in(place: Path) -> Iterator[Finished]:
    """Yield metrics and seconds of the newest stage in a folder, or of all where none is known to be the newest."""
    last = newest(place)
    for file in [last / DONE_FILE] if last != place else [place / DONE_FILE, *sorted(place.glob(f"*/{DONE_FILE}"))]:
        fix = "give another trial, or run it again with --force"
        if (done := read_object(file, "figures", "seconds", fix=fix)) is not None:
            yield done["figures"], float(done["seconds"])
