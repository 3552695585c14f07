"""The use of ranks' nodes: read every ten seconds, told with the sums of a step, named by rank."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from ual_ray.train import timing
from ual_ray.train.timing import NodeUse, RankReport

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Have a node of 8 GB whose clock and use are set."""
    state = SimpleNamespace(now=100.0, cpu=25.0, used=2e9)
    monkeypatch.setattr(timing, "time", SimpleNamespace(monotonic=lambda: state.now))
    memory = SimpleNamespace(cpu_percent=lambda: state.cpu, virtual_memory=lambda: SimpleNamespace(used=state.used, total=8e9))
    monkeypatch.setattr(timing, "psutil", memory)
    return state


def summed(reports: list[RankReport]) -> list[float]:
    return [sum(places) for places in zip(*(report.values(1.0) for report in reports), strict=True)]


def of_nodes(report: RankReport, told: list[float]) -> dict[str, float]:
    return {name: value for name, value in report.metrics(told).items() if name.startswith("system/")}


def test_every_rank_s_use_is_named_by_its_rank(node: SimpleNamespace) -> None:
    reports = [RankReport(rank, 2, CPU, system_metrics=True) for rank in range(2)]
    first = reports[0].values(1.0)
    node.cpu, node.used = 50.0, 4e9
    told = [one + two for one, two in zip(first, reports[1].values(1.0), strict=True)]
    assert of_nodes(reports[0], told) == {
        "system/rank_0/cpu_utilization_percentage": 25.0,
        "system/rank_0/system_memory_usage_percentage": 25.0,
        "system/rank_0/system_memory_usage_megabytes": 2000.0,
        "system/rank_1/cpu_utilization_percentage": 50.0,
        "system/rank_1/system_memory_usage_percentage": 50.0,
        "system/rank_1/system_memory_usage_megabytes": 4000.0,
    }
    assert reports[0].metrics(told)["slowest_rank_over_median"] == 1.0, "the other figures are as they were"


def test_it_is_logged_every_ten_seconds_not_every_step(node: SimpleNamespace) -> None:
    report = RankReport(0, 1, CPU, system_metrics=True)
    logged = []
    for now in (100.0, 104.0, 109.9, 110.0, 115.0, 121.0):
        node.now = now
        if of_nodes(report, summed([report])):
            logged.append(now)
    assert logged == [100.0, 110.0, 121.0]


def test_of_many_ranks_the_first_sixteen_are_logged(node: SimpleNamespace) -> None:
    reports = [RankReport(rank, 40, CPU, system_metrics=True) for rank in range(40)]
    found = of_nodes(reports[0], summed(reports))
    assert {name.split("/")[1] for name in found} == {f"rank_{rank}" for rank in range(16)}
    assert set(found.values()) == {25.0, 2000.0}


def test_it_can_be_turned_off(node: SimpleNamespace) -> None:
    report = RankReport(0, 1, CPU)
    assert len(report.values(1.0)) == 2 and of_nodes(report, report.values(1.0)) == {}


def test_the_use_of_a_gpu(node: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (6e9, 8e9))
    monkeypatch.setattr(torch.cuda, "utilization", lambda device: 90)
    assert NodeUse(CUDA).read()[1][3:] == [90.0, 25.0, 2000.0]


def test_a_driver_that_does_not_tell_is_asked_once(
    node: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(device: torch.device) -> int:
        raise ModuleNotFoundError("nvidia-ml-py does not seem to be installed")

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (6e9, 8e9))
    monkeypatch.setattr(torch.cuda, "utilization", refuse)
    use = NodeUse(CUDA)
    for now in (100.0, 120.0):
        node.now = now
        fresh, values = use.read()
        named = timing.by_rank(values, 1)
        assert fresh and "system/rank_0/gpu_utilization_percentage" not in named
        assert named["system/rank_0/gpu_memory_usage_percentage"] == 25.0
    assert [record.message for record in caplog.records] == [
        "GPU utilization is not logged: ModuleNotFoundError: nvidia-ml-py does not seem to be installed"
    ]
