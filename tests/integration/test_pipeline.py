"""The pipeline end to end with a tiny model and the fake engine: what is done, what is not done again, what MLflow holds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from forking_ual import forking_ual
from worker_forks import ALL

from ual_ray import columns as col

SECRETS = {
    "HF_TOKEN": "hf_planted0001",
    "MLFLOW_TRACKING_TOKEN": "planted0002",
    "MLFLOW_TRACKING_PASSWORD": "planted0003",
    "OPENAI_API_KEY": "sk-planted0004",
    "AWS_SECRET_ACCESS_KEY": "planted0005",
}
# The fake engine asks no server; its address is a part of the configuration all the same.
WITH_PASSWORD = "engine.endpoint.url=https://me:planted0006@host/v1"


@pytest.fixture(scope="module")
def finished(ual: Any, small: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Run it once; return the output folder and what was printed."""
    folder = tmp_path_factory.mktemp("runs")
    done = ual("run", *small, "output=relative/first", cwd=folder)
    assert done.code == 0, done.output
    return folder / "relative" / "first", done.output


def done_times(output: Path) -> dict[str, float]:
    return {str(file.parent.relative_to(output)): file.stat().st_mtime for file in output.rglob("done.json")}


def files_of(folder: Path) -> dict[str, tuple[int, int]]:
    """Every Parquet file below a folder, with its size and time."""
    found = {str(file.relative_to(folder)): file.stat() for file in folder.rglob("*.parquet")}
    assert found
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in found.items()}


def test_it_prints_every_stage_and_the_table(finished: tuple[Path, str]) -> None:
    _, printed = finished
    for line in ("rows ", "elicit ", "smooth sft", "smooth ual", "train sft", "train ual", "evaluate base", "evaluate ual"):
        assert line in printed
    assert "NLL per token" in printed
    assert "format: alpaca" in printed
    assert "Traceback" not in printed


def test_the_parent_shows_data_sets_models_and_the_comparison(finished: tuple[Path, str]) -> None:
    """Before the tests below run it again with other settings."""
    from mlflow import MlflowClient

    output, _ = finished
    client = MlflowClient(f"sqlite:///{output}/mlflow.db")
    parent = runs_of(output)["first"]
    used = {
        data.dataset.name: (data.dataset.source_type, {tag.key: tag.value for tag in data.tags}["mlflow.data.context"])
        for data in parent.inputs.dataset_inputs
    }
    assert used == {
        "rows": ("local", "scoring"),
        "smoothed sft": ("local", "training"),
        "smoothed ual": ("local", "training"),
        "held_out": ("local", "evaluation"),
        "gsm8k": ("local", "evaluation"),
        "validation and test rows": ("local", "calibration"),
    }
    models = [client.get_logged_model(model.model_id) for model in parent.outputs.model_outputs]
    trained = {runs_of(output)[f"train {arm}"].info.run_id for arm in ("sft", "ual")}
    assert sorted(model.name for model in models) == ["sft", "ual"]
    assert {model.source_run_id for model in models} == trained
    metrics = parent.data.metrics
    for name in ("base", "sft", "ual"):
        assert {f"{name}.held_out.nll.overall", f"{name}.gsm8k.exact_match_strict.overall"} <= set(metrics)
    nlls = {name: metrics[f"{name}.held_out.nll.overall"] for name in ("sft", "ual")}
    assert metrics["ual-vs-sft.held_out.nll"] == pytest.approx(nlls["ual"] - nlls["sft"])


def test_stages_meet_through_files_whose_columns_are_declared(finished: tuple[Path, str]) -> None:
    from ual_ray.parquet import read_table

    output, _ = finished
    assert read_table(next(output.glob("elicit/*/rows"))).schema.equals(col.ROWS)
    scored = read_table(next(output.glob("elicit/*/scored")))
    assert scored.schema.equals(col.scored_schema(("verbalized_error", "p_true", "nll")))
    assert len(set(scored["id"].to_pylist())) == len(scored) > 0
    for arm in ("sft", "ual"):
        smoothed = read_table(next(output.glob(f"arms/{arm}/smooth/*/smoothed.parquet")))
        done = json.loads(next(output.glob(f"arms/{arm}/smooth/*/done.json")).read_text())
        assert json.dumps(done).count("trained token") == (arm == "ual")
        assert (smoothed[col.ALPHA].to_numpy() > 0).all() == (arm == "ual")
    assert read_table(next(output.glob("questions/*/questions.parquet"))).schema.equals(col.QUESTIONS)
    assert read_table(next(output.glob("base/evaluate/*/results"))).schema.equals(col.RESULTS)
    assert read_table(next(output.glob("base/calibrate/*/tokens.parquet"))).schema.equals(col.TOKEN_STATISTICS)


