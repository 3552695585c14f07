"""Which network interface gloo is told to use."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import ray
import torch
from ray.train.torch.config import _TorchBackend

from ual_ray.train.compat_ray_train import (
    INTERFACE,
    RECORDER,
    RECORDER_FILES,
    NodeBackend,
    NodeTorchConfig,
    interface_of,
    use_interface_of_node,
)
from ual_ray.train.compat_torch import LARGE_PAGES

INTERFACES = {
    "lo": [SimpleNamespace(family=socket.AF_INET, address="127.0.0.1")],
    "eth0": [
        SimpleNamespace(family=psutil.AF_LINK, address="02:fc:00:00:00:01"),
        SimpleNamespace(family=socket.AF_INET, address="10.0.0.7"),
        SimpleNamespace(family=socket.AF_INET6, address="fe80::7%eth0"),
    ],
    "eth1": [SimpleNamespace(family=socket.AF_INET, address="10.0.0.71")],
}


@pytest.mark.parametrize(
    ("address", "name"),
    [("10.0.0.7", "eth0"), ("10.0.0.71", "eth1"), ("fe80::7", "eth0"), ("127.0.0.1", "lo"), ("127.0.0.2", None)],
)
def test_interface_has_the_whole_address(address: str, name: str | None) -> None:
    assert interface_of(address, INTERFACES) == name


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: INTERFACES)
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "10.0.0.7")
    monkeypatch.delenv(INTERFACE, raising=False)
    return monkeypatch


def test_interface_of_the_node_is_set_and_a_given_one_stays(node: pytest.MonkeyPatch) -> None:
    use_interface_of_node()
    assert os.environ[INTERFACE] == "eth0"
    node.setenv(INTERFACE, "ib0")
    use_interface_of_node()
    assert os.environ[INTERFACE] == "ib0"


def test_an_unknown_address_sets_nothing_and_is_logged(node: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    node.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.2")
    use_interface_of_node()
    assert INTERFACE not in os.environ
    assert "127.0.0.2" in caplog.text


@pytest.mark.parametrize("nodes", [["10.0.0.7"], ["10.0.0.7", "10.0.0.7"], ["10.0.0.7", "10.0.0.8"]])
def test_it_is_set_on_several_nodes_and_before_the_process_group(node: pytest.MonkeyPatch, nodes: list[str]) -> None:
    seen: list[str | None] = []
    node.setattr(_TorchBackend, "on_start", lambda *_: seen.append(os.environ.get(INTERFACE)))
    asked = ray.util.get_node_ip_address

    class Workers:
        def execute(self, call: Callable[..., Any], *given: Any) -> list[Any]:
            return nodes if call is asked else [call(*given) for _ in nodes]

    assert NodeTorchConfig(backend="gloo").backend_cls is NodeBackend
    for name in (*RECORDER, RECORDER_FILES, LARGE_PAGES):
        node.delenv(name, raising=False)
    NodeBackend().on_start(Workers(), NodeTorchConfig(backend="gloo"))
    assert seen == ["eth0" if len(set(nodes)) > 1 else None]
    assert os.environ.pop(LARGE_PAGES) == "1"
    assert not {*RECORDER, RECORDER_FILES} & set(os.environ)
    # Of GPUs, each rank also leaves what it waited for; what the user has set stays.
    node.setenv("TORCH_FR_BUFFER_SIZE", "5")
    node.setattr(_TorchBackend, "on_start", lambda *_: seen.append(os.environ.get(RECORDER_FILES)))
    NodeBackend().on_start(Workers(), NodeTorchConfig(backend="nccl", traces="/shared/nccl"))
    assert seen[1] == "/shared/nccl/rank_"
    assert LARGE_PAGES not in os.environ
    assert (os.environ["TORCH_FR_BUFFER_SIZE"], os.environ["TORCH_NCCL_DUMP_ON_TIMEOUT"]) == ("5", "1")


def test_the_recorder_of_this_torch_has_these_names() -> None:
    sources = Path(torch.__file__).parent / "include" / "torch" / "csrc" / "distributed" / "c10d"
    text = "".join((sources / name).read_text() for name in ("FlightRecorder.hpp", "ProcessGroupNCCL.hpp"))
    assert not [name for name in RECORDER if f'"{name}"' not in text]
