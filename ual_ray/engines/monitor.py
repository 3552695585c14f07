"""One small actor that all workers of a job report to: it counts rows, enforces limits, and replaces engines that hang.

Metrics of the actors are exported by Ray to Prometheus and its dashboard while a job runs.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import ray
from ray.util import metrics

from ual_ray import columns as col

if TYPE_CHECKING:  # the actor starts without Ray Data, which a store of rows needs
    from ual_ray.engines.row_store import RowStore

SECONDS = [0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0]
COUNTED = (col.CALLS, col.PROMPT_TOKENS, col.GENERATED_TOKENS)
logger = logging.getLogger(__name__)
# Limits are not enforced on fewer rows: the share of a small sample is too uncertain.
MIN_ROWS = 100
# An engine that died this often before any row had a result is not killed by its rows: it cannot run the model. Below it, two
# deaths of a first batch and two of each of three rows of it still isolate these rows.
MOST_DEATHS_BEFORE_RESULTS = 8


class EngineMetrics:
    """Rows, failed rows, requests, tokens, seconds per batch and batches at work, by task (ScoreRows, AnswerRows, ...)."""

    def __init__(self, task: str) -> None:
        def counter(name: str, description: str) -> metrics.Counter:
            made = metrics.Counter(f"ual_ray_{name}", description, tag_keys=("task",))
            made.set_default_tags({"task": task})
            return made

        self._rows = counter("rows", "Rows processed.")
        self._failed = counter("failed_rows", "Rows without a result, of those processed.")
        self._counted = {name: counter(name, f"Sum of {name.replace('_', ' ')} of the rows.") for name in COUNTED}
        self._seconds = metrics.Histogram("ual_ray_batch_seconds", "Seconds per batch.", boundaries=SECONDS, tag_keys=("task",))
        self._at_work = metrics.Gauge("ual_ray_batches", "Batches that the actor works on.", tag_keys=("task",))
        for metric in (self._seconds, self._at_work):
            metric.set_default_tags({"task": task})
        self._batches, self._lock = 0, Lock()

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Time a batch."""
        self._changed(+1)
        started = time.monotonic()
        try:
            yield
        finally:
            self._changed(-1)
        self._seconds.observe(time.monotonic() - started)

    def count(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Count processed rows."""
        self._add(self._rows, len(rows))
        self._add(self._failed, sum(row[col.STATUS] != col.STATUS_OK for row in rows))
        for name, metric in self._counted.items():
            self._add(metric, sum(row.get(name) or 0 for row in rows))

    @staticmethod
    def _add(metric: metrics.Counter, number: int) -> None:
        if number:  # Ray refuses 0
            metric.inc(number)

    def _changed(self, by: int) -> None:
        with self._lock:
            self._batches += by
            self._at_work.set(self._batches)


@dataclass(frozen=True)
class Limits:
    """Shares of rows, in [0, 1], above which the job stops: bad rows of those read, failed rows of those sent."""

    bad: float = 1.0
    failed: float = 1.0


@dataclass
class Counts:
    """Rows of the job so far: read, bad, processed, failed; engines replaced; reasons of bad and failed rows."""

    read: int = 0
    bad: int = 0
    rows: int = 0
    failed: int = 0
    replaced: int = 0
    reasons: Counter[str] = field(default_factory=Counter)


class Monitor:
    """Methods that return a string ask the worker to stop for this reason; `stopped` returns the first of them."""

    def __init__(self, limits: Limits = Limits(), rows_before: int = 0, failed_before: int = 0) -> None:  # noqa: B008
        """Start counting at 0; the rows before, of an interrupted job, count only in the share of failed rows."""
        self._limits = limits
        self._rows_before = rows_before
        self._failed_before = failed_before
        self._counts = Counts()
        self._attempts: Counter[str] = Counter()
        # By batch or row: the actor that works on it, and since when.
        self._running: dict[str, tuple[Any, float]] = {}
        self._deaths = 0
        self._began: float | None = None
        self._stop: str | None = None
        # The first reason of each kind, whole: an engine's holds the server's words.
        self._examples: dict[str, str] = {}

    def stopped(self) -> str | None:
        """Return why the job has to stop; None = it does not."""
        return self._stop

    def read(self, good: int, reasons: list[str]) -> str | None:
        """Count rows that were read; `reasons` has one entry per bad row."""
        self._counts.read += good + len(reasons)
        self._counts.bad += len(reasons)
        self._counts.reasons.update(reason.split(":")[0] for reason in reasons)
        key = f"data.max_bad_share = {self._limits.bad}"
        return self._check("bad", self._counts.bad, self._counts.read, self._limits.bad, key)

    def scored(self, rows: int, reasons: list[str]) -> str | None:
        """Count the rows of a finished batch; `reasons` has one entry per failed row."""
        self._counts.rows += rows
        self._counts.failed += len(reasons)
        for reason in reasons:
            self._examples.setdefault(reason.split(":")[0], reason)
        self._counts.reasons.update(reason.split(":")[0] for reason in reasons)
        key = f"elicit.max_quarantine_share = {self._limits.failed}"
        failed, total = self._counts.failed + self._failed_before, self._counts.rows + self._rows_before
        return self._check("without a result", failed, total, self._limits.failed, key)

    def keep_failed(self, store: RowStore, rows: pa.Table) -> None:
        """Add failed rows to a store, whose folder the driver's machine has."""
        store.add_failed(rows)

    def _check(self, what: str, count: int, total: int, limit: float, key: str) -> str | None:
        if self._stop is None and total >= MIN_ROWS and count / total > limit:
            reasons = ", ".join(f"{number} {reason}" for reason, number in self._counts.reasons.most_common(5))
            self._stop = f"{count} of the first {total} rows are {what} ({reasons}), more than {key} allows"
            kinds = [kind for kind, _ in self._counts.reasons.most_common(2) if kind in self._examples]
            self._stop += "".join(f"; the first: {self._examples[kind]}" for kind in kinds)
        return self._stop

    def died(self, reason: str) -> str | None:
        """Count an engine that died on its work; `reason` has its own words."""
        self._deaths += 1
        results = self._counts.rows - self._counts.failed + self._rows_before - self._failed_before
        if self._stop is None and not results and self._deaths >= MOST_DEATHS_BEFORE_RESULTS:
            self._stop = f"the engine died {self._deaths} times before any row had a result; the last time: {reason}"
        return self._stop

    def counts(self) -> Counts:
        """Return the counts so far."""
        return self._counts

    def seconds_since_work_began(self) -> float | None:
        """Return the seconds since the first batch was begun; None = none was."""
        return None if self._began is None else time.monotonic() - self._began

    def started(self, actor: Any) -> None:
        """Note that an actor starts: one that died during its work and loads its model again does not hang."""
        self._running = {work: running for work, running in self._running.items() if running[0] != actor}

    def attempts(self, work: str) -> int:
        """Return how often a batch or row was begun and not finished."""
        return self._attempts[work]

    def begin(self, work: str, actor: Any, part_of: str | None = None) -> int:
        """Note that an actor begins a batch or row; return how often it was begun before and not finished.

        part_of: the batch that the row is of. Each row has the time of a batch.
        """
        attempts = self._attempts[work]
        self._attempts[work] += 1
        if part_of:
            self._running.pop(part_of, None)
        now = time.monotonic()
        self._began = now if self._began is None else self._began
        self._running[work] = (actor, now)
        return attempts

    def pause(self, actor: Any) -> list[str]:
        """Stop timing an actor's work while it loads its model, and blame the work for no death meanwhile; return this work."""
        paused = [work for work, running in self._running.items() if running[0] == actor]
        self._attempts.subtract(paused)
        self.started(actor)
        return paused

    def resume(self, works: list[str], actor: Any) -> None:
        """Time the work again that was paused."""
        for work in works:
            self.begin(work, actor)

    def end(self, work: str) -> None:
        """Note that a batch or row is finished."""
        self._attempts.pop(work, None)
        self._running.pop(work, None)

    def replace_hung(self, seconds: float) -> int:
        """Kill the actors that have worked on one batch or row for longer, and return their number; Ray restarts them."""
        now = time.monotonic()
        replaced = 0
        for work, (actor, since) in [*self._running.items()]:
            if now - since > seconds and work in self._running:  # its actor may have been replaced for another batch
                logger.warning("an engine has not answered for %.0f s; its actor is replaced", now - since)
                self.started(actor)
                replaced += 1
                ray.kill(actor, no_restart=False)
        self._counts.replaced += replaced
        return replaced