def test_the_arms_start_equal_and_differ_in_their_smoothing(finished: tuple[Path, str]) -> None:
    output, _ = finished
    lines = {
        arm: [json.loads(line) for line in next(output.glob(f"arms/{arm}/train/*/metrics.jsonl")).read_text().splitlines()]
        for arm in ("sft", "ual")
    }
    assert lines["sft"][0]["validation_nll"] == lines["ual"][0]["validation_nll"]
    assert lines["sft"][1]["nll"] == lines["ual"][1]["nll"]
    assert lines["sft"][1]["smoothing"] == 0
    assert lines["sft"][1]["smoothed_loss"] == pytest.approx(lines["sft"][1]["nll"], rel=1e-6)
    assert lines["ual"][1]["mean_alpha"] > 0


def test_a_second_run_does_nothing_again_and_starts_no_ray(
    finished: tuple[Path, str], ual_process: Any, small: list[str]
) -> None:
    output, _ = finished
    before = done_times(output)
    log = (output / "ual.log").stat().st_size
    done = ual_process("run", *small, f"output={output}")
    assert done.code == 0, done.output
    assert done_times(output) == before
    assert done.output.count("cached") == len(before) == 13
    assert "Started a local Ray" not in (output / "ual.log").read_text()[log:]


def test_another_map_calls_no_language_model_and_trains_only_its_arm(
    finished: tuple[Path, str], ual: Any, small: list[str]
) -> None:
    output, _ = finished
    before = done_times(output)
    done = ual("run", *small, f"output={output}", "arms.ual.map=rank")
    assert done.code == 0, done.output
    after = done_times(output)
    assert all(after[stage] == before[stage] for stage in before)
    assert {stage.rsplit("/", 1)[0] for stage in after.keys() - before.keys()} == {
        "arms/ual/smooth",
        "arms/ual/train",
        "arms/ual/evaluate",
        "arms/ual/calibrate",
    }


def test_another_choice_of_score_calls_no_language_model(finished: tuple[Path, str], ual: Any, small: list[str]) -> None:
    output, _ = finished
    before, stored = done_times(output), files_of(output / "elicit" / "store")
    (elicited,) = output.glob("elicit/*/done.json")
    ensemble = ["elicit.uncertainty=ensemble", "elicit.ensemble=[verbalized_error,nll]"]
    done = ual("run", *small, f"output={output}", *ensemble)
    assert done.code == 0, done.output
    after = done_times(output)
    assert files_of(output / "elicit" / "store") == stored
    assert all(after[stage] == before[stage] for stage in before)
    new = {stage.rsplit("/", 1)[0] for stage in after.keys() - before.keys()}
    arm = {f"arms/ual/{stage}" for stage in ("smooth", "train", "evaluate", "calibrate")}
    assert new == {"elicit", "arms/sft/smooth"} | arm
    (again,) = [output / stage / "done.json" for stage in after.keys() - before.keys() if stage.startswith("elicit/")]
    figures = [json.loads(file.read_text())["figures"] for file in (elicited, again)]
    assert figures[0]["calls"] == figures[1]["calls"] > 0
    assert "ensemble" in figures[1]["mean_uncertainty"]


def test_rerun_does_one_stage_again(finished: tuple[Path, str], ual: Any, small: list[str]) -> None:
    output, _ = finished
    before = done_times(output)
    done = ual("run", *small, f"output={output}", "--rerun", "elicit")
    assert done.code == 0, done.output
    after = done_times(output)
    assert [stage.split("/")[0] for stage in after if after[stage] != before.get(stage)] == ["elicit"], (
        "the scores are the same"
    )


def test_mlflow_holds_parent_children_metrics_data_plots_and_models(finished: tuple[Path, str]) -> None:
    from mlflow import MlflowClient

    output, _ = finished
    client = MlflowClient(f"sqlite:///{output}/mlflow.db")
    experiment = client.get_experiment_by_name("ual_ray")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=100)
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = {run.info.run_name: run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id}
    assert {"elicit", "train sft", "train ual", "evaluate base", "evaluate sft", "evaluate ual", "calibrate ual"} <= set(
        children
    )
    assert all(run.info.status == "FINISHED" for run in runs)

    train = children["train ual"]
    for metric in ("nll", "smoothed_loss", "learning_rate", "grad_norm", "tokens_per_second", "mean_alpha"):
        assert len(client.get_metric_history(train.info.run_id, metric)) == 2, metric
    assert train.inputs.dataset_inputs[0].dataset.digest == train.data.tags["ual_ray.smoothed"]
    for rank in range(2):
        for figure in ("cpu_utilization_percentage", "system_memory_usage_percentage"):
            assert 0 <= train.data.metrics[f"system/rank_{rank}/{figure}"] <= 100
    assert children["elicit"].inputs.dataset_inputs[0].dataset.name == "rows"
    plots = [file.path for file in client.list_artifacts(children["elicit"].info.run_id, "plots")]
    assert plots == ["plots/uncertainty_by_source.png"]
    assert {"report.md", "report.html", "comparison.json", "config.yaml", "environment.json", "tables", "plots"} <= {
        file.path for file in client.list_artifacts(parent.info.run_id)
    }
    version = client.get_latest_versions("ual-ual")[0]
    assert version.tags["ual_ray.base_model"] == parent.data.tags["ual_ray.base_model"]
    assert {version.run_id for version in client.search_model_versions("name='ual-sft'")} == {children["train sft"].info.run_id}


