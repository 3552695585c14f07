"""An experiment with a tiny model and the fake engine: arms by seeds by scenarios, and seeds that are added later."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import mlflow
import pytest

CONFIG = """
arms: {ual: {map: rank}}
data: {validation_share: 0.2}
elicit: {estimators: [nll], uncertainty: nll}
evaluate: {benchmarks: {held_out: {kind: held_out}}, clustering: {tokens: 0}}
train: {num_workers: 1}
experiment: {seeds: SEEDS, scenarios: {coloured: [colours], mixed: []}}
"""

# As a resumed experiment, whose first step that is not finished is a training or a calibration. The tests' own Ray was started
# before all tasks.
JOINED_BY_A_TASK = """
import os, signal, time
import ray
from rich.console import Console
from ual_ray.config import Config
from ual_ray.run.side_by_side import side_by_side
from ual_ray.run.step import Session
from ual_ray.run.terminal import end_on_sigterm

def alive():
    session.connect()
    return [node["Alive"] for node in ray.nodes()]

end_on_sigterm()
session = Session(Config(), Console(), None)
with session.cluster:
    for name in ("first", "second"):
        print(side_by_side({name: alive}, lambda: 1, print, 5.0), flush=True)
        time.sleep(2)
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)
    except SystemExit as ended:
        print("ended in order:", ended.code, flush=True)
