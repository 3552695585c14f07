"""A command `ual ... --out FOLDER ...` that tests start, kill in its middle, and start again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
from processes import PATIENCE, below, end, title, wait_until

REPOSITORY = Path(__file__).parents[2]


class KilledCommand:
    """One command with the output folder `out`; `start` has it run in a process of its own, to be killed, `run` in this one.

    What is killed has a Ray of its own; `run` is on the Ray of all tests.
    """

    patience = PATIENCE

    def __init__(self, ual: Any, folder: Path, command: Sequence[str], environment: dict[str, str] | None = None) -> None:
        """Hold what every start of it has in common; `ual` runs a command in this process."""
        self._ual = ual
        self.out = folder / "out"
        self._printed = folder / "printed.txt"
        self._command = [*command, "--out", str(self.out)]
        kept = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
        self._environment = kept | (environment or {})
        self._driver: subprocess.Popen[bytes] | None = None
        self._seen: set[psutil.Process] = set()
        self._looked = 0.0
        self.seconds = 0.0

    def start(self, *more: str) -> None:
        """Start it, in a session of its own."""
        self._started = time.monotonic()
        with self._printed.open("wb") as printed:
            self._driver = subprocess.Popen(
                [sys.executable, "-m", "ual_ray", *self._command, *more],
                cwd=REPOSITORY,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait(self, code: int = 0) -> None:
        """Wait for its end, which must have the exit code."""
        assert self._driver is not None
        wait_until(lambda: self._poll() is not None, "it ends", self.patience)
        self.seconds = time.monotonic() - self._started
        assert self._driver.returncode == code, f"exit code {self._driver.returncode}\n{self.log()}"

    def run(self, *more: str, code: int = 0) -> str:
        """Run it in this process; return what it printed."""
        started = time.monotonic()
        done = self._ual(*self._command, *more)
        self.seconds = time.monotonic() - started
        self._printed.write_text(done.output)
        assert done.code == code, f"exit code {done.code}\n{self.log()}"
        return self.printed

    def until(self, holds: Callable[[], Any], what: str) -> Any:
        """Poll while it runs until something is true."""

        def now() -> Any:
            assert self._poll() is None, f"it ended before: {what}\n{self.log()}"
            return holds()

        return wait_until(now, what, self.patience)

    def _poll(self) -> int | None:
        """Tell whether it has ended; remember its processes every now and then."""
        assert self._driver is not None
        if time.monotonic() - self._looked > 1:
            self._looked = time.monotonic()
            self.processes()
        return self._driver.poll()

    def processes(self) -> list[psutil.Process]:
        """List the processes below it."""
        assert self._driver is not None
        found = below(self._driver.pid)
        self._seen.update(found)
        return found

    def process(self, titled: str) -> psutil.Process:
        """Find a process of it by the start of its title."""
        found = self.until(
            lambda: [process for process in self.processes() if title(process).startswith(titled)], f"there is a {titled}"
        )
        return found[0]

    def signal(self, number: int) -> None:
        """Send a signal to the command alone, not to the processes that it started."""
        assert self._driver is not None
        self.processes()
        self._driver.send_signal(number)

    def kill(self) -> list[str]:
        """Kill -9 the command alone; end what is left of its processes after a while, and return their titles."""
        self.signal(signal.SIGKILL)
        self.wait(-signal.SIGKILL)
        psutil.wait_procs(list(self._seen), timeout=20)
        # A busy machine needs longer to notice that the driver of its workers is gone.
        psutil.wait_procs([process for process in self._seen if title(process).startswith("ray::")], timeout=40)
        left = [name for process in self._seen if (name := title(process))]
        self.end()
        return left

    def end(self) -> list[psutil.Process]:
        """End whatever of it is still there."""
        if self._driver is None:
            return []
        self.processes()
        if self._driver.poll() is None:
            self._driver.kill()
            self._driver.wait()
        return end(list(self._seen))

    @property
    def mlflow(self) -> Any:
        """The client of its MLflow store."""
        from mlflow import MlflowClient

        return MlflowClient(f"sqlite:///{self.out}/mlflow.db")

    def mlflow_run(self) -> Any:
        """Get the one MLflow run of it."""
        (run,) = self.mlflow.search_runs([self.mlflow.get_experiment_by_name("ual_ray").experiment_id])
        return run

    @property
    def printed(self) -> str:
        """What it printed since its last start."""
        return self._printed.read_text(errors="replace")

    def log(self) -> str:
        """Return what it printed and the end of its log, for the message of a failed test."""
        log = self.out / "ual.log"
        lines = log.read_text(errors="replace").splitlines()[-40:] if log.is_file() else []
        return "\n".join([self.printed, *lines])
