"""Progress: a bar with rate and ETA on a terminal, at most one line every ten seconds elsewhere."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 10.0

logger = logging.getLogger(__name__)


class Meter:
    """Counts finished work and shows it; `update` may be called at any rate.

    A terminal has one bar at a time: of several meters, those opened while there is a bar print lines.
    """

    _bar_lock = threading.Lock()

    def __init__(self, console: Console, name: str, total: int | None, unit: str) -> None:
        """Count `total` units (None = unknown) of `unit`, such as 'rows' or 'tokens'."""
        self._console = console
        self._name = name
        self._total = total
        self._unit = unit
        self._started = time.monotonic()
        self._last_line = self._started
        self._last_state: tuple[float, float, str] | None = None
        self._first_done: tuple[float, float, float] | None = None
        self.done = 0.0
        self.rate_done = 0.0
        # Until work began, such as the start of engines; None = not known.
        self.start_seconds: float | None = None
        self._bar: Progress | None = None
        if console.is_terminal and self._bar_lock.acquire(blocking=False):
            columns = [
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}", markup=False),
            ]
            self._bar = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, transient=True)
            self._bar.start()
            self._task = self._bar.add_task(name, total=total, note="")

    def update(self, done: float, *, rate_done: float | None = None, note: str = "") -> None:
        """Set how much is done; `rate_done` is the count behind the rate where its unit differs (steps done, tokens/s shown).

        Off a terminal a line is printed only if something changed since the last one.
        """
        now = time.monotonic()
        self.done = done
        self.rate_done = done if rate_done is None else rate_done
        if self._first_done is None and self.rate_done > 0:
            self._first_done = (now, self.rate_done, done)
        rate = self.rate()
        text = f"{rate:,.{0 if rate >= 10 else 2}f} {self._unit}/s {note}".rstrip() if rate else note
        if self._bar is not None:
            self._bar.update(self._task, completed=done, note=text)
            return
        state = (self.done, self.rate_done, note)
        if now - self._last_line >= SECONDS_BETWEEN_LINES and state != self._last_state:
            self._last_line, self._last_state = now, state
            line = f"  {self._name}: {self._share()} {text or ('' if self.done else 'starting')}{self._remaining(now)}"
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def rate(self) -> float:
        """Return units per second since the first one was done, so that start-up time does not bias the ETA."""
        if self._first_done is None:
            return 0.0
        since, before, _ = self._first_done
        seconds = time.monotonic() - since
        return (self.rate_done - before) / seconds if seconds > 0.5 else 0.0

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
            self._bar_lock.release()

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started

    def _share(self) -> str:
        return f"{self.done:,.0f}" if self._total is None else f"{self.done:,.0f}/{self._total:,}"

    def _remaining(self, now: float) -> str:
        if self._total is None or self._first_done is None or self.done <= self._first_done[2]:
            return ""
        since, _, before = self._first_done
        return f" ETA {(now - since) * (self._total - self.done) / (self.done - before):,.0f} s"


@contextmanager
def meter(console: Console, name: str, total: int | None, unit: str) -> Iterator[Meter]:
    """Show progress while the block runs."""
    shown = Meter(console, name, total, unit)
    try:
        yield shown
    finally:
        shown.close()


@contextmanager
def polled(call: Callable[[], None], seconds: float) -> Iterator[None]:
    """Call a function every `seconds` in a thread while the block runs, and once more at the end."""
    stop = threading.Event()

    def try_call() -> None:
        try:
            call()
        except Exception:  # a failure to show progress must not stop the work
            logger.exception("progress could not be shown")

    def poll() -> None:
        while not stop.wait(seconds):
            try_call()

    thread = threading.Thread(target=poll, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=60)
        if thread.is_alive():
            logger.warning("the progress thread does not end; the last progress is not shown")
        else:
            try_call()