"""


@pytest.fixture(scope="module")
def experiment(ual: Any, small: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str, str]:
    """Run it with one seed and then with another one; return the output folder, and what dry run and both runs printed."""
    folder = tmp_path_factory.mktemp("experiment")
    rows = [
        {"instruction": f"What is {n} + {n}?", "output": f"{n} + {n} = {2 * n}", "source": "sums"}
        if n % 2
        else {"instruction": f"Name colour number {n}.", "output": f"Blue, with {n} drops of green.", "source": "colours"}
        for n in range(80)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = [text for text in small if not text.startswith("data.path")]
    overrides = [*settings, f"data.path={folder / 'rows.jsonl'}", f"output={folder / 'out'}"]
    printed = []
    for seeds, flags in (("[0]", ["--dry-run"]), ("[0]", []), ("[0, 1]", [])):
        config = folder / "experiment.yaml"
        config.write_text(CONFIG.replace("SEEDS", seeds))
        done = ual("experiment", str(config), *overrides, *flags, cwd=folder)
        assert done.code == 0, done.output
        printed.append(done.output)
    return (folder / "out", *printed)


def test_a_dry_run_starts_nothing_and_counts(experiment: tuple[Path, str, str, str]) -> None:
    _, dry, _, _ = experiment
    assert "2 (1 arm x 1 seed x 2 scenarios); 4 models to evaluate" in dry
    assert "elicit " not in dry.replace("elicitation", "")


def test_every_scenario_has_a_report_over_the_seeds(experiment: tuple[Path, str, str, str]) -> None:
    output, _, _, printed = experiment
    for scenario in ("coloured", "mixed"):
        report = output / scenario / "report"
        findings = json.loads((report / "findings.json").read_text())
        assert findings["seeds"] == {"base": 1, "ual": 2}
        (primary,) = [entry for entry in findings["comparisons"]["comparisons"] if entry["primary"]]
        assert (primary["arm"], primary["seeds"]) == ("ual", 2)
        assert primary["seed_deviation"] is not None
        assert len(findings["folders"]["evaluated"]["ual"]) == 2
        assert (report / "report.html").is_file()
    assert "ual - base: 3 seeds " in printed, "what more seeds would find"


def test_a_scenario_trains_and_measures_on_its_own_rows(experiment: tuple[Path, str, str, str]) -> None:
    from ual_ray.experiment.scenarios import count_sources
    from ual_ray.parquet import read_table

    output, _, _, _ = experiment
    assert set(count_sources(next(output.glob("coloured/rows/*/rows")))) == {"colours"}
    assert not (output / "mixed" / "rows").exists()
    for scenario, wanted in (("coloured", {"colours"}), ("mixed", {"colours", "sums"})):
        (questions,) = output.glob(f"{scenario}/questions/*/questions.parquet")
        assert set(read_table(questions)["source"].to_pylist()) == wanted


def test_added_seeds_ask_the_elicitor_nothing_and_repeat_nothing(experiment: tuple[Path, str, str, str]) -> None:
    output, _, first, second = experiment
    assert len(list((output / "elicit").glob("*/done.json"))) == 1
    assert re.search(r"elicit .*\(cached\)", second.replace("\n", " "))
    for step in ("train ual (mixed, seed 0)", "evaluate ual (coloured, seed 0)", "calibrate base (mixed)"):
        (line,) = [text for text in second.splitlines() if text.startswith(step)]
        assert step in first and "(cached)" in second[second.index(step) : second.index(step) + 400].split("\n\n")[0], line
    assert not re.search(r"train ual \(mixed, seed 1\)[^()]*\(cached\)", second)


def test_seeds_differ_and_their_folders_can_be_reported_alone(experiment: tuple[Path, str, str, str], ual: Any) -> None:
    output, _, _, _ = experiment
    homes = [output / "mixed" / f"seed-{seed}" for seed in (0, 1)]
    losses = {next(home.glob("arms/ual/train/*/metrics.jsonl")).read_text() for home in homes}
    assert len(losses) == 2, "a seed changes the order of the rows"
    alone = ual("report", *map(str, homes))
    assert alone.code == 0, alone.output
    assert "training seeds" in alone.output


def test_mlflow_has_a_run_per_scenario_and_the_steps_below(experiment: tuple[Path, str, str, str]) -> None:
    output, _, _, _ = experiment
    client = mlflow.MlflowClient(f"sqlite:///{output / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("ual_ray").experiment_id])
    by_name = {run.info.run_name: run for run in runs}
    parents = {name: run.data.tags.get("mlflow.parentRunId") for name, run in by_name.items()}
    top = by_name["out"].info.run_id
    assert parents["mixed"] == parents["coloured"] == top
    assert parents["train ual (mixed, seed 1)"] == by_name["mixed"].info.run_id
    assert any(key.startswith("ual-vs-base.held_out") for key in by_name["mixed"].data.metrics)


def test_an_arm_that_is_added_to_a_finished_experiment_asks_the_elicitor_nothing(
    ual: Any, small: list[str], tmp_path: Path
) -> None:
    config, log = tmp_path / "experiment.yaml", tmp_path / "sent.jsonl"
    settings = [*small, f"output={tmp_path / 'out'}", f"engine.arguments.log={log}"]

    def requests(arms: str) -> Counter[str]:
        config.write_text(
            f"arms: {arms}\n"
            "elicit: {estimators: [verbalized_error]}\n"
            "evaluate: {benchmarks: {held_out: {kind: held_out}}, calibration: {enabled: false}}\n"
            "train: {num_workers: 1}\nexperiment: {seeds: [0]}\n"
        )
        done = ual("experiment", str(config), *settings, cwd=tmp_path)
        assert done.code == 0, done.output
        return Counter(json.loads(line)["kind"] for line in log.read_text().splitlines())

    before = requests("{sft: {map: none}}")
    after = requests("{sft: {map: none}, ual: {map: rank}}")
    asked = before.pop("Likelihood"), after.pop("Likelihood")
    assert before and after == before, "those of the elicitor"
    # The model before training and one arm, and then one more.
    assert asked[0] % 2 == 0 and asked[1] - asked[0] == asked[0] // 2, "the held-out rows of the new model alone"


def test_ray_outlives_the_task_that_was_the_first_to_need_it_and_sigterm_ends_the_command_in_order() -> None:
    variables = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    command = [sys.executable, "-c", JOINED_BY_A_TASK]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=300)
    lines = ["{'first': [True]}", "{'second': [True]}", "ended in order: 143"]
    assert (done.returncode, done.stdout.splitlines()) == (0, lines), done.stderr
