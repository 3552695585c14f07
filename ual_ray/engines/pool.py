"""Rows through a pool of language-model actors under Ray Data: rows in, Parquet out, block by block.

Scoring and evaluation share it: a task is a callable `(rows, engine) -> rows` that an actor applies to every batch.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute
import pyarrow.dataset
import pyarrow.parquet
import ray
from ray.data import ActorPoolStrategy
from ray.data._internal.execution.backpressure_policy import (
    ENABLED_BACKPRESSURE_POLICIES,
    ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY,
    BackpressurePolicy,
)
from ray.data.checkpoint import CheckpointConfig
from ray.data.context import AutoscalingConfig
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ual_ray import columns as col
from ual_ray.columns import digest
from ual_ray.engines import Engine, EngineDied, EngineSpec, make_engine
from ual_ray.engines.monitor import Counts, Limits, Monitor
from ual_ray.errors import UserError
from ual_ray.parquet import write_table
from ual_ray.run.progress import Meter, polled

Row = dict[str, Any]
Task = Callable[[Sequence[Row], Engine], list[Row]]

# Enough blocks that the pool ends at about the same time, however small the data set ...
BLOCKS_PER_ACTOR = 4
SMALLEST_BLOCK = 4
# ... and not so many that writing and remembering them costs more than the rows.
BLOCKS_AT_MOST = 1000
LARGEST_BLOCK = 4096
# What moves between tasks at a time, so that the first rows reach an engine while the data is still being read.
BYTES_PER_BLOCK = 4 * 2**20
# What an engine is at, and what it did before that and is being written: a crash loses at most as many blocks per actor.
UNWRITTEN_BLOCKS_PER_ACTOR = 2
MOST_UNWRITTEN = "ual_ray.most_unwritten_blocks"
# A batch that an engine died or hung on so often is tried row by row, and then each row as often as this.
MOST_DEATHS = 2

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """What the actors do: with which engine, which task, what they write and where.

    `target` is a folder of Parquet files of `schema`; finished rows are remembered beside it and never sent again.
    Rows that an engine failed on go to `failed` instead, where that is given: they are sent again next time.
    """

    spec: EngineSpec
    task: Task
    schema: pa.Schema
    target: Path
    failed: Path | None = None

    @property
    def finished(self) -> Path:
        """Where Ray Data remembers the ids of finished rows."""
        return self.target.with_name(self.target.name + ".finished")


class EngineActor:
    """Holds one engine and applies the task to every batch it is given."""

    def __init__(self, job: Job, monitor: Any) -> None:
        """Load the model: once per actor."""
        ray.get(monitor.started.remote(ray.get_runtime_context().current_actor))
        self._engine = make_engine(job.spec)
        self._job = job
        self._monitor = monitor

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Apply the task; the columns that leave are those of the schema."""
        if ray.get(self._monitor.stopped.remote()):
            return self._table([])  # nothing more is sent, and what was done is still written
        rows = self._run(batch.to_pylist())
        # Not waited for: the next batch has begun before the monitor has counted this one.
        self._monitor.scored.remote(*_tally(rows))
        if self._job.failed is None:
            return self._table(rows)
        failed = [row for row in rows if _may_pass(row)]
        if failed:
            write_table(self._table(failed), self._job.failed / f"{digest([row[col.ID] for row in failed])}.parquet")
        return self._table([row for row in rows if not _may_pass(row)])

    def _run(self, rows: list[Row]) -> list[Row]:
        """Do a batch; one that engines died on before is done row by row, so that the row at fault is found."""
        work = digest([row[col.ID] for row in rows])
        if self._begin(work) >= MOST_DEATHS:
            results = [result for row in rows for result in self._run_one(row)]
        else:
            results = self._apply(rows)
        self._monitor.end.remote(work)
        return results

    def _run_one(self, row: Row) -> list[Row]:
        if self._begin(row[col.ID]) >= MOST_DEATHS:
            results = [
                row
                | {col.STATUS: col.STATUS_QUARANTINED, col.ERROR: f"engine: it died or hung on this row {MOST_DEATHS} times"}
            ]
        else:
            results = self._apply([row])
        self._monitor.end.remote(row[col.ID])
        return results

    def _begin(self, work: str) -> int:
        return ray.get(self._monitor.begin.remote(work, ray.get_runtime_context().current_actor))

    def _apply(self, rows: list[Row]) -> list[Row]:
        try:
            return self._job.task(rows, self._engine)
        except EngineDied:
            logger.exception("the engine died; its actor ends, and Ray starts another")
            logging.shutdown()
            os._exit(1)

    def _table(self, rows: Sequence[Row]) -> pa.Table:
        names = self._job.schema.names
        return pa.Table.from_pylist([{name: row.get(name) for name in names} for row in rows], self._job.schema)


