"""What must not be compared in silence: other methods under one name, other ways of measuring, results of another model."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from finished_runs import calibrated, console, evaluated, finished, run_of
from rich.console import Console

from ual_ray.columns import digest
from ual_ray.errors import UserError
from ual_ray.models.resolve import model_fingerprint
from ual_ray.parquet import alphas_digest
from ual_ray.report import promote
from ual_ray.report.step import report_on
from ual_ray.smooth.step import made_by


def record(folder: Path, inputs: dict[str, Any]) -> None:
    (folder / "started.json").write_text(json.dumps({"digest": "0", "inputs": inputs}))


SCORES = {"measuring": {"model": "135M", "reading": 20}, "elicit": {"uncertainty": "auto"}, "labels": None, "chosen": "nll"}
SMOOTH = {"spec": {"map": "rank"}, "tokens": "135M", "scores": SCORES}
TRAIN = {"train": {"epochs": 2}, "model": "135M", "rows": "r", "prior": None}


@pytest.mark.parametrize(
    ("stage", "same", "other", "told"),
    [
        (
            "smooth",
            SMOOTH,
            {"scores": SCORES | {"measuring": {"model": "8B", "reading": 20}}},
            "scores.measuring.model: '135M'",
        ),
        (
            "smooth",
            SMOOTH,
            {"scores": SCORES | {"measuring": {"model": "135M", "reading": 19}}},
            "scores.measuring.reading: 20",
        ),
        ("smooth", SMOOTH, {"scores": SCORES | {"chosen": "p_true"}}, "scores.chosen: 'nll' there, 'p_true' now"),
        ("smooth", SMOOTH, {"scores": None}, "None now"),
        ("smooth", SMOOTH, {"tokens": "360M"}, "tokens: '135M' there, '360M' now"),
        ("train", TRAIN, {"prior": "f00"}, "prior: None there, 'f00' now"),
        ("train", TRAIN, {"first": "step-7"}, "first: None there, 'step-7' now"),
        ("train", TRAIN, {"train": {"epochs": 3}}, "train.epochs: 2 there, 3 now"),
        ("train", TRAIN, {"rows": "s"}, "rows: 'r' there, 's' now"),
    ],
)
@pytest.mark.slow
def test_seeds_of_an_arm_differ_in_the_seed_alone_and_what_else_differs_is_named(
    tmp_path: Path, stage: str, same: dict[str, Any], other: dict[str, Any], told: str
) -> None:
    runs = [run_of(tmp_path / str(seed), seed) for seed in (0, 1, 2)]
    for seed, run in enumerate(runs):
        place = run / "arms" / "ual" / stage / "k"
        if stage == "train":
            finished(place, {})
        of_seed = {"seed": seed, "scored": str(seed)} if stage == "smooth" else {"seed": seed}
        record(place, same | of_seed)
    verdicts = {entry.verdict for entry in report_on(runs, None, console()[0]).comparisons.entries if entry.primary}
    assert verdicts == {"better"}, "their seeds, and scores that were sampled by them, are what differs"
    record(runs[2] / "arms" / "ual" / stage / "k", same | other)
    with pytest.raises(UserError, match="two folders hold an arm 'ual' with different ") as error:
        report_on(runs, None, console()[0])
    assert told in str(error.value) and str(runs[2]) in str(error.value)


@pytest.mark.parametrize(
    ("stage", "same", "other", "told"),
    [
        (
            "evaluate",
            {"engine": {"dtype": "float32"}, "questions": "q"},
            {"engine": {"dtype": "auto"}},
            "engine.dtype: 'float32'",
        ),
        ("evaluate", {"engine": {}, "questions": "q"}, {"questions": "p"}, "questions: 'q' there, 'p' now"),
        ("calibrate", {"evaluate": {"max_tokens": 9}}, {"evaluate": {"max_tokens": 8}}, "evaluate.max_tokens: 9 there, 8 now"),
    ],
)
@pytest.mark.parametrize("place", ["base", "arms/sft", "arms/ual"])
def test_models_are_measured_in_one_way(
    tmp_path: Path, stage: str, same: dict[str, Any], other: dict[str, Any], told: str, place: str
) -> None:
    """As where a run with other settings was interrupted before all models were measured again."""
    run = run_of(tmp_path / "run")
    for folder in (*run.glob(f"arms/*/{stage}/k"), run / "base" / stage / "k"):
        record(folder, same)
    assert report_on([run], None, console()[0]).seeds["ual"] == 1
    record(run / place / stage / "k", same | other)
    with pytest.raises(UserError, match=f"were {stage}d in different ways") as error:
        report_on([run], None, console()[0])
    assert told.split(":")[0] in str(error.value)


def test_a_model_from_elsewhere_may_be_measured_otherwise(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run")
    record(run / "base" / "evaluate" / "k", {"engine": {"dtype": "float32"}})
    shutil.copytree(run / "arms" / "sft" / "evaluate", tmp_path / "elsewhere" / "evaluate")
    figures = tmp_path / "elsewhere" / "evaluate" / "k" / "figures.json"
    figures.write_text(figures.read_text().replace('"sft"', '"foreign"'))
    record(figures.parent, {"engine": {"dtype": "auto", "endpoint": "http://127.0.0.1"}})
    assert "foreign" in report_on([run, tmp_path / "elsewhere"], None, console()[0]).models


@pytest.mark.slow
def test_judges_that_differ_are_not_averaged(tmp_path: Path) -> None:
    runs = [run_of(tmp_path / str(seed), seed) for seed in (0, 1)]
    for seed, run in enumerate(runs):
        folder = finished(run / "judge" / "ual-vs-sft" / "k", {})
        (folder / "win_rates.json").write_text(json.dumps({"candidate": "ual", "reference": "sft", "win_rates": {}}))
        record(folder, {"measuring": [{"model": "big", "seed": seed}], "benchmarks": ["chat"]})
    assert report_on(runs, None, console()[0]).seeds["ual"] == 2, "the seed draws the orders of answers"
    record(folder, {"measuring": [{"model": "small", "seed": 1}], "benchmarks": ["chat"]})
    with pytest.raises(UserError, match="were judged in different ways"):
        report_on(runs, None, console()[0])


LOCAL = {"dtype": "float32", "endpoint": None}


def trained_run(root: Path) -> Path:
    """Make a run whose arm `ual` has alphas, a trained model, answers and a calibration that belong together."""
    run = run_of(root)
    home = run / "arms" / "ual"
    alphas = home / "smooth" / "k" / "smoothed.parquet"
    pa.parquet.write_table(pa.table({"id": ["a", "b"], "alpha": [0.1, 0.2]}), alphas)
    trained = finished(home / "train" / "k", {})
    record(trained, {"smoothed": alphas_digest(alphas, sources=False)})
    (trained / "model").mkdir()
    (trained / "model" / "model.safetensors").write_bytes(b"first")
    for name in ("base", "arms/sft"):
        record(run / name / "evaluate" / "k", {"engine": LOCAL})
    record(home / "evaluate" / "k", {"engine": LOCAL, "model": digest(model_fingerprint(str(trained / "model")))})
    record(home / "calibrate" / "k", {"model": model_fingerprint(str(trained / "model"))})
    return run


def other_alphas(home: Path) -> None:
    pa.parquet.write_table(pa.table({"id": ["a", "b"], "alpha": [0.3, 0.3]}), home / "smooth" / "k" / "smoothed.parquet")


def other_training(home: Path) -> None:
    """Train with other settings, next to the first one."""
    trained = shutil.copytree(home / "train" / "k", home / "train" / "l")
    (trained / "model" / "model.safetensors").write_bytes(b"second")
    os.utime(trained / "done.json", (2e9, 2e9))


def trained_again(home: Path) -> None:
    (home / "train" / "k" / "model" / "model.safetensors").write_bytes(b"second")
    os.utime(home / "train" / "k" / "done.json", (2e9, 2e9))


def other_answers(home: Path) -> None:
    """Answer by the newest training; the calibration is that of the one before."""
    trained_again(home)
    fingerprint = model_fingerprint(str(home / "train" / "k" / "model"))
    record(home / "evaluate" / "k", {"engine": LOCAL, "model": digest(fingerprint)})


@pytest.mark.slow
@pytest.mark.parametrize("change", [other_alphas, other_training, trained_again, other_answers])
def test_results_of_a_model_before_its_newest_stage_are_not_taken_for_those_of_the_newest(tmp_path: Path, change: Any) -> None:
    """A run with another configuration that was interrupted: the role and the alphas would be those of another model."""
    run = trained_run(tmp_path / "run")
    assert report_on([run], None, console()[0]).seeds["ual"] == 1
    change(run / "arms" / "ual")
    with pytest.raises(UserError, match="the newest results of 'ual' do not belong together"):
        report_on([run], None, console()[0])


@pytest.mark.parametrize("known", [{"engine": LOCAL | {"endpoint": "http://127.0.0.1"}, "model": "x"}, {}])
def test_a_model_that_a_server_ran_or_of_which_nothing_is_recorded_is_taken_as_it_is(
    tmp_path: Path, known: dict[str, Any]
) -> None:
    run = run_of(tmp_path / "run")
    trained = finished(run / "arms" / "ual" / "train" / "k", {})
    (trained / "model").mkdir()
    for name in ("base", "arms/sft"):
        record(run / name / "evaluate" / "k", {key: known[key] for key in ("engine",) if key in known})
    record(run / "arms" / "ual" / "evaluate" / "k", known)
    assert report_on([run], None, console()[0]).seeds["ual"] == 1


def test_a_model_that_was_trained_again_since_the_report_is_not_promoted(tmp_path: Path) -> None:
    run = trained_run(tmp_path / "run")
    findings, folder = report_on([run], None, Console(quiet=True)), run / "arms" / "ual" / "train" / "k"
    promote.check_compared(run, "ual", folder, findings)
    trained_again(run / "arms" / "ual")
    with pytest.raises(UserError, match="it was trained again since"):
        promote.check_compared(run, "ual", folder, findings)


def test_what_made_scores_is_read_from_their_stage_and_handed_on_by_copies(tmp_path: Path) -> None:
    inputs = {
        "source": "s",
        "data": {},
        "measuring": {"model": "m", "seed": 3},
        "elicit": {"uncertainty": "auto"},
        "labels": None,
    }
    place = finished(tmp_path / "elicit" / "k", {"uncertainty": "nll"})
    record(place, inputs)
    expected = {"measuring": {"model": "m"}, "elicit": {"uncertainty": "auto"}, "labels": None, "chosen": "nll"}
    assert made_by(place / "scored") == expected
    copies = finished(tmp_path / "rows" / "k", {})
    record(copies, {"rows": "r", "scored": "s", "sources": ["chat"], "scores": expected})
    assert made_by(copies / "scored") == expected
    assert made_by(tmp_path / "foreign" / "scored") is None


def test_answers_of_another_model_by_the_name_of_an_arm_are_not_taken_for_those_of_the_arm(tmp_path: Path) -> None:
    """As `ual evaluate --name ual --out RUN/extra` leaves them."""
    run = trained_run(tmp_path / "run")
    newer = evaluated(run / "extra" / "evaluate" / "k", "ual", -3.0, 5)
    record(newer, {"engine": LOCAL, "model": digest("elsewhere")})
    other = calibrated(run / "extra" / "calibrate" / "k", -3.0, 5)
    record(other, {"model": "elsewhere"})
    for file in (newer / "figures.json", newer / "done.json", other / "calibration.json"):
        os.utime(file, (2e9, 2e9))
    with pytest.raises(UserError, match="two folders hold results of 'ual' with the training seed 0"):
        report_on([run], None, console()[0])


@pytest.mark.slow
def test_a_model_from_elsewhere_is_no_further_training_of_an_arm_of_its_name(tmp_path: Path) -> None:
    """Its folder has a seed of its own, and nothing of how it was trained."""
    runs = [run_of(tmp_path / f"run{seed}", seed) for seed in (0, 1)]
    other = tmp_path / "elsewhere"
    for name in ("sft", "ual"):
        evaluated(other / name / "evaluate" / "k", name, -3.0, 30)
    (other / "config.yaml").write_text("seed: 2\nevaluate: {resamples: 300, confidence: 0.9}\n")
    assert report_on(runs, None, console()[0]).seeds["ual"] == 2
    with pytest.raises(UserError, match="nothing of how 'sft' was trained"):
        report_on([*runs, other], None, console()[0])
