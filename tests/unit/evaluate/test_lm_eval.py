"""The bridge to lm-evaluation-harness, with a stand-in for the package."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ual_ray.columns import HARNESS_FILE
from ual_ray.config import Config, EngineConfig
from ual_ray.errors import UserError
from ual_ray.evaluate import lm_eval as bridge
from ual_ray.evaluate.lm_eval import check_tasks, engine_options, metric_values, run_lm_eval, task_digests
from ual_ray.preflight import check_harness
from ual_ray.stats.metrics import MetricValue

RESULTS: dict[str, Any] = {
    "results": {
        "gsm8k": {
            "alias": "gsm8k",
            "sample_len": 80,
            "exact_match,strict-match": 0.25,
            "exact_match_stderr,strict-match": 0.05,
            "exact_match,flexible-extract": 0.5,
            "exact_match_stderr,flexible-extract": "N/A",
        },
        "arc": {"alias": "arc", "acc,none": 0.4, "acc_stderr,none": 0.1, "acc_norm,none": 0.3, "word_perplexity,none": 12.0},
    },
    "n-samples": {"gsm8k": {"original": 1319, "effective": 80}, "arc": {"effective": 9}},
    "samples": {"gsm8k": ["long"]},
}


def test_numbers_become_figures_with_their_standard_errors() -> None:
    assert list(metric_values(RESULTS)) == [
        MetricValue("lm_eval.gsm8k", "exact_match_strict", "overall", 0.25, 0.05, 80),
        MetricValue("lm_eval.gsm8k", "exact_match_flexible", "overall", 0.5, None, 80),
        MetricValue("lm_eval.arc", "accuracy", "overall", 0.4, 0.1, 9),
        MetricValue("lm_eval.arc", "accuracy_normalised", "overall", 0.3, None, 9),
        MetricValue("lm_eval.arc", "word_perplexity", "overall", 12.0, None, 9),
    ]


def test_the_package_gets_the_model_the_tasks_and_the_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def evaluate(**options: Any) -> dict[str, Any]:
        seen.update(options)
        return RESULTS

    monkeypatch.setitem(sys.modules, "lm_eval", SimpleNamespace(simple_evaluate=evaluate))
    monkeypatch.setattr(bridge, "resolve_model", lambda name: f"/models/{name}")
    monkeypatch.setattr(bridge, "find_spec", lambda name: None)
    results, figures = run_lm_eval("tiny", ["gsm8k", "arc"], tmp_path / "out", {"limit": 3, "model_args": {"dtype": "float32"}})
    assert seen["model"] == "hf"
    assert seen["model_args"] == {"pretrained": "/models/tiny", "dtype": "float32"}
    assert (seen["tasks"], seen["limit"], seen["apply_chat_template"]) == (["gsm8k", "arc"], 3, True)
    assert results is RESULTS and len(figures) == 5
    kept = json.loads((tmp_path / "out" / HARNESS_FILE).read_text())
    assert kept["results"] == RESULTS["results"] and "samples" not in kept


def test_without_the_package_the_user_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(UserError, match="pip install .lm-eval>="):
        run_lm_eval("tiny", ["gsm8k"], tmp_path)


def test_an_unknown_task_is_the_users_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def evaluate(**_: Any) -> dict[str, Any]:
        raise ValueError("Tasks not found: nonsense")

    monkeypatch.setitem(sys.modules, "lm_eval", SimpleNamespace(simple_evaluate=evaluate))
    monkeypatch.setattr(bridge, "resolve_model", lambda name: name)
    with pytest.raises(UserError, match=r"(?s)cannot run the tasks.*nonsense"):
        run_lm_eval("tiny", ["nonsense"], tmp_path)


def test_the_engine_of_evaluation_is_spelled_for_the_harness(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bridge, "set_environment", lambda engine: None)
    monkeypatch.setattr(bridge, "find_spec", lambda name: True)
    arguments = engine_options(Config(engine=EngineConfig(max_model_len=512, arguments={"seed": 3})))["model_args"]
    assert (arguments["dtype"], arguments["max_model_len"], arguments["enforce_eager"], arguments["seed"]) == (
        "float32",
        512,
        True,
        3,
    )
    assert "worker_extension_cls" not in arguments
    half = engine_options(Config(engine=EngineConfig(gpus_per_actor=0.5)))["model_args"]
    assert half["gpu_memory_utilization"] == 0.45, "the harness's own default is 0.9"


def test_unknown_tasks_are_refused_before_anything_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = SimpleNamespace(TaskManager=lambda: SimpleNamespace(all_tasks=["gsm8k", "mmlu", "arc_easy"]))
    monkeypatch.setitem(sys.modules, "lm_eval", SimpleNamespace(tasks=tasks))
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", tasks)
    check_tasks(["mmlu", "arc_easy"])
    with pytest.raises(UserError, match=r"(?s)does not know.*got: +mmul.*fix: +mmlu"):
        check_tasks(["mmul", "gsm8k"])


def test_preflight_asks_for_the_tasks_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(bridge, "check_tasks", asked.append)
    check_harness(())
    check_harness(("mmlu",))
    assert asked == [("mmlu",)]


def test_a_task_may_be_a_file_and_what_is_beside_it_is_part_of_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = SimpleNamespace(TaskManager=lambda: SimpleNamespace(all_tasks=["mmlu"]))
    monkeypatch.setitem(sys.modules, "lm_eval", SimpleNamespace(tasks=tasks))
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", tasks)
    own = tmp_path / "a" / "own.yaml"
    with pytest.raises(UserError, match=r"(?s)got: +.*own.yaml.*paths of task files"):
        check_tasks(["mmlu", str(own)])
    own.parent.mkdir()
    own.write_text("task: own")
    check_tasks(["mmlu", str(own)])
    before = task_digests(["mmlu", str(own)])
    assert before[0] == "mmlu"
    moved = own.parent.rename(tmp_path / "b") / "own.yaml"
    assert task_digests(["mmlu", str(moved)]) == before
    (moved.parent / "rows.jsonl").write_text("{}")
    assert task_digests(["mmlu", str(moved)]) == before
    (moved.parent / "reading.py").write_text("def read(): ...")
    assert task_digests(["mmlu", str(moved)]) != before
