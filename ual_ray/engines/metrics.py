"""Metrics of the engine actors, exported by Ray to Prometheus and its dashboard while a job runs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import Any

from ray.util.metrics import Counter, Gauge, Histogram

from ual_ray import columns as col

SECONDS = [0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0]
COUNTED = (col.CALLS, col.PROMPT_TOKENS, col.GENERATED_TOKENS)


class EngineMetrics:
    """Rows, failed rows, requests, tokens, seconds per batch and batches at work, by task (ScoreRows, AnswerRows, ...)."""

    def __init__(self, task: str) -> None:
        """Make the metrics of one actor."""

        def counter(name: str, description: str) -> Counter:
            made = Counter(f"ual_ray_{name}", description, tag_keys=("task",))
            made.set_default_tags({"task": task})
            return made

        self._rows = counter("rows", "Rows processed.")
        self._failed = counter("failed_rows", "Rows without a result, of those processed.")
        self._counted = {name: counter(name, f"Sum of {name.replace('_', ' ')} of the rows.") for name in COUNTED}
        self._seconds = Histogram("ual_ray_batch_seconds", "Seconds per batch.", boundaries=SECONDS, tag_keys=("task",))
        self._at_work = Gauge("ual_ray_batches", "Batches that the actor works on.", tag_keys=("task",))
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
    def _add(metric: Counter, number: int) -> None:
        if number:  # Ray refuses 0
            metric.inc(number)

    def _changed(self, by: int) -> None:
        with self._lock:
            self._batches += by
            self._at_work.set(self._batches)
