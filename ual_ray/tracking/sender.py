"""The thread that sends spooled operations to the store in order, and retries while the store is unreachable."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable

from ual_ray.tracking.journal import Operation, Spool
from ual_ray.tracking.store import Store, is_away

# The longest pause between two attempts, in seconds.
LONGEST_PAUSE = 30.0
# An operation that fails this often on a reachable store counts as rejected.
MOST_ATTEMPTS = 5

logger = logging.getLogger(__name__)


class Courier:
    """Sends the operations of a spool from a daemon thread, which starts with the first spooled operation."""

    def __init__(
        self, spool: Spool, store: Store, retry_seconds: float, refused: Callable[[Operation, BaseException, str], None]
    ) -> None:
        """Create the sender; `refused(operation, error, name)` is called for each operation that the store rejects."""
        self._spool, self._store, self._refused = spool, store, refused
        self._retry_seconds = retry_seconds
        self._attempts: Counter[str] = Counter()
        self._wake, self._finishing, self._stopped = threading.Event(), threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self.sent = 0

    def start(self, at_once: bool = False) -> None:
        """Start sending if the thread is not running; `at_once`: without a pause first."""
        if at_once or (self._thread is not None and self._spool.waiting == 1):
            self._wake.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="mlflow-courier", daemon=True)
            self._thread.start()

    def finish(self, seconds: float) -> None:
        """Wait at most `seconds` for all operations to be sent, then stop the thread."""
        deadline = time.monotonic() + seconds
        self._finishing.set()
        if self._spool.waiting:
            self.start(at_once=True)
        while self._spool.waiting and time.monotonic() < deadline:
            time.sleep(0.05)
        self._stopped.set()
        self._wake.set()

    def _work(self) -> None:
        pause = self._retry_seconds
        while not self._stopped.is_set():
            self._wake.wait(pause if self._spool.waiting else None)
            self._wake.clear()
            before = self.sent
            try:
                with self._spool.held() as mine:
                    if mine:
                        self._send()
            except Exception:  # such as a full disk: logged and retried
                logger.exception("MLflow: cannot send the operations in %s now", self._spool.folder)
            if self.sent > before and not self._spool.waiting:
                logger.warning("MLflow: the store answers again; operations caught up: %d", self.sent)
            calm = self.sent > before or self._finishing.is_set()
            pause = self._retry_seconds if calm else min(2 * pause, max(LONGEST_PAUSE, self._retry_seconds))

    def _send(self) -> None:
        """Send until the spool is empty or the store is unreachable."""
        while not self._stopped.is_set() and (first := self._spool.first()) is not None:
            name, operation = first
            try:
                self._store.apply(operation, waited=True)
            except Exception as error:
                if self._may_pass(name, error):
                    return
                self._refused(operation, error, name)
            else:
                self._spool.remove(name, operation)
                self.sent += 1

    def _may_pass(self, name: str, error: Exception) -> bool:
        """Whether a retry can help: not for a rejection, nor when only this operation fails."""
        if not is_away(error):
            return False
        self._attempts[name] += 1
        return self._attempts[name] < MOST_ATTEMPTS or not self._store.answers()
