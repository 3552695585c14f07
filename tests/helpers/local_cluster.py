"""Two Ray nodes on this machine, one of which can be killed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import psutil
from processes import PATIENCE, below, end, free_port, title

REPOSITORY = Path(__file__).parents[2]


class Cluster:
    """Two Ray nodes on this machine, as `cluster/local.sh` starts them, apart from any other cluster."""

    def __init__(self, state: Path | None = None, **environment: str) -> None:
        """Start them. state: where Ray keeps its files, of a short name. environment: settings of Ray and of local.sh."""
        # Ray's sockets lie below it, and the path of a socket may have 107 characters.
        self._state = state or Path(tempfile.mkdtemp(prefix="ual"))
        self._port, self._settings = free_port(), environment
        self._environment = os.environ | {
            "HOME": str(self._state),  # Ray keeps its token there
            "RAY": str(Path(sys.executable).with_name("ray")),
            "UAL_RAY_PORT": str(self._port),
            "UAL_DASHBOARD_PORT": str(free_port()),
            "UAL_CLIENT_PORT": str(free_port()),
            "UAL_CLUSTER_STATE": str(self._state),
            "UAL_CPUS_PER_NODE": "4",
            "UAL_OBJECT_STORE_BYTES": "200000000",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            # A node that is gone is noticed a little sooner; much sooner, and a node with much to do counts as gone.
            "RAY_health_check_period_ms": "2000",
            **environment,
        }
        try:
            self._script("start", "1")
            self._below = below(self._pid("head")) + below(self._pid("worker-1"))
        except BaseException:
            self.stop()
            raise

    @property
    def environment(self) -> dict[str, str]:
        """What a driver needs to find it."""
        joining = {"RAY_ADDRESS": f"127.0.0.2:{self._port}", "RAY_AUTH_MODE": "token", "HOME": str(self._state)}
        return joining | self._settings

    def kill_worker_node(self) -> None:
        """Kill -9 all of the node that is not the driver's, as when the machine is gone."""
        self._kill("worker-1", "raylet")

    def kill_head(self) -> None:
        """Kill -9 all of the head, as when its machine is gone; the driver is on it, and stays."""
        self._kill("head", "gcs_server")

    def _kill(self, node: str, first: str) -> None:
        """Kill -9 the processes of a node, one before the others."""
        processes = self.processes(node)
        processes.sort(key=lambda process: Path(title(process).split(" ")[0]).name != first)
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def processes(self, node: str) -> list[psutil.Process]:
        """List the processes of a node, head or worker-1."""
        return below(self._pid(node))

    def on_worker_node(self) -> set[int]:
        """List the ids of the processes of the node that is not the driver's."""
        return {process.pid for process in self.processes("worker-1")}

    def stop(self) -> None:
        """Stop it, and whatever of it is left."""
        for node in ("head", "worker-1"):
            with suppress(FileNotFoundError):
                self._below = [*getattr(self, "_below", []), *below(self._pid(node))]
        self._script("stop")
        end(getattr(self, "_below", []))
        shutil.rmtree(self._state, ignore_errors=True)

    def _pid(self, name: str) -> int:
        return int((self._state / f"{name}.pid").read_text().split()[0])

    def _script(self, *arguments: str) -> None:
        command = ["bash", str(REPOSITORY / "cluster" / "local.sh"), *arguments]
        done = subprocess.run(command, env=self._environment, capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 0, done.stdout + done.stderr
