"""How a cluster is connected to, and what it is asked for, by stage."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import SimpleNamespace
from typing import Any

import pytest
from ray.train.v2._internal.constants import ENABLE_PREEMPTION_WATCHER_ENV_VAR
from rich.console import Console

from ual_ray.config import RuntimeConfig, TrainConfig
from ual_ray.config.load import load
from ual_ray.errors import USER_ERROR_EXIT_CODE, UserError
from ual_ray.run import cluster as runtime
from ual_ray.run.terminal import SIGTERM_EXIT_CODE

# A command that its signal does not end, as a call of Ray that waits for the head does not.
WAITING = """
import threading, time, types
from rich.console import Console
from ual_ray.config import RuntimeConfig
from ual_ray.run import cluster

cluster.ray.init = lambda **_: types.SimpleNamespace(dashboard_url="")
cluster.ray.get_runtime_context = lambda: types.SimpleNamespace(gcs_address="127.0.0.1:1")
cluster.WATCH_SECONDS = cluster.GRACE_SECONDS = cluster.LOCAL_SECONDS = 0.1
cluster.end_command = lambda: None
with cluster.ray_cluster(RuntimeConfig(), Console()):
    time.sleep(50)
"""


@pytest.fixture
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime.ray, "cluster_resources", lambda: {"CPU": 4.0})
    monkeypatch.setattr(runtime.ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 4.0}}])
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.mark.usefixtures("four_cores")
def test_a_stage_is_not_judged_by_what_another_needs() -> None:
    eight = load(None, ["train.gpus_per_worker=1", "train.num_workers=8"])
    assert runtime.check_cluster(eight, {"elicit"}) == []
    with pytest.raises(UserError, match=r"train.gpus_per_worker x train.num_workers = 8 GPUs, the cluster has 0"):
        runtime.check_cluster(eight, {"train"})
    engines = load(None, ["engine.gpus_per_actor=1"])
    assert runtime.check_cluster(engines, {"train"}) == []
    with pytest.raises(UserError, match="engine.gpus_per_actor x engine.min_actors = 1 GPUs"):
        runtime.check_cluster(engines, {"judge"})


@pytest.mark.usefixtures("four_cores")
def test_elastic_training_starts_with_the_least() -> None:
    assert runtime.check_cluster(load(None, ["train.num_workers=8", "train.min_workers=4"]), {"train"}) == []
    with pytest.raises(UserError, match="train.cpus_per_worker x train.min_workers = 5 CPUs"):
        runtime.check_cluster(load(None, ["train.num_workers=8", "train.min_workers=5"]), {"train"})


@pytest.mark.usefixtures("four_cores")
def test_a_cluster_that_may_grow_is_waited_for() -> None:
    config = load(None, ["train.num_workers=8", "runtime.address=auto"])
    assert runtime.check_cluster(config, {"train"}) == ["train.cpus_per_worker x train.num_workers = 8 CPUs, the cluster has 4"]


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collect the addresses that Ray is asked to connect to."""
    addresses: list[str] = []

    def init(address: str, **_: Any) -> SimpleNamespace:
        addresses.append(address)
        return SimpleNamespace(dashboard_url="127.0.0.1:8265")

    monkeypatch.setattr(runtime.ray, "init", init)
    monkeypatch.setattr(runtime.ray, "shutdown", lambda: None)
    monkeypatch.setattr(runtime.ray, "is_initialized", lambda: False)
    return addresses


