"""The self-check's rows through the pool: some rows of the data, or of scored rows, in; AUROCs of all estimators out."""

import heapq
import math
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute

from ual_ray import columns as col
from ual_ray.config import Config
from ual_ray.config.files import write_record
from ual_ray.data.canonical import usable_rows
from ual_ray.data.peek import DataPeek
from ual_ray.elicit.replies import Known, no_replies
from ual_ray.elicit.scoring import ScoreRows
from ual_ray.elicit.self_check import CANDIDATES_PER_ROW, Row, make_self_check, place
from ual_ray.engines import EngineSpec
from ual_ray.engines.pool import PoolJob, map_file
from ual_ray.engines.row_store import RowStore
from ual_ray.parquet import RowFiles, write_rows
from ual_ray.run.progress import Meter

STORE_FOLDER = "self_check"
CHECKED_FILE = "self_check.parquet"
# Shards that candidates are read from, spread evenly over the data.
MOST_SHARDS = 16


def self_check(
    config: Config,
    candidates: list[Row],
    folder: Path,
    store_folder: Path,
    meter: Meter,
    asked: str = "",
    known: Known = no_replies,
) -> dict[str, Any]:
    """Score elicit.self_check of the candidates, a fifth of them with another row's response; return what was found.

    Writes self_check.json into `folder`. Answers are kept in a store of their own below `store_folder`; asked, known: as in
    `stage.elicit`. Raises UserError for too few rows, and where elicit.uncertainty=auto finds no estimator.
    """
    settings = config.elicit
    check = make_self_check(candidates, settings.self_check, config.seed)
    write_rows(check.rows, col.ROWS, folder / CHECKED_FILE)
    store = RowStore(store_folder / STORE_FOLDER, col.measured_schema(settings.estimators))
    store.retry_failed()
    spec = EngineSpec(config.engine, settings.model, settings.adapter, config.trust_remote_code)
    job = PoolJob(spec, ScoreRows(settings, config.engine.overlong, config.seed, asked, known), store)
    result = check.result(pa.concat_tables(map_file(folder / CHECKED_FILE, job, meter)), settings)
    write_record(folder / col.SELF_CHECK_FILE, result)
    return result


def candidates_in_data(config: Config, seen: DataPeek) -> list[Row]:
    """Read rows of the scored splits from the starts of some shards, before the workers read all."""
    pieces = seen.pieces[:: math.ceil(len(seen.pieces) / MOST_SHARDS)]
    each = math.ceil(CANDIDATES_PER_ROW * config.elicit.self_check / len(pieces))
    found: list[Row] = []
    for piece in pieces:
        rows = usable_rows(config.data, [piece], seen.format_name)
        found += islice((row for row in rows if row[col.SPLIT] in config.elicit.splits), each)
    return found


def candidates_in_scores(config: Config, scored: Path) -> list[Row]:
    """Read rows of a folder of scored rows, chosen over all of them."""
    rows = RowFiles(scored)
    ids = rows.to_table(columns=[col.ID])[col.ID].to_pylist()
    chosen = heapq.nsmallest(CANDIDATES_PER_ROW * config.elicit.self_check, ids, partial(place, seed=config.seed))
    return rows.to_table(
        columns=col.ROWS.names, filter=pa.compute.field(col.ID).isin(pa.array(chosen, pa.string()))
    ).to_pylist()
