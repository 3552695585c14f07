"""Our pool of actors at the simplest task, for the benchmarks that compare it: answer every instruction greedily."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from ual_ray import columns as col
from ual_ray.config import DtypeName, EngineConfig, RuntimeConfig
from ual_ray.engines import Engine, EngineSpec
from ual_ray.engines.pool import PoolJob, map_file
from ual_ray.engines.requests import Completion, CompletionResult, turns
from ual_ray.engines.row_store import RowStore
from ual_ray.run.cluster import ray_cluster
from ual_ray.run.progress import meter
from ual_ray.run.terminal import make_console

TEXT = "text"
OUTPUT = pa.schema([(col.ID, pa.string()), (TEXT, pa.string()), (col.STATUS, pa.string()), (col.ERROR, pa.string())])
MAX_MODEL_LEN = 2048


class Answer:
    """Answer the instruction of every row: greedily, or with several samples, of which the first is kept."""

    def __init__(self, max_tokens: int, samples: int = 1) -> None:
        """Set the longest answer, and how many."""
        self._options: dict[str, Any] = {"n": samples, "temperature": 1.0 if samples > 1 else 0.0}
        self._max_tokens = max_tokens

    def __call__(self, rows: Sequence[dict[str, Any]], engine: Engine) -> list[dict[str, Any]]:
        """Send all rows at once."""
        results = engine.run([Completion(turns(row[col.MESSAGES][:-1]), self._max_tokens, **self._options) for row in rows])
        return [
            {col.ID: row[col.ID], TEXT: result.texts[0], col.STATUS: col.STATUS_OK}
            if isinstance(result, CompletionResult)
            else {col.ID: row[col.ID], col.STATUS: col.STATUS_QUARANTINED, col.ERROR: str(result)}
            for row, result in zip(rows, results, strict=True)
        ]


def run_pool(
    rows: Path,
    size: int,
    out: Path,
    max_tokens: int,
    dtype: DtypeName,
    actors: int,
    threads: int = 1,
    in_flight: int = 1,
    samples: int = 1,
) -> None:
    """Answer `size` rows with `actors` actors of `threads` threads and `in_flight` batches, Ray's start and end included."""
    engine = EngineConfig(
        dtype=dtype,
        max_model_len=MAX_MODEL_LEN,
        min_actors=actors,
        max_actors=actors,
        cpus_per_actor=threads,
        batches_in_flight=in_flight,
    )
    job = PoolJob(EngineSpec(engine, "demo"), Answer(max_tokens, samples), RowStore(out, OUTPUT))
    with ray_cluster(RuntimeConfig()), meter(make_console(), "pool", size, "rows") as shown:
        map_file(rows, job, shown)
