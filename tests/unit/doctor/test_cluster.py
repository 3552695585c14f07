"""Ray, GPUs and NCCL, judged by what their libraries might answer, and asked in a process that may hang or die."""

from __future__ import annotations

from typing import Any

import pytest

from ual_ray.config.load import load
from ual_ray.doctor import cluster
from ual_ray.doctor.findings import Finding
from ual_ray.formatting import GIB

GPU = {"name": "NVIDIA H100", "free": 70 * GIB, "total": 79 * GIB}


@pytest.fixture(autouse=True)
def no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def checked(findings: Any) -> list[Finding]:
    found = list(findings)
    assert all(finding.status == "ok" or finding.fix for finding in found)
    return found


def statuses(findings: Any) -> list[tuple[str, str]]:
    return [(finding.check, finding.status) for finding in checked(findings)]


def test_ray_without_an_address_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "ask", lambda *_: pytest.fail("asked"))
    (found,) = checked(cluster.check_ray(load()))
    assert found.status == "ok" and "starts a cluster on this machine" in found.text


def test_ray_at_an_address() -> None:
    answer = {"resources": {"CPU": 16, "GPU": 2, "memory": 64 * GIB}, "nodes": 3, "waits": []}
    (found,) = checked(cluster.judge_ray("2.60.0", "auto", answer, 2))
    assert found == Finding("ray", "ok", "Ray 2.60.0 at auto: 3 nodes, 16 CPUs, 2 GPUs, 64.00 GiB")
    waits = answer | {"waits": ["engine.gpus_per_actor x engine.min_actors = 4 GPUs, the cluster has 2"]}
    assert statuses(cluster.judge_ray("2.60.0", "auto", waits, 2)) == [("ray", "ok"), ("ray", "warning")]
    (dead,) = checked(cluster.judge_ray("2.60.0", "auto", {"error": "no answer in 40 s"}, 2))
    assert dead.status == "error" and "auto: no answer" in dead.text


def gpus(*overrides: str, driver: bool = False, **answer: Any) -> list[tuple[str, str]]:
    full = {"gpus": [], "torch": "2.13.0", "cuda": None, "nccl": None} | answer
    return statuses(cluster.judge_gpus(load(None, [*overrides]), full, driver))


def test_gpus_that_are_here() -> None:
    there: dict[str, Any] = {"gpus": [GPU], "cuda": "13.0", "nccl": "2.28.3", "driver": True}
    assert gpus("engine.gpus_per_actor=1", **there) == [("gpus", "ok"), ("nccl", "ok")]
    assert gpus(**there) == [("gpus", "warning"), ("nccl", "ok")]
    several = ["train.gpus_per_worker=1", "train.num_workers=2"]
    assert gpus(*several, **{**there, "nccl": None}) == [("gpus", "ok"), ("nccl", "error")]


def test_gpus_that_are_not_here() -> None:
    assert gpus() == [("gpus", "ok")]
    assert gpus("engine.gpus_per_actor=1") == [("gpus", "error")]
    assert gpus("engine.gpus_per_actor=1", "runtime.address=auto") == [("gpus", "ok")]
    assert gpus(driver=True) == [("gpus", "warning")], "a driver without CUDA in PyTorch"
    assert gpus("engine.gpus_per_actor=1", driver=True) == [("gpus", "error")]
    assert statuses(cluster.judge_gpus(load(), {"error": "the driver hangs"}, True)) == [("gpus", "error")]


@pytest.mark.parametrize(
    ("value", "names", "wrong"),
    [
        ("eth0", ["eth0", "lo"], False),
        ("eth", ["eth0", "lo"], False),
        ("=eth", ["eth0", "lo"], True),
        ("=eth0", ["eth0", "lo"], False),
        ("ib0,eth", ["eth0", "lo"], False),
        ("ib0", ["eth0", "lo"], True),
        ("^docker", ["eth0"], False),
        ("ib0", [], False),
    ],
)
def test_an_interface_that_does_not_exist(value: str, names: list[str], wrong: bool) -> None:
    found = checked(cluster.judge_interface({"NCCL_SOCKET_IFNAME": value}, names))
    assert [finding.status for finding in found] == ["error"] * wrong


@pytest.mark.slow
def test_a_process_that_hangs_or_dies_is_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cluster.ask("gpus", load(), 0.01) == {"error": "no answer in 0.01 s"}
    assert "KeyError: 'nothing'" in cluster.ask("nothing", load())["error"]


def test_the_gpus_of_this_machine_are_read() -> None:
    assert cluster.read_gpus(load()).keys() == {"gpus", "torch", "cuda", "nccl"}


def test_a_dead_cluster_is_an_answer_with_a_fix() -> None:
    answer = cluster.read_ray(load(None, ["runtime.address=127.0.0.1:9"]))
    assert "unreachable" in answer["error"] and "local.sh start" in answer["fix"]