@pytest.mark.parametrize("scheme", ["", "ray://"])
@pytest.mark.parametrize("through", ["runtime.address", "RAY_ADDRESS"])
def test_a_dead_address_is_refused_before_ray_waits_for_it(
    through: str, scheme: str, joined: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"{scheme}127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("RAY_ADDRESS", address if through == "RAY_ADDRESS" else "")
    config = RuntimeConfig(address=address if through == "runtime.address" else None)
    with pytest.raises(UserError, match=f"(?s)unreachable.*got: {address}: .*refused"), runtime.ray_cluster(config):
        raise AssertionError("there is no cluster")
    assert joined == []


@pytest.mark.parametrize(
    ("given", "variable", "cluster"),
    [
        (None, None, None),
        (None, "", None),
        (None, "  ", None),
        ("  ", " 10.0.0.1:6379 ", "10.0.0.1:6379"),
        (" auto ", None, "auto"),
        (None, "local", None),
        ("local", "10.0.0.1:6379", None),
        ("auto", "10.0.0.1:6379", "auto"),
        (None, "10.0.0.1:6379", "10.0.0.1:6379"),
    ],
)
def test_the_configured_cluster_is_joined_or_that_of_the_environment(
    given: str | None, variable: str | None, cluster: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", variable) if variable is not None else monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert RuntimeConfig(address=given).joined == cluster


@contextmanager
def listening(answer: bytes) -> Iterator[str]:
    """Listen at a port, and answer whatever is sent first; yield its address."""
    taken = []

    def serve() -> None:
        with suppress(OSError):
            while True:
                taken.append(server.accept()[0])
                if taken[-1].recv(1000) and answer:
                    taken[-1].sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
    for connection in taken:
        connection.close()


# What a server of gRPC writes first: the frame of its settings, here with one of them.
OF_GRPC = bytes([0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 1])


def test_addresses_that_answer_or_that_ray_resolves_are_left_to_ray(joined: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with listening(OF_GRPC) as alive:
        monkeypatch.setattr(runtime, "where_auto_leads", lambda: alive)
        for address in (alive, f"ray://{alive}", "auto", "ray://a-name-alone"):
            with runtime.ray_cluster(RuntimeConfig(address=address)):
                assert joined[-1] == address


@pytest.mark.parametrize("scheme", ["", "ray://"])
@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-OpenSSH_9.2\r\n", b"-ERR unknown\r\n"])
def test_the_port_of_another_service_is_refused_before_ray_waits_for_it(
    answer: bytes, scheme: str, joined: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray waits for a quarter of an hour there."""
    monkeypatch.setattr(runtime, "CONNECT_SECONDS", 0.2)
    with (
        listening(answer) as address,
        pytest.raises(UserError, match=f"(?s)unreachable.*got: {scheme}{address}: .*fix: start the cluster"),
        runtime.ray_cluster(RuntimeConfig(address=f"{scheme}{address}")),
    ):
        raise AssertionError("there is no cluster")
    assert joined == []


def test_auto_is_checked_where_it_leads(joined: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray takes RAY_ADDRESS for it, or the address that the last cluster of this machine left, dead or not."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{free.getsockname()[1]}")
    with (
        pytest.raises(UserError, match="(?s)unreachable.*got: auto .[0-9.]+:[0-9]+.: .*refused"),
        runtime.ray_cluster(RuntimeConfig(address="auto")),
    ):
        raise AssertionError("there is no cluster")
    assert joined == []


@pytest.mark.parametrize(("failures", "message", "attempts"), [(2, "timed out during startup", 3), (1, "no disk", 1)])
def test_a_local_cluster_that_is_slow_to_start_is_started_again(
    failures: int, message: str, attempts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[dict[str, Any]] = []

    def init(**options: Any) -> None:
        started.append(options)
        if len(started) <= failures:
            raise Exception(f"The current node {message}.")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(runtime.ray, "init", init)
    monkeypatch.setattr(runtime.ray, "shutdown", lambda: None)
    monkeypatch.setattr(runtime.ray, "is_initialized", lambda: False)
    if message == runtime.SLOW_START:
        with runtime.ray_cluster(RuntimeConfig()):
            pass
    else:
        with pytest.raises(Exception, match=message), runtime.ray_cluster(RuntimeConfig()):
            raise AssertionError("there is no cluster")
    assert len(started) == attempts


def test_only_a_cluster_that_is_joined_is_asked_whether_its_nodes_go(
    joined: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv(ENABLE_PREEMPTION_WATCHER_ENV_VAR, raising=False)
    with runtime.ray_cluster(RuntimeConfig(address="auto")):
        assert ENABLE_PREEMPTION_WATCHER_ENV_VAR not in os.environ
    with runtime.ray_cluster(RuntimeConfig()):
        assert os.environ[ENABLE_PREEMPTION_WATCHER_ENV_VAR] == "0"
    assert joined == ["auto", "local"]


EIGHT = {"CPU": 64.0, "GPU": 8.0}
FOUR = {"CPU": 64.0, "GPU": 4.0}


@pytest.mark.parametrize(
    ("workers", "replicas", "nodes", "fits"),
    [
        (16, 2, [EIGHT, EIGHT], True),
        (16, 2, [FOUR, EIGHT, EIGHT], True),
        (16, 2, [FOUR, FOUR, EIGHT], False),
        (12, 2, [EIGHT, EIGHT], False),
        (16, 4, [EIGHT, EIGHT], True),
        (16, 2, [FOUR] * 4, True),
        (12, 2, [FOUR] * 3, False),
        (8, 4, [EIGHT], True),
        (12, 3, [EIGHT, EIGHT], True),
        (16, 1, [FOUR, FOUR, EIGHT], True),
        (16, 2, [EIGHT], True),
    ],
)
def test_a_replica_lies_on_one_node_or_on_equal_parts_of_several(
    workers: int, replicas: int, nodes: list[dict[str, float]], fits: bool
) -> None:
    train = TrainConfig(num_workers=workers, replicas=replicas, gpus_per_worker=1)
    if fits:
        runtime.check_replicas(train, nodes)
    else:
        with pytest.raises(UserError, match=f"{replicas} replicas of {workers // replicas} workers"):
            runtime.check_replicas(train, nodes)


def test_cores_limit_the_workers_on_a_node_too(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [{"Alive": True, "Resources": {"CPU": 8.0}}, {"Alive": True, "Resources": {"CPU": 4.0}}]
    monkeypatch.setattr(runtime.ray, "cluster_resources", lambda: {"CPU": 12.0})
    monkeypatch.setattr(runtime.ray, "nodes", lambda: nodes)
    config = load(None, ["train.num_workers=6", "train.replicas=2", "train.cpus_per_worker=2", "runtime.address=auto"])
    with pytest.raises(UserError, match="2 replicas of 3 workers, 4, 2 workers on the nodes"):
        runtime.check_cluster(config, {"train"})
    assert runtime.check_cluster(config, {"elicit"}) == []
    nodes[1]["Alive"] = False
    assert runtime.check_cluster(config, {"train"}) == []


@pytest.mark.parametrize("address", ["auto", None])
@pytest.mark.slow
def test_the_command_ends_with_one_error_when_the_head_is_gone(
    address: str | None, joined: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv(runtime.RECONNECT_VARIABLE, str(runtime.GRACE_SECONDS + runtime.SPARE_SECONDS + 0.5))
    monkeypatch.setattr(runtime, "WATCH_SECONDS", 0.05)
    monkeypatch.setattr(runtime, "end_command", lambda: os.kill(os.getpid(), signal.SIGINT))
    at_exit: list[Any] = []
    monkeypatch.setattr(runtime, "atexit", SimpleNamespace(register=at_exit.append))
    server = socket.create_server(("127.0.0.1", 0))
    where = server.getsockname()
    context = SimpleNamespace(gcs_address=f"{where[0]}:{where[1]}")
    monkeypatch.setattr(runtime.ray, "get_runtime_context", lambda: context)
    with pytest.raises(UserError, match=rf"(?s)head of the Ray cluster is gone.*{where[1]} does not answer.*run the same"):  # noqa: SIM117
        with runtime.ray_cluster(RuntimeConfig(address=address), Console()):
            time.sleep(0.8)
            server.close()
            time.sleep(0.3)
            server = socket.create_server(where)  # it is back in time
            time.sleep(0.8)
            server.close()
            time.sleep(5)
            raise AssertionError("the command goes on")
    assert at_exit, "Ray's end waits for the head"


@pytest.mark.slow
def test_a_command_that_waits_for_a_head_that_is_gone_is_ended() -> None:
    command = [sys.executable, "-c", WAITING]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == USER_ERROR_EXIT_CODE, done.stderr
    assert done.stdout.count("the head of the Ray cluster is gone") == 1 and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("listening", "signalled", "raised"),
    [(True, False, RuntimeError), (False, False, UserError), (True, True, RuntimeError), (False, True, SystemExit)],
)
def test_an_error_of_ray_is_told_as_what_it_is_of(
    listening: bool, signalled: bool, raised: type[BaseException], joined: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A head that is gone behind a SIGTERM got it too, as from `timeout` and systemd."""
    at_exit: list[Any] = []
    monkeypatch.setattr(runtime, "atexit", SimpleNamespace(register=at_exit.append))
    monkeypatch.setattr(runtime, "ended_by_sigterm", lambda: signalled)
    with socket.create_server(("127.0.0.1", 0)) as server:
        context = SimpleNamespace(gcs_address=f"127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setattr(runtime.ray, "get_runtime_context", lambda: context)
        if not listening:
            server.close()
        with pytest.raises(raised) as found, runtime.ray_cluster(RuntimeConfig(address="auto"), Console()):
            raise RuntimeError("the actor is unavailable")
    if raised is SystemExit:
        assert isinstance(found.value, SystemExit) and found.value.code == SIGTERM_EXIT_CODE
    assert [end.args for end in at_exit] == ([] if listening else [(SIGTERM_EXIT_CODE if signalled else USER_ERROR_EXIT_CODE,)])
