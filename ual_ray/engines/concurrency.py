"""Several batches at a time in one actor: what they share, and what one of them does alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Condition, Lock

from ual_ray.engines.contract import Engine
from ual_ray.engines.requests import Request, Result


class SharedLock:
    """A lock that many threads hold together, or one alone; who waits to be alone goes before those who come later."""

    def __init__(self) -> None:
        """Begin with nobody inside."""
        self._changed = Condition()
        self._together = 0
        self._alone = False
        self._waiting = 0

    @contextmanager
    def together(self) -> Iterator[None]:
        """Hold it with others."""
        with self._changed:
            self._changed.wait_for(lambda: not self._alone and not self._waiting)
            self._together += 1
        try:
            yield
        finally:
            with self._changed:
                self._together -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold it without others."""
        with self._changed:
            self._waiting += 1
            try:
                self._changed.wait_for(lambda: not self._alone and not self._together)
                self._alone = True
            finally:
                self._waiting -= 1
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._alone = False
                self._changed.notify_all()


class OverlappingEngine:
    """An engine whose callers hold a lock, which is released while the engine runs.

    So a task needs no thread safety of its own: one thread at a time is in its code, and the others are in the engine.
    """

    def __init__(self, engine: Engine, lock: Lock) -> None:
        """Take an engine that threads may run at the same time, and the lock."""
        self._engine, self._lock = engine, lock
        self.template_hash = engine.template_hash

    def run(self, requests: Sequence[Request]) -> list[Result]:
        """Answer all requests."""
        self._lock.release()
        try:
            return self._engine.run(requests)
        finally:
            self._lock.acquire()
