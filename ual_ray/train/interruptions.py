"""Early checkpoints and stops, agreed between ranks by votes that are reduced with each step's sums."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ual_ray.run.folder import HERE, Folder

STOP_FILE = "stop"
# Number of a rank's votes in a step.
VOTES = 2
# Seconds between checks for a node about to be preempted: each check is a round trip of every rank.
PREEMPTION_INTERVAL = 5.0


class Interruptions:
    """Detects the stop file that the driver writes when it is told to end, and nodes that are about to be preempted."""

    def __init__(self, folder: Path, preempted: Callable[[], bool], *, votes: bool, output: Folder = HERE) -> None:
        """Take the folder of the stop file, a preemption check that all ranks must call together, and whether this rank votes.

        Only one rank votes, as clocks and views of a folder differ between ranks; all read the result.
        """
        self._stop_file, self._preempted, self._votes, self._output = folder / STOP_FILE, preempted, votes, output
        self._looked = time.monotonic()
        self._saved = False

    def votes(self) -> tuple[float, float]:
        """Return this rank's votes: to stop, and to check for preemption."""
        if not self._votes:
            return 0.0, 0.0
        return float(self._output.call(Path.exists, self._stop_file)), float(
            time.monotonic() - self._looked > PREEMPTION_INTERVAL
        )

    def decide(self, votes: Sequence[float]) -> tuple[bool, bool]:
        """Decide from the summed votes whether to stop, and whether to save (once) before a node is preempted."""
        stop, ask = (vote > 0 for vote in votes)
        if not ask or self._saved:
            return stop, False
        self._looked = time.monotonic()
        self._saved = self._preempted()
        return stop, self._saved
