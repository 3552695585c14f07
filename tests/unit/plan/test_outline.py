"""A plan gives times only where something was measured, and its numbers follow from the rates."""

from __future__ import annotations

import re
import sys
from typing import Any

import pytest

from ual_ray.cli import app as cli
from ual_ray.config.load import load
from ual_ray.data.peek import peek
from ual_ray.plan.outline import Outline, outline, sweep_lines
from ual_ray.plan.rates import Trial

RATES = {
    "elicit.rows_per_second": 2.0,
    "elicit.start_seconds": 20.0,
    "elicit.calls_per_row": 3.0,
    "elicit.prompt_tokens_per_row": 100.0,
    "elicit.generated_tokens_per_row": 10.0,
    "train.tokens_per_second": 1000.0,
    "train.tokens_per_row": 50.0,
    "train.start_seconds": 30.0,
    "evaluate.start_seconds": 10.0,
    "evaluate.seconds_per_question": 0.5,
    "calibrate.start_seconds": 4.0,
    "calibrate.seconds_per_token": 0.01,
}
QUESTIONS = {"held_out": 20, "gsm8k": 10}
SMALL = ["engine.max_actors=4", "engine.rows_per_block=25", "train.epochs=2", "engine.cpus_per_actor=2", "train.num_workers=2"]


def plan(rows: int, rates: dict[str, float], *overrides: str) -> Outline:
    config = load(None, [*SMALL, *overrides])
    trial = Trial(rates, rows=100, questions=QUESTIONS, tokens={"validation": 50, "test": 200}) if rates else Trial()
    return outline(config, peek(config.data), rows, trial)


def test_nothing_measured_gives_no_time() -> None:
    found = plan(1000, {})
    text = str(found.lines)
    assert text.count("not known: nothing was measured") == 4 and "--trial" in text
    assert not found.points and not found.outcomes and not found.device_hours
    assert not re.search(r"\d (?:s|min|h)\b|hours", text)


@pytest.mark.parametrize(
    "missing", [[], ["elicit.start_seconds"], ["train.start_seconds", "evaluate.start_seconds", "calibrate.start_seconds"]]
)
def test_a_start_that_was_not_measured_is_named(missing: list[str]) -> None:
    """Without one, the knee is as many actors as there are blocks."""
    found = plan(1000, {key: value for key, value in RATES.items() if key not in missing})
    (told,) = [text for _, text in found.lines if "counted as 0 s" in text] or [""]
    assert [key for key in RATES if key in told] == missing


def test_numbers_follow_from_the_rates() -> None:
    found = plan(1000, RATES, "engine.price_per_million_prompt_tokens=2", "engine.price_per_million_generated_tokens=10")
    lines = dict(found.lines)
    assert lines["scoring, calls"].startswith("3K ")
    assert lines["scoring, tokens"].startswith("100K of prompts, 10K generated")
    assert lines["scoring, cost"].startswith("0.30 ")
    # 40 blocks of 25 rows at 2 rows/s on 4 actors: 10 rounds of 12.5 s after 20 s; 4 actors of 2 cores.
    assert lines["scoring, time"] == "2 min 25 s, 0.32 core hours (4 actors)"
    assert lines["  simulated"].startswith("40 blocks of at most 25 rows: 2 min 25 s; no failures")
    # Two arms of 1,000 x 50 x 2 tokens.
    assert lines["training, time"].startswith("4 min 20 s, 0.14 core hours (2 trainings of 100K tokens")
    # Ten times the trial's rows: three models at 10 s and 300 questions, and at 4 s and 2,500 tokens.
    assert lines["evaluation, time"] == "8 min 0 s, 1.07 core hours (3 models, 300 questions each)"
    assert lines["calibration, time"] == "1 min 27 s, 0.05 core hours (3 models, 2.5K tokens each)"
    assert found.seconds == {"scoring": 145, "training": 260, "evaluation": 480, "calibration": pytest.approx(87)}
    assert found.device_hours == pytest.approx((145 * 8 + 260 * 2 + 480 * 8 + 87 * 2) / 3600)
    assert "cost not known" in lines["devices, in all"]
    assert dict(plan(1000, RATES | {"price_per_device_hour": 2.0}).lines)["devices, in all"].endswith("cost 3.16")


@pytest.mark.parametrize(
    ("overrides", "questions"),
    [
        ((), 20_000 + 100_000),  # held_out asks 20,000 at most
        (("evaluate.benchmarks.gsm8k.max_rows=500",), 20_500),
        (("evaluate.benchmarks.gsm8k.path=demo",), 20_010),  # a file does not grow with the rows
        (("evaluate.benchmarks.held_out.max_rows=5", "evaluate.benchmarks.gsm8k.path=demo"), 15),
    ],
)
def test_questions_grow_with_the_rows_up_to_their_limits(overrides: tuple[str, ...], questions: int) -> None:
    lines = dict(plan(1_000_000, RATES, *overrides).lines)
    assert f"3 models, {questions:,} questions each" in lines["evaluation, time"]
    assert "40K tokens each" in lines["calibration, time"], "evaluate.calibration.max_tokens of both splits"


