"""Averages by hand, speed against a peak, and a metrics file that is read while it is written."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from ual_ray.config import TrainConfig
from ual_ray.run.memory import peak_memory
from ual_ray.run.metrics_log import MetricsLog, MetricsReader, read_metrics
from ual_ray.train import metrics
from ual_ray.train.metrics import Hardware, averages, hardware
from ual_ray.train.model import SmoothedCausalLM

COLUMNS = ("nll", "smoothing", "top1", "alpha", "target_tokens")


def test_averages_by_hand() -> None:
    # 2 tokens without a bin, 4 in the first, none in the second, 2 in the third.
    by_bin = [[4.0, 0.2, 1.0, 0.2, 2.0], [4.0, 0.4, 3.0, 0.4, 4.0], [0.0] * 5, [8.0, 0.2, 0.0, 0.2, 2.0]]
    metrics = averages(16.8, by_bin, COLUMNS)
    assert metrics == pytest.approx(
        {
            "nll": 2.0,
            "smoothing": 0.1,
            "top1": 0.5,
            "mean_alpha": 0.1,
            "smoothed_loss": 2.1,
            "target_tokens": 8.0,
            "nll/uncertainty_bin_1": 1.0,
            "smoothing/uncertainty_bin_1": 0.1,
            "top1/uncertainty_bin_1": 0.75,
            "nll/uncertainty_bin_3": 4.0,
            "smoothing/uncertainty_bin_3": 0.1,
            "top1/uncertainty_bin_3": 0.0,
        }
    )


def test_no_target_is_no_division_by_zero() -> None:
    metrics = averages(0.0, [[0.0] * 5], COLUMNS)
    assert metrics["nll"] == metrics["target_tokens"] == 0.0


@given(st.lists(st.lists(st.floats(0, 100), min_size=5, max_size=5), min_size=1, max_size=6))
def test_the_bins_add_up_to_the_whole(by_bin: list[list[float]]) -> None:
    by_bin = [[*row[:4], float(round(row[4]))] for row in by_bin]
    metrics = averages(1.0, by_bin, COLUMNS)
    weighted = sum(metrics[f"nll/uncertainty_bin_{at}"] * row[4] for at, row in enumerate(by_bin) if at and row[4])
    rest = sum(row[0] for at, row in enumerate(by_bin) if not at or not row[4])
    assert weighted + rest == pytest.approx(metrics["nll"] * max(1.0, metrics["target_tokens"]))


def test_operations_and_their_share_of_the_peak() -> None:
    machine = Hardware(1000, 1000, layers=2, hidden_size=8, peak_flops=1e6, device=torch.device("cpu"))
    assert machine.flops_per_token(10) == 6 * 1000 + 12 * 2 * 8 * 10
    speed = machine.speed(tokens=100, samples=10, seconds=2.0)
    assert speed["tokens_per_second"] == 50
    assert speed["mfu"] == pytest.approx(50 * (6000 + 1920) / 1e6)
    frozen = Hardware(1000, 10, layers=0, hidden_size=8, peak_flops=None, device=torch.device("cpu"))
    assert frozen.flops_per_token(10) == 4 * 1000 + 2 * 10
    assert "mfu" not in frozen.speed(100, 10, 2.0)


EXPERTS = [("llama", 1.0), ("mixtral", 2 / 4), ("qwen3_moe", 2 / 4), ("ernie4_5_moe", 2 / 4), ("glm4_moe", 2 / 4)]


@pytest.mark.parametrize(("family", "used"), EXPERTS)
def test_only_the_experts_that_a_token_meets_count(family_folder: Any, family: str, used: float) -> None:
    model = AutoModelForCausalLM.from_pretrained(family_folder(family))
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    experts = sum(size for name, size in sizes.items() if ".experts." in name)
    assert bool(experts) == (used < 1)
    found = hardware(SmoothedCausalLM(model), TrainConfig(), 1, torch.device("cpu"))
    assert found.parameters == found.trained == sum(sizes.values()) - experts * (1 - used)


def test_where_the_experts_of_a_token_are_unknown_there_is_no_share_of_the_peak(
    family_folder: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = SmoothedCausalLM(AutoModelForCausalLM.from_pretrained(family_folder("qwen3_moe")))
    known = TrainConfig(peak_tflops=1.0)
    assert hardware(model, known, 1, torch.device("cpu")).peak_flops == 1e12
    with monkeypatch.context() as apart:  # a module for each expert, as code of a model's own may have
        names = [(name.replace("experts.", "experts.0."), one) for name, one in model.named_parameters()]
        apart.setattr(model, "named_parameters", lambda: iter(names))
        assert hardware(model, known, 1, torch.device("cpu")).peak_flops is None
    monkeypatch.setattr(metrics, "EXPERTS_PER_TOKEN", ())
    assert hardware(model, known, 1, torch.device("cpu")).peak_flops is None
    assert "how many experts a token meets" in caplog.text


def test_memory_is_that_of_this_process() -> None:
    assert 0.01 < peak_memory(torch.device("cpu")) < 100


def test_the_log_keeps_what_is_done_and_drops_what_is_not(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, 0, writes=True)
    for step in range(5):
        log.write(step, {"nll": float(step)})
    resumed = MetricsLog(path, 2, writes=True)
    resumed.write(3, {"nll": 30.0})
    assert [line["nll"] for line in read_metrics(path)] == [0.0, 1.0, 2.0, 30.0]
    assert resumed.at(3) == {"step": 3, "nll": 30.0}
    assert resumed.at(4) == {}
    MetricsLog(path, 0, writes=True)
    assert read_metrics(path) == []


def test_ranks_that_do_not_write_leave_the_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    MetricsLog(path, 0, writes=False).write(1, {})
    assert not path.exists()


def test_the_reader_gives_each_step_once_whatever_happens_to_the_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    reader = MetricsReader(path)
    assert reader.read() == []
    log = MetricsLog(path, 0, writes=True)
    log.write(0, {})
    log.write(1, {"nll": 1.0})
    assert [line["step"] for line in reader.read()] == [0, 1]
    assert reader.read() == []
    with path.open("a") as file:
        file.write('{"step": 2, ')
    assert reader.read() == [], "half a line is left for later"
    with path.open("a") as file:
        file.write('"nll": 2.0}\n{"step": 3}\n')
    assert [line["step"] for line in reader.read()] == [2, 3]
    resumed = MetricsLog(path, 1, writes=True)
    for step in (2, 3, 4):
        resumed.write(step, {})
    assert [line["step"] for line in reader.read()] == [4], "steps that were taken again were handed on before"


def test_the_file_is_replaced_at_one_go(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in range(3)))
    before = os.stat(path).st_ino
    MetricsLog(path, 2, writes=True)
    assert os.stat(path).st_ino != before
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]
