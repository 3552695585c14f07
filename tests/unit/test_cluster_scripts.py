"""The scripts in cluster/ explain themselves, refuse what they cannot do, and end only what they started."""

from __future__ import annotations

import shutil
import socket
import subprocess
from pathlib import Path

import pytest

CLUSTER = Path(__file__).parents[2] / "cluster"
PORTS = ("UAL_RAY_PORT", "UAL_DASHBOARD_PORT", "UAL_CLIENT_PORT")
BASH = shutil.which("bash") or "bash"


SCRIPTS = ["local.sh", "namespaces.sh"]


def run_local(*arguments: str, script: str = "local.sh", **environment: str) -> subprocess.CompletedProcess[str]:
    command = [BASH, str(CLUSTER / script), *arguments]
    environment["PATH"] = "/usr/bin:/bin"
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("script", [*SCRIPTS, "processes.sh"])
def test_local_script_parses(script: str) -> None:
    done = subprocess.run([BASH, "-n", str(CLUSTER / script)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("script", SCRIPTS)
def test_local_script_is_strict_and_never_stops_other_peoples_ray(script: str) -> None:
    lines = (CLUSTER / script).read_text(encoding="utf-8").splitlines()
    code = [line for line in lines if not line.lstrip().startswith("#")]
    assert "set -euo pipefail" in code
    assert not any(word in line for line in code for word in ("ray stop", '"$RAY" stop', "pkill", "killall"))


@pytest.mark.parametrize("arguments", [(), ("begin",), ("start", "many"), ("start", "1", "2"), ("stop", "now")])
def test_local_script_explains_itself(arguments: tuple[str, ...], tmp_path: Path) -> None:
    done = run_local(*arguments, UAL_CLUSTER_STATE=str(tmp_path / "state"))
    assert (done.returncode, done.stdout) == (2, "")
    assert "usage:" in done.stderr


@pytest.mark.parametrize("arguments", [(), ("begin",), ("start", "0"), ("start", "many"), ("run",), ("stop", "now")])
def test_namespaces_script_explains_itself(arguments: tuple[str, ...], tmp_path: Path) -> None:
    done = run_local(*arguments, script="namespaces.sh", UAL_NODES_STATE=str(tmp_path / "state"))
    assert (done.returncode, done.stdout) == (2, "")
    assert "usage:" in done.stderr


@pytest.mark.parametrize("folder", ["", "relative", "/no/such/folder"])
@pytest.mark.parametrize("option", ["--shared", "--read-only"])
def test_namespaces_script_takes_only_folders_that_exist(option: str, folder: str, tmp_path: Path) -> None:
    done = run_local("start", option, folder, script="namespaces.sh", UAL_NODES_STATE=str(tmp_path / "state"))
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{option} takes the absolute path of a folder" in done.stderr
    assert not (tmp_path / "state").exists()


def test_namespaces_script_stops_nothing_where_nothing_runs(tmp_path: Path) -> None:
    done = run_local("stop", script="namespaces.sh", UAL_NODES_STATE=str(tmp_path / "state"))
    assert (done.returncode, done.stderr) == (0, "nothing to stop\n")


def test_local_script_needs_ray(tmp_path: Path) -> None:
    done = run_local("start", RAY=str(tmp_path / "no_ray"), UAL_CLUSTER_STATE=str(tmp_path / "state"))
    assert done.returncode == 2
    assert "no such command" in done.stderr


@pytest.mark.parametrize("variable", PORTS)
def test_local_script_names_the_busy_port(variable: str, tmp_path: Path) -> None:
    with socket.socket() as taken, socket.socket() as other:
        for one in (taken, other):
            one.bind(("127.0.0.1", 0))
        taken.listen()
        # The two other ports are bound but not listening, which is as good as free to the script.
        ports = {name: str(other.getsockname()[1]) for name in PORTS}
        ports[variable] = str(taken.getsockname()[1])
        done = run_local("start", RAY="true", UAL_CLUSTER_STATE=str(tmp_path / "state"), **ports)
    assert done.returncode == 2
    assert f"port {ports[variable]} is in use" in done.stderr
    assert f"{variable}=" in done.stderr
    assert not (tmp_path / "state").exists()


def test_local_script_has_nothing_to_stop(tmp_path: Path) -> None:
    state = str(tmp_path / "state")
    assert run_local("status", UAL_CLUSTER_STATE=state).returncode == 1
    done = run_local("stop", UAL_CLUSTER_STATE=state)
    assert (done.returncode, done.stderr) == (0, "nothing to stop\n")


def test_local_script_spares_a_process_that_took_over_a_pid(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as bystander:
        try:
            (tmp_path / "head.pid").write_text(f"{bystander.pid} 1\n", encoding="utf-8")
            assert run_local("stop", UAL_CLUSTER_STATE=str(tmp_path)).returncode == 0
            assert bystander.poll() is None
        finally:
            bystander.kill()
