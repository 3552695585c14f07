"""Canonical rows as a Ray Data source: shards of the data are read by workers, never in the driver."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute
import ray
from ray.data import Datasource, ReadTask
from ray.data.block import BlockMetadata

from ual_ray import columns as col
from ual_ray.data.canonical import ReadOptions, blocks_of
from ual_ray.data.reading import Piece


class TaskSource(Datasource):
    """Calls each function in a read task of its own, for the tables that it returns."""

    def __init__(self, reads: Sequence[Callable[[], Iterable[pa.Table]]], schema: pa.Schema | None = None) -> None:
        """Take the functions, which travel to workers, and the schema of the tables, None = unknown."""
        super().__init__()
        self._reads, self._schema = [*reads], schema

    def estimate_inmemory_data_size(self) -> int | None:
        """Return None: what is read is larger in memory than on disk by an unknown factor."""
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """Return one read task per function."""
        unknown = BlockMetadata(num_rows=None, size_bytes=None, exec_stats=None, input_files=None)
        return [ReadTask(read, unknown, schema=self._schema, per_task_row_limit=per_task_row_limit) for read in self._reads]


class RowSource(TaskSource):
    """Reads the rows of the named splits, with a task per shard; all splits are written below `plan.folder` while reading.

    `claims` and `monitor` are handles of a Deduplicator and a Monitor actor.
    """

    def __init__(self, pieces: Sequence[Piece], plan: ReadOptions, splits: Sequence[str], claims: Any, monitor: Any) -> None:
        """Store the inputs of the read tasks."""
        read = partial(_read, plan=plan, splits=tuple(splits), claims=claims, monitor=monitor)
        super().__init__([partial(read, piece, number) for number, piece in enumerate(pieces)], col.ROWS)


def _read(
    piece: Piece, number: int, *, plan: ReadOptions, splits: tuple[str, ...], claims: Any, monitor: Any
) -> Iterator[pa.Table]:
    def claim(ids: Sequence[str], positions: Sequence[int]) -> list[bool]:
        return ray.get(claims.claim.remote(ids, positions))

    if ray.get(monitor.stopped.remote()):
        return
    wanted = pa.array(splits)
    for block in blocks_of(piece, number, plan, claim):
        reasons = [row["reason"] for row in block.quarantined]
        if ray.get(monitor.read.remote(len(block.rows), reasons)):
            return  # `map_rows` raises the reason once the blocks already sent are written
        yield block.rows.filter(pa.compute.is_in(block.rows[col.SPLIT], wanted))
