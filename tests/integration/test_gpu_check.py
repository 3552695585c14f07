"""The check that runs on GPUs, in its small form on a CPU, so that it still works when somebody has a card."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
# Packed or padded, full or LoRA, checkpointed or not.
GRID = 8
# Compared with a CPU beside the grid.
OPTIONS = ("sample by sample", "towards the base", "compiled", "products kept")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("gpu_check") / "found.json"
    command = [sys.executable, "bench/gpu_check.py", str(out), "--small"]
    # A vLLM engine in the process of the tests turns compilation off.
    environment = {key: value for key, value in os.environ.items() if key != "TORCH_COMPILE_DISABLE"}
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "0 failures" in done.stdout, done.stdout[-3000:]
    content: dict[str, Any] = json.loads(out.read_text())
    return content


def test_the_loss_is_measured_and_right(found: dict[str, Any]) -> None:
    assert all(case["ok"] for case in found["loss accuracy"].values())
    assert len(found["loss accuracy"]) == 6
    speeds = found["loss speed"]
    assert all(case["ms"] > 0 for case in speeds.values())
    assert {name.split(", ")[1].split(":")[0] for name in speeds} >= {"floor", "full logits", "ours"}


def test_training_is_right_killed_resumed_and_exported(found: dict[str, Any]) -> None:
    compared = [case for case in found["training accuracy"].values() if isinstance(case, dict)]
    assert len(compared) == GRID + len(OPTIONS)
    assert all(any(name.endswith(option) for name in found["training accuracy"]) for option in OPTIONS)
    assert all(case["ok"] and case["nll"][-1] < case["nll"][0] for case in compared)
    assert set(found["training resumed and exported"]) == {"full", "LoRA"}
    for case in found["training resumed and exported"].values():
        assert case["ok"] and case["killed"]
        assert case["checkpoints after the kill"] == [2], "the third was being written"


def test_training_is_timed_and_profiled(found: dict[str, Any]) -> None:
    assert len(found["training speed"]) == GRID + 2, "one of them compiled, one with products kept"
    for case in found["training speed"].values():
        assert case["tokens/s"] > 0 and case["estimated peak GB"] > 0 and len(case["nll"]) == 5
    for case in found["training profile"].values():
        assert any("attention" in name for name in case["attention calls"]) and case["longest ms"]


def test_one_rank_of_eight_is_timed_and_calibrations_model_is_right(found: dict[str, Any]) -> None:
    assert len(found["one rank of eight"]) == 3, "checkpointed, or not, or with products kept"
    for case in found["one rank of eight"].values():
        assert case["estimated peak GB"] > 0 and case["tokens/s without communication"] > 0
    assert all(case["ok"] for case in found["calibration"].values())


def test_a_failing_case_costs_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    from gpu_common import Report
    from torch.distributed.checkpoint.api import CheckpointException

    def fail() -> None:
        raise CheckpointException("no space left", {})

    report = Report(tmp_path / "out" / "found.json", {"device": "none"}, seconds=60)
    report.case("part", "fails", fail)
    report.case("part", "works", divmod, 7, 2)
    Report(tmp_path / "late.json", {}, seconds=0).case("part", "late", fail)
    written = json.loads((tmp_path / "out" / "found.json").read_text())
    assert written["part"]["fails"]["error"].startswith("CheckpointException")
    assert written["part"]["works"] == [3, 1]
    assert "skipped" in json.loads((tmp_path / "late.json").read_text())["part"]["late"]["error"]
