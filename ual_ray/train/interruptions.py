"""What makes training save at once, and perhaps stop: agreed between ranks by votes that travel with each step's sums."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

STOP_FILE = "stop"
# Seconds between looks at whether a node is about to be taken away: each look is a round trip of every rank.
PREEMPTION_INTERVAL = 5.0


class Interruptions:
    """The driver leaves a stop file when it is told to end; Ray knows of nodes that are about to be taken away."""

    def __init__(self, folder: Path, preempted: Callable[[], bool], *, votes: bool) -> None:
        """Take the folder of the stop file, a question that all ranks have to ask together, and whether this rank votes.

        One rank votes, as clocks and views of a folder differ; all count.
        """
        self._stop_file, self._preempted, self._votes = folder / STOP_FILE, preempted, votes
        self._looked = time.monotonic()
        self._saved = False

    def votes(self) -> tuple[float, float]:
        """Vote to stop, and to ask whether a node is about to go."""
        if not self._votes:
            return 0.0, 0.0
        return float(self._stop_file.exists()), float(time.monotonic() - self._looked > PREEMPTION_INTERVAL)

    def decide(self, votes: Sequence[float]) -> tuple[bool, bool]:
        """Tell from the summed votes whether to stop, and whether to save, once, before a node goes."""
        stop, ask = (vote > 0 for vote in votes)
        if not ask or self._saved:
            return stop, False
        self._looked = time.monotonic()
        self._saved = self._preempted()
        return stop, self._saved
