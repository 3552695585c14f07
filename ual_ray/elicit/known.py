"""Replies that the same elicitor gave before, under other settings: they are not asked for again.

The rows of a run are stored under a key of all its settings, each with the replies that its scores were made of. Another run
with the same elicitor finds these by request, in all stores next to its own. In Ray's object store the actors of a
machine share them.
"""

import logging
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import ray

from ual_ray import columns as col
from ual_ray.config.files import read_json, write_json
from ual_ray.elicit.replies import Kept, index_key, is_reply_to
from ual_ray.engines.row_store import RowStore
from ual_ray.parquet import RowFiles, naming_damage, open_file, send_again
from ual_ray.run.machines import here, output_folder

# Next to a store's rows: whom they asked.
ASKED_FILE = "asked.json"
# What versions before the replies were kept wrote instead.
OLD_FILE = "estimators.json"
# A request that fits has the same result in a longer context, and however requests that do not fit are treated.
OF_LONG_ROWS = ("max_model_len", "overlong")
# vLLM's arguments that change its memory and speed, and its numbers no more than the number of GPUs does.
OF_SPEED = frozenset(
    (
        *("gpu_memory_utilization", "kv_cache_memory_bytes", "num_gpu_blocks_override", "swap_space", "cpu_offload_gb"),
        *(
            "max_num_seqs",
            "max_num_batched_tokens",
            "max_num_partial_prefills",
            "enable_chunked_prefill",
            "enable_prefix_caching",
        ),
        *("enforce_eager", "async_scheduling", "scheduling_policy", "pipeline_parallel_size", "distributed_executor_backend"),
        *("disable_custom_all_reduce", "max_parallel_loading_workers", "disable_log_stats", "download_dir"),
    )
)
# Rows that follow each other were stored in few files.
FILES_IN_MEMORY = 4
ROW_BITS = 32

logger = logging.getLogger(__name__)
INDEX = {"request": pa.uint64(), "seed": pa.int64(), "n": pa.int32(), "place": pa.uint64()}


def asked_of(measuring: Mapping[str, Any]) -> str:
    """Hash whom a run asks: the elicitor and the engine settings that its answers depend on, not what is asked.

    measuring: what the scores of the run depend on, as in its store's key.
    """
    engine = {name: value for name, value in measuring["engine"].items() if name not in OF_LONG_ROWS}
    engine["arguments"] = {name: value for name, value in engine["arguments"].items() if name not in OF_SPEED}
    return col.digest([measuring["model"], measuring["adapter"], measuring["endpoint"], engine])


def note_asked(store: Path, asked: str) -> None:
    """Write next to a store's rows whom they ask."""
    store.mkdir(parents=True, exist_ok=True)
    write_json(store / ASKED_FILE, asked)


def stores_without_replies(store: Path) -> list[Path]:
    """List the other stores in the folder of `store` whose rows have scores and no replies."""
    old = sorted(file.parent for file in store.parent.glob(f"*/{OLD_FILE}"))
    return [folder for folder in old if folder != store and not (folder / ASKED_FILE).exists()]


@dataclass(frozen=True)
class KnownReplies:
    """Where replies are: `keys` of requests, sorted, and for each a place: a number of `files`, and a row in it.

    The first halves of keys: 16 bytes a request are in memory. The replies are read when they are asked for.
    """

    files: tuple[str, ...]
    keys: np.ndarray
    places: np.ndarray

    def __call__(self, keys: Collection[int]) -> dict[int, list[Kept]]:
        """Read the replies to requests by key, the newest first."""
        asked = {index_key(key): key for key in keys}
        wanted = np.array(sorted(asked), np.uint64)
        first, last = (np.searchsorted(self.keys, wanted, side) for side in ("left", "right"))
        rows: dict[int, set[int]] = defaultdict(set)
        for start, end in zip(first, last, strict=True):
            for place in self.places[start:end].tolist():
                rows[place >> ROW_BITS].add(place & (1 << ROW_BITS) - 1)
        found: dict[int, list[Kept]] = defaultdict(list)
        for file, places in sorted(rows.items()):
            replies = _replies_in(self.files[file])
            for entries in replies.take(sorted(places)).to_pylist() if replies is not None else ():
                for entry in entries:
                    if (key := asked.get(entry["request"])) is not None and is_reply_to(entry, key):
                        found[key].append(entry)
        return found


