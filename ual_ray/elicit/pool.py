"""Rows through a pool of language-model actors under Ray Data: Parquet in, Parquet out, block by block.

Scoring and evaluation share it: a task is a callable `(rows, engine) -> rows` that an actor applies to every batch.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import ray
from ray.data import ActorPoolStrategy
from ray.data.checkpoint import CheckpointConfig

from ual_ray.config import EngineConfig
from ual_ray.elicit.engines import Engine, make_engine
from ual_ray.progress import Meter
from ual_ray.records import ID, PROMPT_TOKENS, STATUS, STATUS_OK

Row = dict[str, Any]
Task = Callable[[Sequence[Row], Engine], list[Row]]

# Enough blocks that the pool ends at about the same time, however small the data set.
BLOCKS_PER_ACTOR = 4
SMALLEST_BLOCK = 4

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pool:
    """How to build the actors: the engine's settings and the model."""

    engine: EngineConfig
    model: str
    trust_remote_code: bool = False


@dataclass(frozen=True)
class Counts:
    """What has gone through the pool: rows, rows without a result, prompt tokens."""

    rows: int = 0
    failed: int = 0
    prompt_tokens: int = 0


class Counter:
    """Adds up what the actors did, so that the driver can show it."""

    def __init__(self) -> None:
        """Start at nothing."""
        self._rows = self._failed = self._prompt_tokens = 0

    def add(self, rows: int, failed: int, prompt_tokens: int) -> None:
        """Add one batch."""
        self._rows += rows
        self._failed += failed
        self._prompt_tokens += prompt_tokens

    def counts(self) -> Counts:
        """Return the sums so far."""
        return Counts(self._rows, self._failed, self._prompt_tokens)


class EngineActor:
    """Holds one engine and applies the task to every batch it is given."""

    def __init__(self, pool: Pool, task: Task, schema: pa.Schema, counter: Any) -> None:
        """Load the model: once per actor."""
        self._engine = make_engine(pool.engine, pool.model, pool.trust_remote_code)
        self._task = task
        self._schema = schema
        self._counter = counter

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Apply the task; the columns that leave are those of the schema."""
        rows = self._task(batch.to_pylist(), self._engine)
        failed = sum(row[STATUS] != STATUS_OK for row in rows)
        self._counter.add.remote(len(rows), failed, sum(row.get(PROMPT_TOKENS) or 0 for row in rows))
        return pa.Table.from_pylist([{name: row.get(name) for name in self._schema.names} for row in rows], self._schema)


def map_rows(source: Path, target: Path, task: Task, schema: pa.Schema, pool: Pool, meter: Meter) -> None:
    """Send every row of `source` (a Parquet file) through the pool and write the results below `target`.

    Finished rows are remembered beside `target`: after a crash the same call sends only the rest.
    """
    total = pyarrow.parquet.read_metadata(source).num_rows
    actors = max(pool.engine.min_actors, min(pool.engine.max_actors, math.ceil(total / SMALLEST_BLOCK)))
    block = max(SMALLEST_BLOCK, min(pool.engine.rows_per_block, math.ceil(total / (actors * BLOCKS_PER_ACTOR))))
    counter = ray.remote(num_cpus=0)(Counter).remote()
    context = ray.data.DataContext.get_current()
    context.checkpoint_config = CheckpointConfig(
        id_column=ID,
        checkpoint_path=str(target.with_name(target.name + ".finished")),
        delete_checkpoint_on_success=False,
    )
    try:
        rows = ray.data.read_parquet(str(source)).repartition(target_num_rows_per_block=block)
        results = rows.map_batches(
            EngineActor,
            fn_constructor_kwargs={"pool": pool, "task": task, "schema": schema, "counter": counter},
            batch_format="pyarrow",
            batch_size=min(pool.engine.batch_size, block),
            compute=ActorPoolStrategy(min_size=pool.engine.min_actors, max_size=actors, initial_size=actors),
            num_cpus=pool.engine.cpus_per_actor,
            num_gpus=pool.engine.gpus_per_actor or None,
        )
        with _shown(counter, meter, _rows_in(target)):
            results.write_parquet(str(target))
    finally:
        context.checkpoint_config = None


def _rows_in(folder: Path) -> int:
    return sum(pyarrow.parquet.read_metadata(file).num_rows for file in folder.glob("*.parquet"))


class _shown:  # noqa: N801
    """Poll the counter while the block runs and move the meter."""

    def __init__(self, counter: Any, meter: Meter, done_before: int) -> None:
        self._counter, self._meter, self._done_before = counter, meter, done_before
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll, name="progress", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=10)

    def _poll(self) -> None:
        while not self._stop.wait(1.0):
            try:
                counts: Counts = ray.get(self._counter.counts.remote(), timeout=5)
            except ray.exceptions.RayError as error:
                logger.warning("progress could not be read: %s", error)
                continue
            note = f"({counts.failed} failed)" if counts.failed else ""
            self._meter.update(self._done_before + counts.rows, rate_done=counts.rows, note=note)
