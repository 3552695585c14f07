"""Rows through a pool of language-model actors under Ray Data: rows in, rows in a RowStore out, block by block.

Elicitation, evaluation and judging share it. A task is a callable `(rows, engine) -> rows` that an actor applies to every
batch.
"""

import contextlib
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Condition, Lock
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.compute
import ray
from ray.data import ActorPoolStrategy

from ual_ray import columns as col
from ual_ray.config import EngineConfig
from ual_ray.engines import Engine, EngineDied, EngineSpec, make_engine, template_hash_of
from ual_ray.engines.compat_ray_data import checkpointing
from ual_ray.engines.monitor import Counts, EngineMetrics, Limits, Monitor
from ual_ray.engines.requests import Request, Result
from ual_ray.engines.row_store import RowStore, Sink
from ual_ray.errors import UserError
from ual_ray.parquet import checked, read_table
from ual_ray.run.machines import TASKS, here, on_this_node, output_folder, read_files
from ual_ray.run.progress import Meter, polled

Row = dict[str, Any]
Task = Callable[[Sequence[Row], Engine], list[Row]]
# Enough blocks that all actors end at about the same time, however small the data set ...
BLOCKS_PER_ACTOR = 4
SMALLEST_BLOCK = 4
# ... and not so many that writing and checkpointing them costs more than the rows.
MAX_BLOCKS = 1000
LARGEST_BLOCK = 4096
# In addition to the blocks that an engine works on, one that is being written: a crash loses no more blocks per actor.
BLOCKS_BEING_WRITTEN = 1
# A batch on which the engine died or hung this often is sent row by row, and each row as often as this.
MAX_DEATHS = 2
NOT_OK = pa.compute.field(col.STATUS) != col.STATUS_OK
logger = logging.getLogger(__name__)


class SharedLock:
    """A lock that many threads hold together, or one alone; who waits to be alone goes before those who come later."""

    def __init__(self) -> None:
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


class LateEngine:
    """Loads the engine of `spec` when it is first asked; `loading()` surrounds this."""

    def __init__(self, spec: EngineSpec, loading: Callable[[], AbstractContextManager[None]]) -> None:
        """Remember how to load the engine; read its template hash, without loading it where its class can tell."""
        self._spec, self._loading = spec, loading
        self._loaded: Engine | None = None
        self._lock = Lock()
        self.template_hash = template_hash_of(spec) or self._engine.template_hash

    @property
    def _engine(self) -> Engine:
        if self._loaded is None:
            with self._loading(), self._lock:  # threads that wait for another one's loading are loading too
                self._loaded = self._loaded or make_engine(self._spec)
        return self._loaded

    def run(self, requests: Sequence[Request]) -> list[Result]:
        """Load the engine if it is not, and answer all requests."""
        return self._engine.run(requests)


@dataclass(frozen=True)
class PoolJob:
    """What the actors do: the engine, the task, and where results go.

    Rows that fail with an engine error are not checkpointed: they are sent again when the store forgets them. late: an actor
    loads its model when the task first asks the engine, which it may never do.
    """

    spec: EngineSpec
    task: Task
    store: RowStore
    late: bool = False


class EngineActor:
    """Holds one engine and applies the task to every batch."""

    def __init__(self, job: PoolJob, monitor: Any) -> None:
        """Load the model, once per actor, unless the job is to load it late."""
        ray.get(monitor.started.remote(ray.get_runtime_context().current_actor))
        self._job = job
        self._monitor = monitor
        self._metrics = EngineMetrics(type(job.task).__name__)
        self._batches = SharedLock()
        self._in_task = Lock()
        output, given = output_folder(), job.spec
        adapter = given.adapter and output.fetched_model(given.adapter)
        spec = replace(given, model=output.fetched_model(given.model), adapter=adapter)
        engine = LateEngine(spec, self._loading) if job.late else make_engine(spec)
        self._engine = OverlappingEngine(engine, self._in_task)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Apply the task and return the rows to checkpoint, in the store's schema."""
        if ray.get(self._monitor.stopped.remote()):
            return self._table([])  # nothing more is sent, and finished rows are still written
        with self._metrics.batch():
            rows = self._run(batch.to_pylist())
        self._metrics.count(rows)
        # Not waited for, so that the next batch starts while the monitor counts this one.
        reasons = [row.get(col.ERROR) or "unknown" for row in rows if row[col.STATUS] != col.STATUS_OK]
        self._monitor.scored.remote(len(rows), reasons)
        if failed := [row for row in rows if _is_engine_error(row)]:
            ray.get(self._monitor.keep_failed.remote(self._job.store, self._table(failed)))
        return self._table([row for row in rows if not _is_engine_error(row)])

    def _run(self, rows: list[Row]) -> list[Row]:
        """Process a batch; to find a row that engines die on, it runs alone, and then row by row."""
        work = col.digest([row[col.ID] for row in rows])
        suspected = ray.get(self._monitor.attempts.remote(work)) > 0
        with self._batches.alone() if suspected else self._batches.together():
            if self._begin(work) >= MAX_DEATHS:
                results = [result for row in rows for result in self._run_one(row, work)]
            else:
                results = self._apply(rows)
        self._monitor.end.remote(work)
        return results

    def _run_one(self, row: Row, batch: str) -> list[Row]:
        if self._begin(row[col.ID], batch) >= MAX_DEATHS:
            error = f"engine: it died or hung on this row {MAX_DEATHS} times"
            results = [row | {col.STATUS: col.STATUS_QUARANTINED, col.ERROR: error}]
        else:
            results = self._apply([row])
        self._monitor.end.remote(row[col.ID])
        return results

    @contextlib.contextmanager
    def _loading(self) -> Iterator[None]:
        """Leave the time that loading takes out of the time for the batch."""
        actor = ray.get_runtime_context().current_actor
        paused = ray.get(self._monitor.pause.remote(actor))
        yield
        ray.get(self._monitor.resume.remote(paused, actor))

    def _begin(self, work: str, part_of: str | None = None) -> int:
        return ray.get(self._monitor.begin.remote(work, ray.get_runtime_context().current_actor, part_of))

    def _apply(self, rows: list[Row]) -> list[Row]:
        try:
            with self._in_task:
                return self._job.task(rows, self._engine)
        except EngineDied as error:
            with self._in_task:  # one death, also where two batches were in the engine
                logger.exception("the engine died; its actor exits, and Ray starts another")
                ray.get(self._monitor.died.remote(str(error)))
                logging.shutdown()
                end_children()
                os._exit(1)

    def _table(self, rows: Sequence[Row]) -> pa.Table:
        schema = self._job.store.schema
        return pa.Table.from_pylist([{name: row.get(name) for name in schema.names} for row in rows], schema)