class WriteFirst(BackpressurePolicy):
    """Give the engines nothing new while results wait for being written: Ray Data alone bounds only the memory they take."""

    def can_add_input(self, op: Any) -> bool:
        """Tell whether an operator may begin another block."""
        writes = [following for following in op.output_dependencies if following.name == "Write"]
        if not writes:
            return True
        written = sum(following.metrics.num_task_inputs_processed for following in writes)
        unwritten = op.metrics.num_tasks_running + op.metrics.num_task_outputs_generated - written
        return unwritten < self._data_context.get_config(MOST_UNWRITTEN)


def start_monitor(limits: Limits, done_before: Path | None = None, failed: pa.compute.Expression | None = None) -> Any:
    """Start the actor that workers report to; it judges the rows of the folder `done_before` with those to come.

    `failed` tells which of those count as failed; by default those that are not STATUS_OK.
    """
    if failed is None:
        failed = pyarrow.dataset.field(col.STATUS) != col.STATUS_OK
    return on_this_node(Monitor, limits, *(_rows_and_failed(done_before, failed) if done_before is not None else ()))


def on_this_node(actor: type, *arguments: Any) -> Any:
    """Start an actor that lives and dies with the driver's machine, and takes no core."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(actor).remote(*arguments)


def map_rows(read: Callable[[], ray.data.Dataset], expected: int | None, job: Job, monitor: Any, meter: Meter) -> None:
    """Send all rows of `read()` through the pool and write the results; `expected` of them, as far as is known.

    After a crash the same call sends only the rest. Raises UserError when the monitor's limits are passed.
    """
    config = job.spec.config
    total = expected or BLOCKS_AT_MOST * config.batch_size
    actors = max(config.min_actors, min(config.max_actors, math.ceil(total / SMALLEST_BLOCK)))
    block = config.rows_per_block or block_size(total, actors, config.batch_size)
    with _remembering(job.finished, UNWRITTEN_BLOCKS_PER_ACTOR * actors):
        rows = read().repartition(target_num_rows_per_block=block)
        results = rows.map_batches(
            EngineActor,
            fn_constructor_kwargs={"job": job, "monitor": monitor},
            batch_format="pyarrow",
            batch_size=min(config.batch_size, block),
            compute=ActorPoolStrategy(min_size=config.min_actors, max_size=actors, initial_size=actors),
            num_cpus=config.cpus_per_actor,
            num_gpus=config.gpus_per_actor or None,
        )
        before = rows_remembered(job.finished)
        with polled(lambda: _watch(monitor, config.hang_seconds, meter, before), seconds=1.0):
            results.write_parquet(str(job.target))
    if stop := ray.get(monitor.stopped.remote()):
        raise UserError(stop, fix="see the reasons; mend the cause or raise the share; what was done is kept")


def block_size(total: int, actors: int, batch_size: int) -> int:
    """Choose the rows per block: what a crash loses at most, per actor, against what a block costs."""
    wanted = max(batch_size, math.ceil(total / BLOCKS_AT_MOST))
    even = math.ceil(total / (actors * BLOCKS_PER_ACTOR))
    return max(SMALLEST_BLOCK, min(wanted, even, LARGEST_BLOCK))


def rows_in(folder: Path) -> int:
    """Count the rows of a folder's Parquet files by their metadata."""
    return sum(pyarrow.parquet.read_metadata(file).num_rows for file in folder.glob("*.parquet"))


