"""The probe as a step: in a task of a real Ray, on the demo model, with its run in MLflow."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from ual_ray import columns as col
from ual_ray.calibrate.step import calibrate_step, metrics_of
from ual_ray.config import Config
from ual_ray.config.files import read_json
from ual_ray.parquet import read_table, write_rows
from ual_ray.run.step import Place, Session
from ual_ray.tracking.tracker import Tracker

QUESTIONS = [("What is 2 + 3?", "2 + 3 = 5\n#### 5"), ("Name a colour.", "Blue."), ("Say hello.", "Hello! How can I help you?")]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write 24 rows, half of them for validation, half for test."""
    folder = tmp_path_factory.mktemp("rows")
    found = []
    for number in range(24):
        asked, reply = QUESTIONS[number % 3]
        messages = [{"role": "user", "content": f"{asked} ({number})"}, {"role": "assistant", "content": reply}]
        split = "test" if number % 2 else "validation"
        found.append({"id": col.content_id(messages), "source": "s", "split": split, "messages": messages})
    write_rows(found, col.ROWS, folder / "rows.parquet")
    return folder


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write two answered questions, one of them right."""
    folder = tmp_path_factory.mktemp("results")
    found = [
        {
            **{"id": f"q{number}", "benchmark": "gsm8k", "source": "s", "status": "ok", "answer": "4"},
            **{"messages": [{"role": "user", "content": f"What is {number} + 2?"}], "prediction": f"#### {number + 2}"},
            **{"scores": [("exact_match_flexible", float(number == 2))], "generated_tokens": 99},
        }
        for number in (1, 2)
    ]
    write_rows(found, col.RESULTS, folder / "results.parquet")
    return folder


def test_the_demo_model_is_calibrated_in_a_task(local_ray: None, rows: Path, results: Path, tmp_path: Path) -> None:
    config = Config.model_validate(
        {"evaluate": {"calibration": {"max_tokens": 300}, "clustering": {"tokens": 5}, "resamples": 100}}
    )
    tracker = Tracker(config.tracking, tmp_path)
    output = io.StringIO()
    session = Session(config, Console(file=output, width=200), tracker)
    done = calibrate_step(session, "base", "demo", rows, results, Place(tmp_path / "calibrate"))
    print(output.getvalue(), done.metrics["seconds"], done.metrics["peak_memory_gib"])
    figures = done.metrics
    assert not done.reused
    assert 0.5 < figures["temperature"] < 2
    assert 0 < figures["token"]["raw"]["nll"] < 5
    assert figures["token"]["scaled"]["n"] == len(read_table(done.folder / "tokens.parquet"))
    assert figures["answer"]["gsm8k"]["n"] == 2
    assert len(read_table(done.folder / "answers.parquet")) == 2
    assert figures["clusters"]["final_norm"] == "norm"
    assert figures["clusters"]["before_norm"]["nc1"] > 0
    assert {"pca", "mueller", "texts"} <= set(np.load(done.folder / "clusters.npz"))
    assert read_json(done.folder / "calibration.json") == figures
    assert not (done.folder / "tokens_seen").exists()
    assert "ECE" in output.getvalue()
    assert tracker.failures == 0
    (run,) = tracker.client.search_runs([tracker.experiment_id])
    assert run.info.run_name == "calibrate base"
    assert run.data.metrics == pytest.approx(metrics_of(figures))
    assert {"calibration/temperature", "calibration/token_ece_width_scaled", "clustering/nc1_after_norm"} <= set(
        run.data.metrics
    )
    plots = {artifact.path for artifact in tracker.client.list_artifacts(run.info.run_id, "plots")}
    assert plots == {f"plots/{name}.png" for name in ("reliability_tokens", "reliability_gsm8k", "clusters")}
    again = calibrate_step(session, "base", "demo", rows, results, Place(tmp_path / "calibrate"))
    assert again.reused
