"""The elicitor's replies about single rows, from the store that the rows were scored into."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet

from ual_ray import columns as col
from ual_ray.errors import UserError
from ual_ray.formatting import number, shorten
from ual_ray.inspect.summary import Reply
from ual_ray.parquet import RowFiles
from ual_ray.run.stage_cache import DONE_FILE

logger = logging.getLogger(__name__)

SCHEMA = pa.schema(col.fields(col.ID, col.REPLIES))
MAX_REPLIES = 8
MAX_CHARACTERS = 300
# Of a long scale the likeliest are enough.
MAX_CHOICES = 10


def replies_of(scored: Path, ids: Sequence[str]) -> dict[str, list[Reply]]:
    """Read the replies about rows by id; without those of which none are kept."""
    wanted = pa.compute.field(col.ID).isin(pa.array(ids, pa.string()))
    found: dict[str, list[Reply]] = {}
    for file in _files(scored.resolve().parent):
        try:
            table = RowFiles([file], SCHEMA).to_table([col.ID, col.REPLIES], wanted)
        except UserError as error:  # perhaps another run writes to this store, and is not done with the file
            logger.warning("its replies are not shown: %s", str(error).splitlines()[0])
            continue
        found |= {row[col.ID]: [_reply(entry) for entry in row[col.REPLIES]] for row in table.to_pylist() if row[col.REPLIES]}
    return found


def _files(folder: Path) -> list[Path]:
    """List the files of the store that the scores in a folder were made from; none if it is not known or gone."""
    try:
        store = folder / json.loads((folder / DONE_FILE).read_text(encoding="utf-8"))["figures"][col.STORE]
    except (OSError, ValueError, TypeError, KeyError):
        return []
    return sorted([*store.glob("finished/*.parquet"), *store.glob("failed/*.parquet")])


def _reply(entry: Mapping[str, Any]) -> Reply:
    about = ", ".join(entry["asked_by"])
    if entry["log_probabilities"] is not None:
        return Reply(about, [_choices(entry)], 0)
    if entry["nll_sum"] is not None:
        return Reply(about, [f"{entry['nll_sum']:.4g} nats over {entry['target_tokens']} tokens"], 0)
    replies = zip(entry["texts"], entry["finish_reasons"], strict=True)
    shown = [f"{shorten(text, MAX_CHARACTERS)} [{finish or 'unknown end'}]" for text, finish in replies]
    return Reply(about, shown[:MAX_REPLIES], max(0, len(shown) - MAX_REPLIES))


def _choices(entry: Mapping[str, Any]) -> str:
    shares = sorted(zip(map(math.exp, entry["log_probabilities"]), entry["choices"], strict=True), key=lambda pair: -pair[0])
    return ", ".join(f"{choice}: {number(share, 3)}" for share, choice in shares[:MAX_CHOICES])