@pytest.fixture(scope="module")
def killed(one_arm: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], int]:
    """Start a longer run, end it by SIGTERM between two checkpoints; return its folder, its settings, and its last step."""
    output = tmp_path_factory.mktemp("runs") / "killed"
    settings = [
        *one_arm,
        f"output={output}",
        "train.num_workers=2",
        "train.max_steps=160",
        "train.epochs=100",
        "train.checkpoint_every=10",
    ]
    settings += [WITH_PASSWORD, "tracking.system_metrics=false"]
    command = [*forking_ual(ALL), "run", "--verbose", *settings]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | SECRETS
    with (output.parent / "printed.txt").open("wb") as printed:
        running = subprocess.Popen(command, env=environment, stdout=printed, stderr=printed, start_new_session=True)
    (output.parent / "pid").write_text(str(running.pid))
    try:
        deadline = time.monotonic() + 240
        while last_step(output) < 15 or not list(output.glob("arms/sft/train/*/checkpoints/step-*/progress.json")):
            assert running.poll() is None, "it ended before it had a checkpoint"
            assert time.monotonic() < deadline, "it never had a checkpoint"
            time.sleep(0.2)
        running.send_signal(signal.SIGTERM)
        assert running.wait(timeout=120) == 128 + signal.SIGTERM
    finally:
        if running.poll() is None:
            os.killpg(running.pid, signal.SIGKILL)
    return output, settings, last_step(output)


def metrics_of(output: Path, arm: str = "sft") -> list[dict[str, float]]:
    from ual_ray.run.metrics_log import read_metrics

    return [line for file in output.glob(f"arms/{arm}/train/*/metrics.jsonl") for line in read_metrics(file)]


def last_step(output: Path) -> int:
    return int(max((line["step"] for line in metrics_of(output)), default=0))


def runs_of(output: Path) -> dict[str, Any]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{output}/mlflow.db")
    experiment = client.get_experiment_by_name("ual_ray")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert len({run.info.run_name for run in runs}) == len(runs), "a run was opened twice"
    return {run.info.run_name: run for run in runs}


def test_sigterm_ends_the_runs_as_killed(killed: tuple[Path, list[str], int]) -> None:
    output, _, _ = killed
    statuses = {name: run.info.status for name, run in runs_of(output).items()}
    assert statuses == {"killed": "KILLED", "train sft": "KILLED", "elicit": "FINISHED"}


def test_it_leaves_no_secret_of_its_environment_or_configuration(killed: tuple[Path, list[str], int]) -> None:
    """In its output folder with MLflow's store, in what it printed, and in the logs of its Ray."""
    output, _, _ = killed
    # A start of Ray that was too slow has a session of its own.
    sessions = [*Path(tempfile.gettempdir(), "ray").glob(f"session_*_{(output.parent / 'pid').read_text()}")]
    logs = {file.name for session in sessions for file in files_below(session)}
    assert {"raylet.out", "gcs_server.out"} <= logs and any(name.startswith("worker-") for name in logs)
    assert "https://***@host/v1" in next(output.glob("config.yaml")).read_text()
    assert [file for folder in (output.parent, *sessions) for file in leaks(folder)] == []
    # The search finds what is not masked.
    (output / "copy.txt").write_text(str(SECRETS))
    assert leaks(output) == [output / "copy.txt"]
    (output / "copy.txt").unlink()


def files_below(folder: Path) -> list[Path]:
    return [file for file in folder.rglob("*") if file.is_file() and not file.is_symlink()]


def leaks(folder: Path) -> list[Path]:
    return [file for file in files_below(folder) if b"planted" in file.read_bytes()]


def test_the_next_run_goes_on_from_the_checkpoint_in_the_same_mlflow_runs(
    killed: tuple[Path, list[str], int], ual: Any
) -> None:
    output, settings, stopped_at = killed
    before = {line["step"]: line for line in metrics_of(output)}
    assert 15 <= stopped_at < 160
    done = ual("run", *settings)
    assert done.code == 0, done.output
    assert "cached" in next(line for line in done.output.splitlines() if line.startswith("elicit "))
    after = metrics_of(output)
    assert [line["step"] for line in after] == list(range(161))
    kept = [line for line in after if line == before.get(line["step"])]
    assert 10 <= len(kept) - 1 <= stopped_at, "the steps up to the checkpoint are not taken again"
    for line in after[: stopped_at + 1]:
        assert line.get("smoothed_loss") == before[line["step"]].get("smoothed_loss"), "resuming changes nothing"
    assert {run.info.status for run in runs_of(output).values()} == {"FINISHED"}
    assert not any(name.startswith("system/") for line in after for name in line), "they are turned off"