def end_children() -> None:
    """End the processes that this one started: an engine's own and its tensor parallel workers, which hold GPU memory."""
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()


def map_file(file: Path, job: PoolJob, meter: Meter) -> Iterator[pa.Table]:
    """Send the rows of a Parquet file that the store lacks, and read the results of all; with none to send, no model is loaded.

    Raises UserError when finished rows were removed from the store.
    """
    ids = read_table(file, [col.ID])[col.ID]
    if len(job.store.missing(ids)):
        sent = job.store.missing(ids, job.store.finished_files())  # failed rows, too
        map_rows(lambda _: read_files(checked(file)), len(ids), job, meter, done=len(ids) - len(sent))
        job.store.check_complete(ids)
    return job.store.select(ids)


def pool_size(config: EngineConfig, rows: int) -> int:
    """Return the most actors that rows are spread over: few rows do not need all of engine.max_actors."""
    return max(config.min_actors, min(config.max_actors, math.ceil(rows / SMALLEST_BLOCK)))


def map_rows(
    read: Callable[[Any], ray.data.Dataset],
    expected: int | None,
    job: PoolJob,
    meter: Meter,
    limits: Limits = Limits(),  # noqa: B008
    failed: pa.compute.Expression = NOT_OK,
    done: int | None = None,
) -> None:
    """Send all rows of `read(monitor)` through the pool; rows that the store has finished are skipped.

    expected: number of rows, None = unknown. limits: shares of bad and failed rows above which the job stops. failed: which
    finished rows of the store count as failed. done: how many of these rows the store has; None = all that it has. Raises
    UserError when a limit is exceeded; finished rows are kept.
    """
    config, store = job.spec.config, job.store
    total = expected or MAX_BLOCKS * config.batch_size
    actors = pool_size(config, total)
    block = config.rows_per_block or block_size(total, actors, config.batch_size)
    before = store.count()
    done = before if done is None else done
    monitor, tasks = on_this_node(Monitor, limits, before, store.count(failed)), here()
    try:
        with checkpointing(store.checkpoint, (config.in_flight + BLOCKS_BEING_WRITTEN) * actors, tasks):
            results = (
                read(monitor)
                .repartition(target_num_rows_per_block=block)
                .map_batches(
                    EngineActor,
                    fn_constructor_kwargs={"job": job, "monitor": monitor},
                    batch_format="pyarrow",
                    batch_size=min(config.batch_size, block),
                    compute=ActorPoolStrategy(
                        min_size=config.min_actors,
                        max_size=actors,
                        initial_size=actors,
                        max_concurrent_calls_per_actor=config.in_flight,
                        enable_true_multi_threading=config.in_flight > 1,
                    ),
                    num_cpus=config.cpus_per_actor,
                    num_gpus=config.gpus_per_actor or None,
                )
            )
            with polled(lambda: _watch(monitor, config.hang_seconds * config.in_flight, meter, done), seconds=1.0):
                most = TASKS if tasks else None
                results.write_datasink(Sink(store), ray_remote_args=tasks, concurrency=most)
        stop, working = ray.get([monitor.stopped.remote(), monitor.seconds_since_work_began.remote()])
        meter.start_seconds = None if working is None else max(0.0, meter.seconds - working)
    finally:
        ray.kill(monitor)
    if stop:
        raise UserError(stop, fix="fix the cause (see the reasons), or raise the share; finished rows are kept")


def block_size(total: int, actors: int, batch_size: int) -> int:
    """Choose the rows per block: a crash loses at most a few blocks per actor, and every block has a fixed cost."""
    wanted = max(batch_size, math.ceil(total / MAX_BLOCKS))
    even = math.ceil(total / (actors * BLOCKS_PER_ACTOR))
    return max(SMALLEST_BLOCK, min(wanted, even, LARGEST_BLOCK))


def _watch(monitor: Any, hang_seconds: float, meter: Meter, finished_before: int) -> None:
    """Show the counts, and replace engines that hang."""
    try:
        ray.get(monitor.replace_hung.remote(hang_seconds), timeout=5)
        counts: Counts = ray.get(monitor.counts.remote(), timeout=5)
    except ray.exceptions.RayError as error:
        logger.warning("the monitor does not answer: %s", error)
        return
    notes = [f"{counts.failed} failed"] * bool(counts.failed) + [f"{counts.replaced} engines replaced"] * bool(counts.replaced)
    meter.update(finished_before + counts.rows, rate_done=counts.rows, note=f"({', '.join(notes)})" if notes else "")


def _is_engine_error(row: Row) -> bool:
    """Tell whether a row failed because of the engine, not of its content: sending it again may help."""
    return row[col.STATUS] != col.STATUS_OK and (row.get(col.ERROR) or "").startswith("engine:")
