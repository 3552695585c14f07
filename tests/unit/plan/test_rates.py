"""Rates: read from a trial's output or given, never assumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ual_ray.errors import UserError
from ual_ray.plan.rates import Trial, parse_rates, read_trial

ELICIT = {"rows": 50, "scoring_seconds": 45.0, "calls": 100, "prompt_tokens": 5000, "generated_tokens": 250}
STEADY = {"rows_per_second": 2.0, "actors": 2}
TRAIN = {
    "median_tokens_per_second": 200.0,
    "train_tokens": 6000,
    "train_rows": 50,
    "num_workers": 2,
    "last": {"tokens_seen": 12_000},
}


EVALUATE = {"rows": 30, "benchmarks": {"gsm8k": {"rows": 10}, "held_out": {"rows": 20}}}
CALIBRATE = {"rows": {"validation": {"tokens": 400}, "test": {"tokens": 600}}, "start_seconds": 4.0}


def finish(folder: Path, figures: dict[str, Any], seconds: float) -> None:
    folder.mkdir(parents=True)
    (folder / "done.json").write_text(json.dumps({"figures": figures, "seconds": seconds}))


def test_a_whole_run(tmp_path: Path) -> None:
    finish(tmp_path / "elicit" / "k", ELICIT | STEADY, 50.0)
    finish(tmp_path / "arms" / "sft" / "train" / "k", TRAIN, 100.0)
    finish(tmp_path / "arms" / "ual" / "train" / "k", TRAIN | {"median_tokens_per_second": 300.0}, 80.0)
    finish(tmp_path / "base" / "evaluate" / "k", EVALUATE, 32.0)
    finish(tmp_path / "arms" / "sft" / "evaluate" / "k", EVALUATE, 26.0)
    finish(tmp_path / "base" / "calibrate" / "k", CALIBRATE, 6.0)
    assert read_trial(tmp_path, 2) == Trial(
        rows=50,
        trained=50,
        questions={"gsm8k": 10, "held_out": 20},
        tokens={"validation": 400, "test": 600},
        rates={
            "elicit.calls_per_row": 2.0,
            "elicit.prompt_tokens_per_row": 100.0,
            "elicit.generated_tokens_per_row": 5.0,
            "elicit.rows_per_second": 1.0,
            "elicit.start_seconds": 20.0,  # 45 s less 50 rows at 2 rows/s
            "train.tokens_per_row": 120.0,
            "train.tokens_per_second": 250.0,
            "train.start_seconds": 40.0,  # 100 s less 12,000 tokens at 200/s; 80 s less 12,000 at 300/s
            "evaluate.start_seconds": 20.0,  # that of the elicitor's engine
            "evaluate.seconds_per_question": 0.3,  # 12 s and 6 s for 30 questions each
            "calibrate.start_seconds": 4.0,
            "calibrate.seconds_per_token": 0.002,
        },
    )


def test_what_a_stage_takes_around_its_work_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    """Ray's task and its imports, MLflow's run, plots: seconds of the stage that the work in it did not take."""
    finish(tmp_path / "elicit" / "k", ELICIT | STEADY, 50.0)  # an engine starts in 20 s
    for model in ("base", "arms/ual"):
        finish(tmp_path / model / "evaluate" / "k", EVALUATE | {"seconds": 26.0}, 32.0)
        finish(tmp_path / model / "calibrate" / "k", CALIBRATE | {"seconds": 14.0}, 25.0)
    rates = read_trial(tmp_path, 2).rates
    assert (rates["evaluate.start_seconds"], rates["evaluate.seconds_per_question"]) == (26.0, 0.2)
    assert (rates["calibrate.start_seconds"], rates["calibrate.seconds_per_token"]) == (15.0, 0.01)


def test_a_model_starts_as_long_as_it_took_and_not_as_long_as_the_elicitor(tmp_path: Path) -> None:
    """A large elicitor starts for minutes; counted as the start of a small model, it would leave no time for questions."""
    finish(tmp_path / "elicit" / "k", ELICIT | STEADY | {"scoring_seconds": 325.0}, 330.0)
    finish(tmp_path / "base" / "evaluate" / "k", EVALUATE | {"seconds": 42.0, "start_seconds": 9.0}, 43.0)
    rates = read_trial(tmp_path, 2).rates
    assert rates["elicit.start_seconds"] == 300.0
    assert (rates["evaluate.start_seconds"], rates["evaluate.seconds_per_question"]) == (10.0, 1.1)


@pytest.mark.parametrize(
    ("taken", "tokens"),
    [
        ({"rows": 20, "tokens": 400, "dropped": {}}, 2000),  # calibration.max_tokens ended it after 20 of 100 rows
        ({"rows": 15, "tokens": 300, "dropped": {"overlong": 5}}, 1500),
        ({"rows": 100, "tokens": 2000, "dropped": {}}, 2000),
        ({"rows": 0, "tokens": 0, "dropped": {}}, 0),
    ],
)
def test_tokens_are_those_of_all_rows_where_calibration_took_a_part(taken: dict[str, Any], tokens: int, tmp_path: Path) -> None:
    finish(tmp_path / "elicit" / "k", ELICIT | STEADY | {"splits": {"train": 50, "test": 100}}, 50.0)
    rest = {"rows": 10, "tokens": 1000, "dropped": {}}
    finish(tmp_path / "base" / "calibrate" / "k", {"rows": {"validation": rest, "test": taken}, "start_seconds": 4.0}, 24.0)
    trial = read_trial(tmp_path, 2)
    assert trial.tokens == {"validation": 1000, "test": tokens}
    assert trial.rates["calibrate.seconds_per_token"] == pytest.approx(20 / (1000 + taken["tokens"]))


def test_a_second_scoring_gives_its_rates_and_leaves_the_rows_that_the_questions_were_counted_of(tmp_path: Path) -> None:
    finish(tmp_path / "run" / "elicit" / "k", ELICIT | STEADY, 50.0)
    finish(tmp_path / "run" / "base" / "evaluate" / "k", EVALUATE, 32.0)
    finish(tmp_path / "scoring" / "k", ELICIT | STEADY | {"rows": 10, "rows_per_second": 4.0}, 50.0)
    trial = read_trial(tmp_path / "run", 2)
    trial.update(read_trial(tmp_path / "scoring", 2))
    assert trial.rates["elicit.rows_per_second"] == 2.0
    assert (trial.rows, trial.questions["gsm8k"]) == (50, 10)


def test_what_was_done_before_an_interruption_does_not_count_for_the_time_of_the_last_run(tmp_path: Path) -> None:
    finish(tmp_path / "elicit" / "k", ELICIT | STEADY | {"sent_rows": 10}, 50.0)
    finish(tmp_path / "arms" / "sft" / "train" / "k", TRAIN | {"resumed": True}, 20.0)
    finish(tmp_path / "arms" / "ual" / "train" / "k", TRAIN | {"resumed": False}, 100.0)
    finish(tmp_path / "base" / "evaluate" / "k", EVALUATE | {"sent_rows": 0}, 41.0)
    finish(tmp_path / "arms" / "ual" / "evaluate" / "k", EVALUATE | {"sent_rows": 10}, 45.0)
    trial = read_trial(tmp_path, 2)
    assert trial.rates["elicit.start_seconds"] == 40.0  # 45 s less 10 rows at 2 rows/s
    assert trial.rates["train.start_seconds"] == 40.0
    assert trial.rates["evaluate.start_seconds"] == 40.0 and trial.rates["evaluate.seconds_per_question"] == 0.5
    assert not trial.notes


def test_a_trial_that_was_interrupted_in_all_of_a_stage_does_not_time_it(tmp_path: Path) -> None:
    finish(tmp_path / "elicit" / "k", ELICIT | STEADY | {"sent_rows": 10}, 50.0)
    finish(tmp_path / "arms" / "sft" / "train" / "k", TRAIN | {"resumed": True}, 20.0)
    finish(tmp_path / "base" / "evaluate" / "k", EVALUATE | {"sent_rows": 0}, 41.0)
    trial = read_trial(tmp_path, 2)
    assert not [name for name in trial.rates if name.endswith("seconds") and name.startswith(("train", "evaluate"))]
    assert "evaluate.seconds_per_question" not in trial.rates and trial.questions
    assert ["training is not timed" in trial.notes[0], "evaluation is not timed" in trial.notes[1]] == [True, True]


def test_stages_of_earlier_configurations_of_the_output_do_not_count(tmp_path: Path) -> None:
    places = {name: tmp_path / name for name in ("elicit", "arms/ual/train", "base/evaluate", "arms/ual/evaluate")}
    old = dict(zip(places, (ELICIT | STEADY, TRAIN, EVALUATE, EVALUATE), strict=True))
    new = old | {"elicit": old["elicit"] | {"calls": 150}, "arms/ual/train": TRAIN | {"median_tokens_per_second": 300.0}}
    for name, place in places.items():
        finish(place / "key", new[name], 50.0)
        finish(place / "old", old[name], 5000.0)
        (place / "newest").write_text("key\n")
    finish(tmp_path / "arms" / "dropped" / "train" / "key", TRAIN, 5000.0)
    (tmp_path / "config.yaml").write_text("arms: {ual: {map: none}}")
    rates = read_trial(tmp_path, 2).rates
    assert (rates["elicit.calls_per_row"], rates["train.tokens_per_second"], rates["train.start_seconds"]) == (3.0, 300.0, 10.0)
    assert rates["evaluate.seconds_per_question"] == 1.0


def test_a_later_trial_replaces_what_it_measured_and_no_more(tmp_path: Path) -> None:
    finish(tmp_path / "whole" / "elicit" / "k", ELICIT | STEADY, 50.0)
    finish(tmp_path / "whole" / "base" / "evaluate" / "k", EVALUATE, 32.0)
    finish(tmp_path / "training", TRAIN, 100.0)
    trial = read_trial(tmp_path / "whole", 2)
    trial.update(read_trial(tmp_path / "training", 2))
    assert (trial.rows, trial.questions) == (50, {"gsm8k": 10, "held_out": 20})
    assert {"elicit.rows_per_second", "train.tokens_per_second", "evaluate.seconds_per_question"} <= trial.rates.keys()


def test_the_benchmarks_that_a_trial_took_a_part_of_are_known(tmp_path: Path) -> None:
    finish(tmp_path / "base" / "evaluate" / "k", EVALUATE, 32.0)
    assert read_trial(tmp_path, 2).capped == set()
    (tmp_path / "config.yaml").write_text("evaluate: {benchmarks: {gsm8k: {max_rows: 10}, held_out: {max_rows: null}}}")
    trial = Trial()
    trial.update(read_trial(tmp_path, 2))
    assert trial.capped == {"gsm8k"}
    (tmp_path / "config.yaml").write_text("evaluate: {benchmarks: {gsm8k: {max_rows: 11}, held_out: null}}")
    assert read_trial(tmp_path, 2).capped == set()


@pytest.mark.parametrize(
    ("had", "planned", "seconds"),
    [(1, None, 0.2), (1, 1, 0.2), (1, 8, 0.025), (4, 4, 0.2), (4, 8, None), (None, 8, 0.2)],
)
def test_evaluation_is_timed_for_as_many_actors_as_are_planned(
    had: int | None, planned: int | None, seconds: float | None, tmp_path: Path
) -> None:
    finish(tmp_path / "elicit" / "k", ELICIT | STEADY, 50.0)
    finish(tmp_path / "base" / "evaluate" / "k", EVALUATE, 26.0)
    if had:
        (tmp_path / "config.yaml").write_text(f"engine: {{max_actors: {had}}}")
    trial = read_trial(tmp_path, 2, planned)
    assert trial.rates.get("evaluate.seconds_per_question") == (None if seconds is None else pytest.approx(seconds))
    assert bool(trial.notes) == (seconds is None) and trial.questions


@pytest.mark.parametrize("place", ["", "0123"])
def test_the_output_of_a_single_command(tmp_path: Path, place: str) -> None:
    finish(tmp_path / "out" / place, ELICIT | STEADY, 50.0)
    assert read_trial(tmp_path / "out", 2).rates["elicit.rows_per_second"] == 1.0


@pytest.mark.parametrize("missing", [{}, {"actors": 2}, {"actors": 2, "rows_per_second": 0.0}])
def test_a_trial_of_one_batch_times_nothing(tmp_path: Path, missing: dict[str, Any]) -> None:
    finish(tmp_path / "out", ELICIT | missing, 50.0)
    trial = read_trial(tmp_path / "out", 2)
    assert "elicit.rows_per_second" not in trial.rates and trial.rates["elicit.calls_per_row"] == 2.0
    assert len(trial.notes) == 1 and "smaller engine.batch_size" in trial.notes[0]


def test_training_with_other_workers_times_nothing(tmp_path: Path) -> None:
    finish(tmp_path / "out", TRAIN, 100.0)
    trial = read_trial(tmp_path / "out", 8)
    assert trial.rates == {"train.tokens_per_row": 120.0}
    assert "train.num_workers=2, not 8" in trial.notes[0]


def test_a_folder_without_results_is_refused_with_the_command_that_makes_them(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="(?s)no finished stage.*data.max_rows=50"):
        read_trial(tmp_path, 2)
    (tmp_path / "done.json").write_text("{}")
    with pytest.raises(UserError, match="damaged"):
        read_trial(tmp_path, 2)


def test_given_rates() -> None:
    assert parse_rates(["elicit.rows_per_second=2.5", "failures_per_actor_hour=0"]) == {
        "elicit.rows_per_second": 2.5,
        "failures_per_actor_hour": 0.0,
    }


@pytest.mark.parametrize("text", ["rows=1", "elicit.rows_per_second", "=1", ""])
def test_an_unknown_rate_is_refused_with_the_known_ones(text: str) -> None:
    with pytest.raises(UserError, match="(?s)--rate.*elicit.rows_per_second: rows per second of one actor"):
        parse_rates([text])


@pytest.mark.parametrize("value", ["", "fast", "0", "-1", "nan", "inf"])
def test_a_rate_is_a_positive_number(value: str) -> None:
    with pytest.raises(UserError, match="(?s)--rate elicit.rows_per_second.*a positive number"):
        parse_rates([f"elicit.rows_per_second={value}"])