def test_a_benchmark_that_the_trial_lacks_is_not_timed() -> None:
    lines = dict(plan(1000, RATES, "evaluate.benchmarks={math: {kind: math}}").lines)
    assert lines["evaluation, time"].startswith("not known: nothing was measured")


def test_calibration_is_timed_where_it_is_done() -> None:
    lines = dict(plan(1000, {key: rate for key, rate in RATES.items() if "calibrate" not in key}).lines)
    assert lines["calibration, time"].startswith("not known: nothing was measured")
    assert "calibration, time" not in dict(plan(1000, RATES, "evaluate.calibration.enabled=false").lines)


def test_failures_are_simulated_and_told_beside_their_expectation() -> None:
    found = plan(100_000, RATES | {"failures_per_actor_hour": 2.0})
    assert len(found.outcomes) == 3 and all(outcome.failures for outcome in found.outcomes)
    assert re.search(r"\d failures \(\d+\.\d expected\), .* actor hours of work repeated", dict(found.lines)["  simulated"])
    assert "<- knee" in "\n".join(sweep_lines(found))


@pytest.mark.parametrize(
    ("most", "questions"),
    [("null", None), ("1000", "1,000 questions each"), ("50", "50 questions each"), ("30", "30 questions")],
)
def test_a_benchmark_that_the_trial_took_a_part_of_is_not_taken_to_be_that_short(most: str, questions: str | None) -> None:
    config = load(None, ["evaluate.benchmarks.gsm8k.path=gsm8k.jsonl", f"evaluate.benchmarks.gsm8k.max_rows={most}"])
    only = {"gsm8k": config.evaluate.benchmarks["gsm8k"]}
    config = config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"benchmarks": only})})
    trial = Trial(RATES, rows=100, questions={"gsm8k": 50}, capped={"gsm8k"})
    line = dict(outline(config, peek(config.data), 1000, trial).lines)["evaluation, time"]
    assert (questions in line) if questions else ("not known" in line and "max_rows" in line)


def test_a_servers_limit_sets_the_pace() -> None:
    server = ["engine.kind=openai", "elicit.model=m", "elicit.estimators=[verbalized_error]"]
    found = dict(plan(1000, RATES, *server, "engine.endpoint.requests_per_minute=60").lines)
    assert found["scoring, time"].startswith("50 min 20 s") and "sets the pace" in found[""]
    assert found["memory per actor"] == "a client of the server"
    found = dict(plan(1000, RATES, *server, "engine.endpoint.tokens_per_minute=11000").lines)
    assert found["scoring, time"].startswith("10 min 20 s")


def test_devices_are_gpus_where_they_are_asked_for() -> None:
    lines = dict(plan(1000, RATES, "engine.gpus_per_actor=1", "train.gpus_per_worker=1").lines)
    assert "0.16 GPU hours" in lines["scoring, time"] and "GPU hours" in lines["training, time"]
    assert "of weights per GPU" in lines["memory per actor"] or "not known" in lines["memory per actor"]


@pytest.mark.slow
def test_a_billion_rows_on_a_thousand_actors() -> None:
    rates = RATES | {"failures_per_actor_hour": 0.05}
    found = plan(10**9, rates, "engine.max_actors=1000", "engine.rows_per_block=4096")
    assert found.outcomes[0].seconds == pytest.approx(10**9 / 1000 / 2, rel=0.05)
    assert found.outcomes[0].failures == pytest.approx(10**9 / 2 / 3600 * 0.05, rel=0.1)


@pytest.mark.parametrize("failures", [{}, {"failures_per_actor_hour": 0.05}])
def test_what_would_be_simulated_for_hours_is_only_expected(failures: dict[str, float]) -> None:
    found = plan(10**15, RATES | failures, "engine.max_actors=1000")
    lines = dict(found.lines)
    assert not found.outcomes and "a larger engine.rows_per_block" in lines["  simulated"]
    assert lines["scoring, time"] and found.points


SLOW = ["--rate", "elicit.rows_per_second=0.001"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--rows", "1" + 400 * "0"], ["--rows"]),
        (["--rate", "speed=1"], ["--rate is not KEY=VALUE", "got: speed=1"]),
        (["--trial", "nowhere"], ["--trial has no finished stage", "nowhere"]),
        (["--rayjob", "/proc/nothing/job.yaml", "output=/shared/x"], ["--rayjob: the file cannot be written", "/proc/nothing"]),
        (["--rayjob", ".", "output=/shared/x"], ["--rayjob: the file cannot be written", "a folder has this name"]),
        (["--rate", "failures_per_actor_hour=1e9", *SLOW], ["fail more than", "failures_per_actor_hour=1e+09"]),
        (["--rate", "failures_per_actor_hour=9", *SLOW], ["fail more than", "set a smaller engine.rows_per_block"]),
        (["--rayjob", "job.yaml", "output=runs/x"], ["not on the volume", "output=/shared/runs/..."]),
    ],
)
def test_the_command_refuses(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Any, arguments: list[str], words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "end_on_sigterm", lambda: None)
    monkeypatch.setattr(sys, "argv", ["ual", "plan", *arguments])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    printed = capsys.readouterr()
    assert exit_.value.code == 2
    assert not [word for word in words if word not in printed.err], printed.err
