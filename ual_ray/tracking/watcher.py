"""Close the MLflow runs of a process that was killed: `python -m ual_ray.tracking.watcher`.

It waits for end of file on its standard input: the kernel closes the other end when the watched process ends, for any reason.
While the store is unreachable, closing the run is spooled in the output folder, after the operations of that process.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ual_ray.tracking import HOLDER

if TYPE_CHECKING:
    from ual_ray.config import TrackingConfig
    from ual_ray.tracking.run import Run

CLOSED = "closed"

logger = logging.getLogger(__name__)


@contextmanager
def watched(config: TrackingConfig, uri: str, runs: Sequence[Run]) -> Iterator[None]:
    """Set the runs to KILLED if this process dies inside the block. `uri`: the tracking store."""
    holder = f"{socket.gethostname()}:{os.getpid()}"
    for run in runs:
        run.tags({HOLDER: holder})
    # Not on the command line, where every user of the machine could read the address.
    task = {
        "uri": uri,
        "experiment": config.experiment,
        "output": str(runs[0].output.absolute()),
        "holder": holder,
        "runs": [run.id for run in runs],
    }
    # In its own session, so that a signal to the process group does not end the watcher.
    watcher = subprocess.Popen(  # noqa: S603 - our own module
        [sys.executable, "-m", __name__], stdin=subprocess.PIPE, bufsize=0, start_new_session=True, stdout=subprocess.DEVNULL
    )
    assert watcher.stdin is not None
    _write(watcher, json.dumps(task))
    try:
        yield
    finally:
        _write(watcher, CLOSED)
        watcher.stdin.close()
        watcher.wait()


def _write(watcher: subprocess.Popen[bytes], line: str) -> None:
    assert watcher.stdin is not None
    try:
        watcher.stdin.write(f"{line}\n".encode())
    except BrokenPipeError:
        # It may end at any moment, and is only a fallback.
        logger.warning("the process that would close the MLflow runs after a kill has ended")


def main() -> None:
    """Read the runs to watch from standard input, wait for its end, and close the runs still open."""
    task = json.loads(sys.stdin.readline() or "null")
    if task is None or sys.stdin.readline().strip() == CLOSED:
        return
    # Imported only now, so that the waiting process uses little memory.
    from ual_ray.config import TrackingConfig
    from ual_ray.tracking.tracker import Tracker

    config = TrackingConfig(uri=task["uri"], experiment=task["experiment"])
    with Tracker(config, Path(task.get("output", ".")), must_answer=False) as tracker:
        for run_id in task["runs"]:
            tracker.end_abandoned(run_id, task["holder"])


if __name__ == "__main__":
    main()
