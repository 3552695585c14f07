"""What of an elicitation is answered already, for its forecast: counted over an even sample of the rows. Calls no model.

A row that the own store has is not sent again; of others, requests that the same elicitor has answered are not.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa

from ual_ray import columns as col
from ual_ray.config import Config
from ual_ray.data.peek import DataPeek
from ual_ray.data.usable import UsableRow, usable_rows
from ual_ray.elicit.estimators import make_estimators, requests_of
from ual_ray.elicit.known import find_known
from ual_ray.elicit.replies import asked_with, missing_of, request_key
from ual_ray.elicit.scoring import RETEST_ATTEMPT, position
from ual_ray.engines import EngineSpec, template_hash_of
from ual_ray.engines.requests import Request
from ual_ray.engines.row_store import RowStore

# Larger data are not read for a forecast: their first rows are looked at.
READ_AT_MOST = 100_000
SAMPLED_ROWS = 1000

# The requests about rows, and those of them that have to be sent.
Asked = tuple[list[Request], list[Request]]


@dataclass(frozen=True)
class KeptReplies:
    """Where replies are kept: the folder of a run's own rows, and whom the run asks (`known.asked_of`).

    retry: rows that failed with an engine error are sent again. copy: what the folder is in, if it lasts as long as this.
    """

    folder: Path
    asked: str
    retry: bool = False
    copy: TemporaryDirectory[str] | None = None


def ask_sample(config: Config, seen: DataPeek, kept: KeptReplies) -> Asked:
    """Return the requests of a sample of the rows, with their second measurements, and those that are not answered."""
    rows = _sample(config, seen)
    own = RowStore(kept.folder, col.measured_schema(config.elicit.estimators))
    files = [file for file in own.files() if not (kept.retry and file.parent == own.failed)]
    unsent = set(own.missing(pa.chunked_array([[row.identity for row in rows]], pa.string()), files).to_pylist())
    spec = EngineSpec(config.engine, config.elicit.model, config.elicit.adapter, config.trust_remote_code)
    whom, known = asked_with(kept.asked, template_hash_of(spec)), find_known(kept.folder, kept.asked)
    estimators = make_estimators(config.elicit, config.seed)
    everything: list[Request] = []
    missing: list[Request] = []
    for row in rows:
        for attempt in (0, RETEST_ATTEMPT) if position(row.identity) < config.elicit.retest_share else (0,):
            requests = requests_of(estimators, row.messages, attempt)
            everything += requests
            if row.identity in unsent:
                keys = {request: request_key(whom, request, retest=attempt > 0) for request in requests}
                found = known(set(keys.values()))
                missing += [part for request, key in keys.items() for part in missing_of(request, found.get(key, ()))]
    return everything, missing


def _sample(config: Config, seen: DataPeek) -> list[UsableRow]:
    """Take rows that will be scored, evenly where the data are not too large to be read."""
    stream = usable_rows(config.data, seen.pieces, seen.format_name)
    scored = (row for row in stream if row.split in config.elicit.splits)
    total = seen.estimated_rows
    step = max(1, total // SAMPLED_ROWS) if total is not None and total <= READ_AT_MOST else None
    return list(islice(scored, SAMPLED_ROWS) if step is None else islice(scored, 0, None, step))
