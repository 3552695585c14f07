"""The micro-batches of the next step, collated in a thread while the current step trains."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from ual_ray.train.batches import Batch


class Prefetch:
    """Gives a rank's micro-batches by number of step; steps that are taken in order are ready before they are asked for."""

    def __init__(self, collate: Callable[[int], list[Batch]], steps: int, *, pin: bool) -> None:
        """Take what collates a step of `steps`, from 0. pin: put batches into pinned memory."""
        self._collate, self._steps, self._pin = collate, steps, pin
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._next: tuple[int, Future[list[Batch]]] | None = None

    def take(self, step: int) -> list[Batch]:
        """Return the micro-batches of a step, and begin with those of the next one. Raises what collating them raised."""
        waiting, self._next = self._next, None
        ready = waiting[1] if waiting and waiting[0] == step else self._thread.submit(self._make, step)
        if step + 1 < self._steps:
            self._next = step + 1, self._thread.submit(self._make, step + 1)
        return ready.result()

    def _make(self, step: int) -> list[Batch]:
        batches = self._collate(step)
        return [batch.pinned() for batch in batches] if self._pin else batches
