"""Close the MLflow runs of a process that was killed with no time to do so: `python -m ual_ray.tracking.watcher`.

It waits for the end of its standard input, whose other end the kernel closes when that process is gone, however it went. While
the store is away, the end of a run waits in the spool of the output folder, behind what the process has left there.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ual_ray.tracking.run_file import HOLDER

if TYPE_CHECKING:
    from ual_ray.config import TrackingConfig
    from ual_ray.tracking.run import Run

CLOSED = "closed"


@contextmanager
def watched(config: TrackingConfig, uri: str, runs: Sequence[Run]) -> Iterator[None]:
    """Have the runs set to KILLED if this process dies before the block ends. `uri`: of the tracking store."""
    holder = f"{socket.gethostname()}:{os.getpid()}"
    for run in runs:
        run.tags({HOLDER: holder})
    # Not on the command line, where all users of the machine could read the address.
    task = {
        "uri": uri,
        "experiment": config.experiment,
        "output": str(runs[0].output.absolute()),
        "holder": holder,
        "runs": [run.id for run in runs],
    }
    # In a session of its own: what ends the process's group must not end its watcher.
    watcher = subprocess.Popen(  # noqa: S603 - our own module
        [sys.executable, "-m", __name__], stdin=subprocess.PIPE, text=True, start_new_session=True, stdout=subprocess.DEVNULL
    )
    assert watcher.stdin is not None
    _write(watcher, json.dumps(task))
    try:
        yield
    finally:
        _write(watcher, CLOSED)
        watcher.stdin.close()
        watcher.wait()


def _write(watcher: subprocess.Popen[str], line: str) -> None:
    assert watcher.stdin is not None
    # A watcher that is gone is no reason to fail: it is there for the case that all else has.
    if watcher.poll() is None:
        watcher.stdin.write(line + "\n")
        watcher.stdin.flush()


def main() -> None:
    """Read what to watch, wait, and close what is still open."""
    task = json.loads(sys.stdin.readline() or "null")
    if task is None or sys.stdin.readline().strip() == CLOSED:
        return
    # Imported only now: until then this process costs next to nothing.
    from ual_ray.config import TrackingConfig
    from ual_ray.tracking.tracker import Tracker

    config = TrackingConfig(uri=task["uri"], experiment=task["experiment"])
    with Tracker(config, Path(task.get("output", ".")), must_answer=False) as tracker:
        for run_id in task["runs"]:
            tracker.end_abandoned(run_id, task["holder"])


if __name__ == "__main__":
    main()
