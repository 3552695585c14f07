"""The time of an experiment, from what its pilot or a part of it measured."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ual_ray.config import Config
from ual_ray.config.load import load
from ual_ray.experiment.forecast import hours, print_forecast

ELICIT = {"rows": 100, "scoring_seconds": 60.0, "calls": 100, "prompt_tokens": 100, "generated_tokens": 100}
STEADY = {"rows_per_second": 2.0, "actors": 1}
TRAIN = {"median_tokens_per_second": 100.0, "train_tokens": 8000, "train_rows": 80, "num_workers": 2}
EVALUATE = {"rows": 10, "benchmarks": {"held_out": {"rows": 10}}}
CALIBRATE = {"rows": {"test": {"tokens": 100}}, "start_seconds": 0.0}
SETTINGS = (
    *("experiment.seeds=[0,1,2]", "engine.max_actors=1", "engine.cpus_per_actor=1"),
    *("train.num_workers=2", "train.cpus_per_worker=1", "train.epochs=1"),
)


def config(folder: Path, *more: str, scenarios: str = "{all: []}") -> Config:
    file = folder / "config.yaml"
    file.write_text(
        "arms: {sft: {map: none}, ual: {map: rank}}\nevaluate: {benchmarks: {held_out: {kind: held_out}}}\n"
        f"experiment: {{scenarios: {scenarios}}}\n"
    )
    return load(file, [*SETTINGS, *more])


def finish(folder: Path, figures: dict[str, Any], seconds: float) -> None:
    (folder / "key").mkdir(parents=True)
    (folder / "key" / "done.json").write_text(json.dumps({"figures": figures, "seconds": seconds}))


def run(output: Path, seconds: float = 90.0, scenario: str = "all") -> Path:
    """Finish an experiment of one arm: 100 rows scored, 80 of them trained on for `seconds`, of which 80 s for the steps."""
    if not output.exists():
        finish(output / "elicit", ELICIT | STEADY, 60.0)
    arm = output / scenario / "seed-0" / "arms" / "ual"
    finish(arm / "train", TRAIN | {"last": {"tokens_seen": 8000}}, seconds)
    finish(arm / "evaluate", EVALUATE, 20.0)
    finish(arm / "calibrate", CALIBRATE, 5.0)
    return output


def test_every_stage_is_timed_by_the_numbers_of_trainings_and_models(tmp_path: Path) -> None:
    given = config(tmp_path, "evaluate.lm_eval=[mmlu]")
    found = dict(hours(given, 200, [run(tmp_path / "pilot")], 2, {"price_per_device_hour": 36.0}))
    # 200 rows at 2 a second, and 10 s of start; a training of 160 rows of 100 tokens at 100 a second, and 10 s around it.
    assert found["scoring, time"].startswith("1 min 50 s, 0.03 core hours")
    assert found["training, time"].startswith("28 min 20 s, 0.94 core hours (10 trainings"), "3 seeds and 2 trials, of two arms"
    assert found["evaluation, time"].startswith("3 min 30 s") and "7 models, 20 questions" in found["evaluation, time"]
    assert found["calibration, time"].startswith("1 min 10 s")
    assert found["time, in all"].startswith("34 min 50 s")
    assert found["time, not counted"] == "tasks of lm-evaluation-harness"
    assert found["devices, in all"].endswith("; cost 37.90"), "3,790 s of cores at 36 an hour"


def test_of_what_was_not_measured_it_names_the_command_that_measures_it(tmp_path: Path) -> None:
    found = dict(hours(config(tmp_path), 200, [tmp_path / "nothing"], 0, {}))
    assert found == {
        "time, not known": "of scoring, training, evaluation, calibration: run `ual pilot CONFIG`, which measures it"
    }

    output = tmp_path / "pilot"
    finish(output / "elicit", ELICIT | {"actors": 1}, 60.0)
    finish(output / "all" / "seed-0" / "arms" / "ual" / "train", TRAIN | {"last": {"tokens_seen": 8000}}, 90.0)
    found = dict(hours(config(tmp_path), 200, [output], 0, {}))
    assert found["time, not known"].startswith("of scoring, evaluation, calibration: run `ual pilot CONFIG`")
    assert "no steady rate" in found["time, not known"]
    assert found["training, time"].startswith("17 min") and found["time, in all"].startswith("17 min 0 s of what is known")


def test_what_ran_here_counts_before_the_pilot_and_each_scenario_by_its_own_rows(tmp_path: Path) -> None:
    given = config(tmp_path, "experiment.seeds=[0]", scenarios="{chat: [a], mixed: []}")
    pilot, output = run(tmp_path / "pilot", scenario="chat"), run(tmp_path / "output", 100.0, "chat")
    run(pilot, 180.0, "mixed")
    found = dict(hours(given, 100, [pilot, output], 0, {}))
    assert found["training, time (chat)"].startswith("3 min 20 s"), "2 of 100 s here"
    assert found["training, time (mixed)"].startswith("6 min"), "2 of 180 s in the pilot"
    assert sum("scoring" in name for name in found) == 1, "rows are scored once"
    assert "evaluation, time (mixed)" in found and found["time, in all"].endswith("one step after another")


@pytest.mark.parametrize("rates", [{}, {"price_per_device_hour": 2.0}])
def test_a_dry_run_prints_it(tmp_path: Path, rates: dict[str, float]) -> None:
    run(tmp_path / "x-pilot")
    console = Console(file=io.StringIO(), width=300)
    print_forecast(config(tmp_path), tmp_path / "x", console, rates)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert "time, in all" in printed and ("cost not known: give --rate price_per_device_hour" in printed) is not bool(rates)
