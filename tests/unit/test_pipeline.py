"""The order of the stages: what is judged against what."""

from __future__ import annotations

import io
import json
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from ual_ray import pipeline
from ual_ray.config.load import load
from ual_ray.errors import UserError
from ual_ray.report.gather import StageFolders
from ual_ray.run.step import Session


@pytest.mark.parametrize(
    ("against", "expected"),
    [
        ("sft", ["base-vs-sft", "shuffled-vs-sft", "ual-vs-sft"]),
        ("reference", ["base-vs-reference", "sft-vs-reference", "shuffled-vs-reference", "ual-vs-reference"]),
        ("[shuffled, sft]", ["base-vs-shuffled", "sft-vs-shuffled", "ual-vs-shuffled", "base-vs-sft", "ual-vs-sft"]),
    ],
)
def test_every_pair_of_models_is_judged_once_against_every_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, against: str, expected: list[str]
) -> None:
    asked: list[tuple[str, str, str]] = []

    def judge_step(_: Session, candidate: Any, reference: Any, place: Any, *, model: str) -> SimpleNamespace:
        asked.append((candidate.name, reference.name, model))
        return SimpleNamespace(folder=place.root)

    monkeypatch.setattr(pipeline, "judge_step", judge_step)
    config = load(
        None, ["judge.model=demo", "arms={sft: {map: none}, shuffled: {map: shuffled}, ual: {}}", f"judge.against={against}"]
    )
    results = StageFolders(evaluated={name: tmp_path / name for name in ("base", "sft", "shuffled", "ual")})
    models = {name: f"model of {name}" for name in results.evaluated}
    pipeline._judge(Session(config, Console(file=io.StringIO()), None), tmp_path, results, models)
    assert [*results.judged] == [folder.name for folder in results.judged.values()] == expected
    assert [f"{candidate}-vs-{reference}" for candidate, reference, _ in asked] == expected
    assert all(model == f"model of {candidate}" for candidate, _, model in asked)


def test_the_harness_measures_every_model_of_a_run_where_its_report_finds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str, Path]] = []

    def harness_step(_: Session, name: str, tasks: Any, place: Any, *, model: str, on_cluster: bool) -> None:
        assert (tuple(tasks), on_cluster) == (("mmlu",), True)
        asked.append((name, model, place.root))

    monkeypatch.setattr(pipeline, "harness_step", harness_step)
    monkeypatch.setattr(pipeline, "evaluate_step", lambda *_, **__: SimpleNamespace(folder=tmp_path))
    models = {"base": "demo", "ual": "trained"}
    for tasks in ("[mmlu]", "[]"):
        config = load(None, [f"evaluate.lm_eval={tasks}", "evaluate.calibration.enabled=false"])
        session = Session(config, Console(file=io.StringIO()), None)
        pipeline.measure(session, tmp_path, tmp_path, tmp_path, models, StageFolders())
    assert asked == [("base", "demo", tmp_path / "base/lm_eval"), ("ual", "trained", tmp_path / "arms/ual/lm_eval")]


@pytest.mark.slow
@pytest.mark.parametrize(("gpus", "most"), [(0, 1), (1, 3)])
def test_models_are_calibrated_side_by_side_on_gpus_and_the_results_keep_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpus: int, most: int
) -> None:
    lock, running, seen = threading.Lock(), 0, [0]

    def calibrate_step(_: Session, name: str, model: str, __: Path, answers: Path, place: Any) -> SimpleNamespace:
        nonlocal running
        assert (model, answers.parent.name) == (f"model of {name}", name)
        with lock:
            running += 1
            seen.append(running)
        # The first ends last.
        time.sleep({"base": 0.6, "sft": 0.4, "ual": 0.2}[name])
        with lock:
            running -= 1
        return SimpleNamespace(folder=place.root)

    monkeypatch.setattr(pipeline, "calibrate_step", calibrate_step)
    session = Session(load(None, [f"engine.gpus_per_actor={gpus}"]), Console(file=io.StringIO()), None)
    session.cluster.connected = True
    names = ("base", "sft", "ual")
    results = StageFolders(evaluated={name: tmp_path / name for name in names})
    models = {name: f"model of {name}" for name in names}
    found = pipeline._calibrate(session, tmp_path, tmp_path, models, results)
    homes = [tmp_path / "base", tmp_path / "arms" / "sft", tmp_path / "arms" / "ual"]
    assert [*found.items()] == [(name, home / "calibrate") for name, home in zip(names, homes, strict=True)]
    assert max(seen) == most


@pytest.mark.parametrize("reference", ["other.json", None])
def test_answers_that_cannot_be_paired_are_refused_before_ray_starts(
    tmp_path: Path, reference: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Session, "_connect", lambda _: pytest.fail("Ray starts"))
    for name in ("one", "other"):
        (tmp_path / f"{name}.json").write_text(json.dumps([{"instruction": f"The question of {name}?", "output": "42"}]))
    session = Session(load(None, ["judge.model=demo"]), Console(quiet=True), None)
    other = None if reference is None else tmp_path / reference
    with pytest.raises(UserError, match="can be compared with(?s:.*)kind open_ended(?s:.*)output_reference"):
        pipeline.judge_alone(session, tmp_path / "one.json", other, tmp_path / "judged")