def find_known(store: Path, asked: str) -> KnownReplies:
    """Index the replies of the same elicitor in the stores next to `store` and inside of it and them, but for its own rows."""
    files: list[str] = []
    parts = [pa.table({name: pa.array([], kind) for name, kind in INDEX.items()})]
    for file in _files(store, asked):
        if (part := _index(file, len(files))) is not None:
            files.append(str(file))
            parts.append(part)
    # A run's store repeats the replies that it took over.
    index = pa.concat_tables(parts).group_by(["request", "seed", "n"]).aggregate([("place", "min")]).sort_by("request")
    return KnownReplies(tuple(files), index["request"].to_numpy(), index["place_min"].to_numpy())


def _files(store: Path, asked: str) -> list[Path]:
    """List the files to index, the newest first: what was asked again is asked for a reason."""
    return sorted(_other_files(store, asked), key=lambda file: -file.stat().st_mtime_ns)


def _other_files(store: Path, asked: str) -> Iterator[Path]:
    for folder in (file.parent for file in store.parent.glob(f"*/{ASKED_FILE}") if read_json(file) == asked):
        for place in (folder, *(child for child in folder.iterdir() if child.is_dir())):
            other = RowStore(place, pa.schema([]))
            yield from other.retried.glob("*.parquet")
            if place != store:  # its own rows are not sent at all, unless they are retried
                yield from other.files()


def _index(file: Path, number: int) -> pa.Table | None:
    """List the requests of a file; None for one without replies."""
    with naming_damage([file], send_again), open_file(file) as opened:
        if col.REPLIES not in opened.schema_arrow.names:
            return None
        leaves = [f"{col.REPLIES}.list.element.{name}" for name in ("request", "seed", "n")]
        column = opened.read(leaves)[col.REPLIES].combine_chunks()
    rows = pa.compute.list_parent_indices(column).to_numpy().astype(np.uint64)
    entries = pa.compute.list_flatten(column)
    places = pa.array((np.uint64(number) << np.uint64(ROW_BITS)) | rows)
    return pa.table({**{name: entries.field(name) for name in ("request", "seed", "n")}, "place": places}, pa.schema(INDEX))


@lru_cache(FILES_IN_MEMORY)
def _replies_in(file: str) -> pa.Array | None:
    try:
        return (
            RowFiles([output_folder().fetched(Path(file))], fix=send_again)
            .to_table([col.REPLIES])[col.REPLIES]
            .combine_chunks()
        )
    except FileNotFoundError:
        logger.warning("%s was removed; its replies are asked for again", file)
        return None


class Shared:
    """The replies of `find_known`: indexed in a task when they are first wanted, and fetched by each actor that wants them."""

    def __init__(self, store: Path, asked: str) -> None:
        self._wanted = (store, asked)

    def __call__(self, keys: Collection[int]) -> Mapping[int, Sequence[Kept]]:
        """Read the replies to requests by key."""
        return self._known(keys)

    def any(self) -> bool:
        """Return whether there are replies."""
        return len(self._known.keys) > 0

    @cached_property
    def _reference(self) -> Any:
        return ray.remote(find_known).options(**here()).remote(*self._wanted)

    @cached_property
    def _known(self) -> KnownReplies:
        return ray.get(self._reference)

    def __getstate__(self) -> dict[str, Any]:
        """Travel as the reference alone: an actor fetches the index from its machine's object store."""
        return {"_wanted": self._wanted, "_reference": self._reference}
