"""Private parts of Ray Data that this package relies on: its checkpoint files and its backpressure policies.

Checked with Ray 2.60. When tests/unit/engines/test_compat_ray_data.py fails after an upgrade, adapt this file alone.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pyarrow as pa
import ray
from pyarrow.fs import LocalFileSystem
from ray.data._internal.execution.backpressure_policy import (
    ENABLED_BACKPRESSURE_POLICIES,
    ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY,
    BackpressurePolicy,
)
from ray.data.checkpoint import CheckpointConfig
from ray.data.checkpoint.checkpoint_filter import (
    IdColumnCheckpointManager,
    _clean_pending_checkpoints_task,
    convert_and_sort_checkpointed_ids,
)
from ray.data.checkpoint.checkpoint_writer import PENDING_CHECKPOINT_SUFFIX
from ray.data.context import AutoscalingConfig

from ual_ray import columns as col
from ual_ray.parquet import RowFiles, send_again

PENDING_SUFFIX = f"{PENDING_CHECKPOINT_SUFFIX}.parquet"
WRITE_OPERATOR = "Write"
# Size of what moves between tasks, so that the first rows reach an engine while the data is still being read.
BYTES_PER_BLOCK = 4 * 2**20
_MAX_UNWRITTEN, _WHERE = "ual_ray.max_unwritten_blocks", "ual_ray.machine_of_the_ids"


def complete_files(data: Path, checkpoint: Path) -> list[Path]:
    """List the data files that Ray Data wrote to the end, ordered by name.

    It writes the ids of a block to `checkpoint`/PREFIX.pending.parquet, then the rows to `data`/PREFIX*.parquet, and then
    drops the `.pending`. After a crash a pending file is left; the next job deletes it and the data files of its prefix.
    """
    # Listed first: of what another run begins to write meanwhile, nothing is taken for complete.
    files = sorted(data.glob("*.parquet"))
    pending = tuple(file.name.removesuffix(PENDING_SUFFIX) for file in checkpoint.glob(f"*{PENDING_SUFFIX}"))
    return [file for file in files if not file.name.startswith(pending)]


class WriteFirst(BackpressurePolicy):
    """Start no block while too many results wait to be written: Ray Data by itself bounds only the memory they take."""

    def can_add_input(self, op: Any) -> bool:
        """Return whether an operator may start another block."""
        writes = [following for following in op.output_dependencies if following.name == WRITE_OPERATOR]
        if not writes:
            return True
        written = sum(following.metrics.num_task_inputs_processed for following in writes)
        unwritten = op.metrics.num_tasks_running + op.metrics.num_task_outputs_generated - written
        return unwritten < self._data_context.get_config(_MAX_UNWRITTEN)


class FinishedIds(IdColumnCheckpointManager):
    """Reads the finished ids off the rows, which have checksums, where these are: Ray Data's own files of ids have none."""

    def load_checkpoint(self, data_file_dir: str | None = None, data_file_filesystem: Any = None) -> tuple[Any, int]:
        """Return a reference to the sorted ids, and their bytes; None and 0 without any."""
        task = _finished_ids.options(**self._data_context.get_config(_WHERE))
        ids, size = task.remote(self.checkpoint_path_unwrapped, str(data_file_dir), self.id_column)
        found: int = ray.get(size)
        return (ids, found) if found else (None, 0)


@ray.remote(num_cpus=0, num_returns=2)
def _finished_ids(checkpoint: str, data: str, column: str) -> tuple[Any, int]:
    """Remove what a crash left half written, and read the ids of the rows."""
    local = LocalFileSystem()
    _clean_pending_checkpoints_task._function(checkpoint, local, data, local)
    files = complete_files(Path(data), Path(checkpoint))
    ids = RowFiles(files, fix=send_again).to_table([column]) if files else pa.table({column: pa.array([], pa.string())})
    return convert_and_sort_checkpointed_ids._function(ids, column)


@contextmanager
def checkpointing(checkpoint: Path, max_unwritten: int, where: Mapping[str, Any] = MappingProxyType({})) -> Iterator[None]:
    """Configure the data sets made in the block: skip and record finished ids, small blocks, `max_unwritten` blocks at most.

    where: options of the task that reads the finished ids, on a machine that has the files.
    """
    context = ray.data.DataContext.get_current()
    block_size, autoscaling = context.target_max_block_size, context.autoscaling_config
    context.target_max_block_size = BYTES_PER_BLOCK
    # Start all actors at once and keep them while blocks wait: loading a model costs more than an idle actor. When none waits,
    # Ray Data gives back those without work, whatever these thresholds are.
    context.autoscaling_config = AutoscalingConfig(
        actor_pool_util_upscaling_threshold=1.0, actor_pool_util_downscaling_threshold=-1.0
    )
    context.set_config(_MAX_UNWRITTEN, max_unwritten)
    context.set_config(_WHERE, dict(where))
    context.set_config(ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY, [*ENABLED_BACKPRESSURE_POLICIES, WriteFirst])
    context.checkpoint_config = CheckpointConfig(
        id_column=col.ID,
        checkpoint_path=str(checkpoint),
        delete_checkpoint_on_success=False,
        checkpoint_manager_cls=FinishedIds,
    )
    try:
        yield
    finally:
        context.checkpoint_config = None
        context.remove_config(_MAX_UNWRITTEN)
        context.remove_config(_WHERE)
        context.remove_config(ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY)
        context.target_max_block_size, context.autoscaling_config = block_size, autoscaling