def rows_remembered(finished: Path) -> int:
    """Count the rows that Ray Data remembers as finished: what is being written has another name, and may not be whole."""
    files = [file for file in finished.glob("*.parquet") if not file.name.endswith(".pending.parquet")]
    return sum(pyarrow.parquet.read_metadata(file).num_rows for file in files)


def _rows_and_failed(folder: Path, failed: pa.compute.Expression) -> tuple[int, int]:
    # A file that was being written when a run was killed may be half a file; Ray Data removes it when it starts.
    notes = folder.with_name(folder.name + ".finished").glob("*.pending.parquet")
    torn = tuple(note.name.removesuffix(".pending.parquet") for note in notes)
    files = [str(file) for file in folder.glob("*.parquet") if not file.name.startswith(torn)]
    if not files:
        return 0, 0
    table = pyarrow.dataset.dataset(files, format="parquet")
    return table.count_rows(), table.count_rows(filter=failed)


@contextmanager
def _remembering(finished: Path, most_unwritten: int) -> Iterator[None]:
    """Have Ray Data remember finished rows, soon, and move small blocks, for the data sets made in the block."""
    context = ray.data.DataContext.get_current()
    before, scaling_before = context.target_max_block_size, context.autoscaling_config
    context.target_max_block_size = BYTES_PER_BLOCK
    # Below any utilization: a loaded model is worth more than a wait, and is given back when nothing is left to do.
    context.autoscaling_config = AutoscalingConfig(
        actor_pool_util_upscaling_threshold=1.0, actor_pool_util_downscaling_threshold=-1.0
    )
    context.set_config(MOST_UNWRITTEN, most_unwritten)
    context.set_config(ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY, [*ENABLED_BACKPRESSURE_POLICIES, WriteFirst])
    context.checkpoint_config = CheckpointConfig(
        id_column=col.ID, checkpoint_path=str(finished), delete_checkpoint_on_success=False
    )
    try:
        yield
    finally:
        context.checkpoint_config = None
        context.remove_config(MOST_UNWRITTEN)
        context.remove_config(ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY)
        context.target_max_block_size, context.autoscaling_config = before, scaling_before


def _watch(monitor: Any, hang_seconds: float, meter: Meter, done_before: int) -> None:
    """Show the counts, and have engines replaced that hang."""
    try:
        ray.get(monitor.replace_hung.remote(hang_seconds), timeout=5)
        counts: Counts = ray.get(monitor.counts.remote(), timeout=5)
    except ray.exceptions.RayError as error:
        logger.warning("the monitor does not answer: %s", error)
        return
    notes = [f"{counts.failed} failed"] * bool(counts.failed) + [f"{counts.replaced} engines replaced"] * bool(counts.replaced)
    meter.update(done_before + counts.rows, rate_done=counts.rows, note=f"({', '.join(notes)})" if notes else "")


def _tally(rows: Sequence[Row]) -> tuple[int, list[str], int, int, int]:
    failed = [row.get(col.ERROR) or "unknown" for row in rows if row[col.STATUS] != col.STATUS_OK]
    prompt, generated, calls = (
        sum(row.get(name) or 0 for row in rows) for name in (col.PROMPT_TOKENS, col.GENERATED_TOKENS, col.CALLS)
    )
    return len(rows), failed, prompt, generated, calls


def _may_pass(row: Row) -> bool:
    """Tell whether a row failed for the engine's sake, not for its own: it deserves another try."""
    return row[col.STATUS] != col.STATUS_OK and (row.get(col.ERROR) or "").startswith("engine:")
