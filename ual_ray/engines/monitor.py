"""One small actor that all workers of a job report to: counts for the screen, limits, and engines that died or hang."""

from __future__ import annotations

import logging
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import ray

logger = logging.getLogger(__name__)

# Before that many rows a share says little.
ROWS_BEFORE_JUDGING = 100


@dataclass(frozen=True)
class Limits:
    """Shares, in [0, 1], above which the job stops and leaves what it has."""

    bad: float = 1.0
    failed: float = 1.0


@dataclass
class Counts:
    """What has gone through the job so far."""

    read: int = 0
    bad: int = 0
    rows: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    calls: int = 0
    replaced: int = 0
    reasons: Counter[str] = field(default_factory=Counter)


@dataclass
class _Running:
    actor: Any
    since: float


class Monitor:
    """Counts, judges and watches. Methods that return a text ask the worker to stop with it, and `stopped` keeps it."""

    def __init__(self, limits: Limits = Limits(), rows_before: int = 0, failed_before: int = 0) -> None:  # noqa: B008
        """Start with nothing counted; what was done before an interruption counts where the share of failed rows is judged."""
        self._limits = limits
        self._rows_before = rows_before
        self._failed_before = failed_before
        self._counts = Counts()
        self._attempts: Counter[str] = Counter()
        self._running: dict[str, _Running] = {}
        self._stop: str | None = None

    def stopped(self) -> str | None:
        """Say why the job has to stop, if it has to."""
        return self._stop

    def read(self, good: int, reasons: list[str]) -> str | None:
        """Count rows that were read, and bad ones by reason."""
        self._counts.read += good + len(reasons)
        self._counts.bad += len(reasons)
        self._counts.reasons.update(reason.split(":")[0] for reason in reasons)
        key = f"data.max_bad_share = {self._limits.bad}"
        return self._judge("bad", self._counts.bad, self._counts.read, self._limits.bad, key)

    def started(self, actor: Any) -> None:
        """Note that an actor starts: one that died at its work and loads its model again does not hang."""
        self._forget(actor)

    def begin(self, work: str, actor: Any) -> int:
        """Note that an actor begins a piece of work; return how often it was begun before and not finished."""
        attempts = self._attempts[work]
        self._attempts[work] += 1
        # An actor does one thing at a time: what it did before it died, or the batch that a row is of, is not waited for.
        self._forget(actor)
        self._running[work] = _Running(actor, time.monotonic())
        return attempts

    def end(self, work: str) -> None:
        """Note that a piece of work is finished."""
        self._attempts.pop(work, None)
        self._running.pop(work, None)

    def scored(self, rows: int, reasons: list[str], prompt_tokens: int, generated_tokens: int, calls: int) -> str | None:
        """Count a finished batch; `reasons` has one entry per row without a result."""
        counts = self._counts
        counts.rows += rows
        counts.failed += len(reasons)
        counts.prompt_tokens += prompt_tokens
        counts.generated_tokens += generated_tokens
        counts.calls += calls
        counts.reasons.update(reason.split(":")[0] for reason in reasons)
        key = f"elicit.max_quarantine_share = {self._limits.failed}"
        failed, total = counts.failed + self._failed_before, counts.rows + self._rows_before
        return self._judge("without a result", failed, total, self._limits.failed, key)

    def counts(self) -> Counts:
        """Return the counts so far."""
        return self._counts

    def replace_hung(self, seconds: float) -> int:
        """Kill the actors that have been at one piece of work for longer; Ray starts others in their place."""
        now = time.monotonic()
        hung = {work: running for work, running in self._running.items() if now - running.since > seconds}
        for work, running in hung.items():
            logger.warning("an engine has not answered for %.0f s; its actor is replaced", now - running.since)
            del self._running[work]
            self._counts.replaced += 1
            ray.kill(running.actor, no_restart=False)
        return len(hung)

    def _forget(self, actor: Any) -> None:
        self._running = {key: running for key, running in self._running.items() if running.actor != actor}

    def _judge(self, what: str, count: int, total: int, limit: float, key: str) -> str | None:
        if self._stop is None and total >= ROWS_BEFORE_JUDGING and count / total > limit:
            reasons = ", ".join(f"{number} {reason}" for reason, number in self._counts.reasons.most_common(5))
            self._stop = f"{count} of the first {total} rows are {what} ({reasons}), more than {key} allows"
        return self._stop
