"""Results of lm-evaluation-harness in a report: next to those of the evaluation, by task and training seed."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from ual_ray import columns as col
from ual_ray.errors import UserError
from ual_ray.parquet import write_rows
from ual_ray.report.compare import compare_runs
from ual_ray.report.table import forgetting

LAW, GSM8K = "lm_eval.law", "lm_eval.gsm8k"


def results(
    folder: Path, name: str, scores: dict[str, list[int]], model: str = "m", *, harness: bool = True, age: int = 0
) -> None:
    """Write what an evaluation leaves: `scores` by benchmark."""
    rows = [
        {"id": f"{benchmark}{place}", "benchmark": benchmark, "scores": [("accuracy", float(score))], "model_digest": model}
        for benchmark, own in scores.items()
        for place, score in enumerate(own)
    ]
    (folder / col.RESULTS_FOLDER).mkdir(parents=True)
    write_rows(rows, col.RESULTS, folder / col.RESULTS_FOLDER / "rows.parquet")
    files = {"figures.json": {"name": name, "figures": []}, "started.json": {"digest": "0", "inputs": {}}, "done.json": {}}
    for file, content in (files | ({col.HARNESS_FILE: {}} if harness else {})).items():
        (folder / file).write_text(json.dumps(content))
        os.utime(folder / file, (1e9 - age, 1e9 - age))


def run_of(root: Path, seed: int) -> Path:
    for arm, name in {"sft": "none", "ual": "rank"}.items():
        results(root / "arms" / arm / "evaluate" / "k", arm, {"own": [1, 0]}, f"{arm} {seed}", harness=False)
        smooth = root / "arms" / arm / "smooth" / "k"
        smooth.mkdir(parents=True)
        (smooth / "started.json").write_text(json.dumps({"digest": "0", "inputs": {}}))
        (smooth / "done.json").write_text(json.dumps({"figures": {"map": name, "mean": 0.1}, "seconds": 1.0}))
        results(root / "lm_eval" / arm, arm, {LAW: [1, arm == "ual", 0], GSM8K: [seed % 2, 1]}, f"{arm} {seed}")
    (root / "config.yaml").write_text(f"seed: {seed}\nevaluate: {{resamples: 200}}\n")
    return root


@pytest.mark.slow
def test_tasks_are_compared_over_training_seeds_next_to_the_benchmarks(tmp_path: Path) -> None:
    findings = compare_runs([run_of(tmp_path / str(seed), seed) for seed in (1, 2, 3)])
    found = {entry.benchmark: entry for entry in findings.comparisons.entries}
    assert {*found} == {"own", LAW, GSM8K}
    assert (found[LAW].arm, found[LAW].reference, found[LAW].seeds, found[LAW].n) == ("ual", "sft", 3, 3)
    assert found[LAW].difference == pytest.approx(1 / 3)
    assert findings.seeds == {"sft": 3, "ual": 3}
    assert len(findings.folders["evaluated"]["ual"]) == 6


def test_of_a_task_that_ran_twice_the_newest_counts_and_the_other_tasks_stay(tmp_path: Path) -> None:
    results(tmp_path / "old", "m", {LAW: [0, 0], GSM8K: [1, 1]}, age=9)
    results(tmp_path / "new", "m", {LAW: [1, 1]})
    values = {value.benchmark: value.value for value in compare_runs([tmp_path]).metrics["m"]}
    assert values == {LAW: 1.0, GSM8K: 1.0}


def test_tasks_of_another_model_of_the_same_name_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    results(tmp_path / "evaluated", "m", {"own": [1]}, "retrained", harness=False)
    results(tmp_path / "before", "m", {LAW: [1, 1]}, "old")
    assert {value.benchmark for value in compare_runs([tmp_path]).metrics["m"]} == {"own"}
    assert "another model of the same name" in caplog.text


def test_the_seed_is_that_of_the_closest_configuration(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: 7\n")
    for seed in (1, 2):
        results(tmp_path / f"seed-{seed}" / "lm_eval" / "k", "arm", {LAW: [seed - 1, 1]}, f"m{seed}")
        (tmp_path / f"seed-{seed}" / "config.yaml").write_text(f"seed: {seed}\n")
    findings = compare_runs([tmp_path])
    assert findings.seeds == {"arm": 2}
    assert findings.metrics["arm"][0].value == pytest.approx(0.75)


def test_tasks_that_a_run_measured_before_and_after_training_are_in_the_table_of_forgetting(tmp_path: Path) -> None:
    root = run_of(tmp_path / "run", 1)
    results(root / "base" / "evaluate" / "k", "base", {"own": [1, 1]}, "base", harness=False)
    results(root / "base" / "lm_eval" / "k", "base", {LAW: [1, 1, 1]}, "base")
    (row,) = [row for row in forgetting(compare_runs([root])).rows if LAW in row.section and row.cells[0] == "ual"]
    assert (row.cells[2:4], row.cells[-1]) == (("100.0% ± 0.0", "66.7% ± 33.3"), "3")


def given(folder: Path, name: str, inputs: dict[str, object], task: dict[str, object], *, age: int = 0) -> None:
    """Write results of a task with what is recorded of how it was given."""
    results(folder, name, {LAW: [1, 0]}, name, age=age)
    rows = [{"id": str(n), "benchmark": LAW, "source": "law", "scores": [("accuracy", 1.0)]} for n in range(2)]
    write_rows(rows, col.RESULTS, folder / col.RESULTS_FOLDER / "rows.parquet")
    (folder / "started.json").write_text(json.dumps({"digest": "0", "inputs": inputs}))
    (folder / col.HARNESS_FILE).write_text(json.dumps({"configs": {"law": task}}))
    os.utime(folder / col.HARNESS_FILE, (1e9 - age, 1e9 - age))


TASK: dict[str, object] = {
    "doc_to_text": "{{q}}",
    "process_docs": "functools.partial(<function f at 0x7f1>)",
    "metadata": {"pretrained": "a"},
    "doc_to_choice": "<f at 0x1a>",
}


@pytest.mark.slow
def test_models_that_were_given_a_task_in_different_ways_are_not_compared(tmp_path: Path) -> None:
    root = run_of(tmp_path / "run", 1)
    engine: dict[str, object] = {"engine": {"dtype": "bfloat16"}, "lm_eval": "0.4.13"}
    other = TASK | {"metadata": {"pretrained": "b"}, "doc_to_choice": "<f at 0x2b>", "process_docs": "another address"}
    given(root / "law" / "sft", "sft", engine, TASK)
    given(root / "law" / "before", "ual", engine, TASK | {"doc_to_text": "Q: {{q}}"}, age=9)
    given(root / "law" / "ual", "ual", engine, other)
    compare_runs([root])
    for name, inputs, task in (
        ("prompt", engine, TASK | {"doc_to_text": "Q: {{q}}"}),
        ("engine", engine | {"engine": {"dtype": "float32"}}, TASK),
        ("version", engine | {"lm_eval": "0.4.12"}, TASK),
    ):
        given(root / "law" / name, "ual", inputs, task, age=-9)
        with pytest.raises(UserError, match=r"'sft' and 'ual' were given law by lm-evaluation-harness in different ways"):
            compare_runs([root])
        shutil.rmtree(root / "law" / name)
