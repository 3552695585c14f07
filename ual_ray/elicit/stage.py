"""Stage 1: any data set in, canonical rows and scored rows out."""

from __future__ import annotations

import shutil
import time
from functools import partial, reduce
from operator import or_
from pathlib import Path
from typing import Any

import pyarrow.compute
import ray

from ual_ray import columns as col
from ual_ray.config import Config
from ual_ray.data.canonical import QUARANTINE_FOLDER, Plan
from ual_ray.data.dedup import Claims
from ual_ray.data.peek import Look
from ual_ray.data.ray_source import read_rows
from ual_ray.elicit.assemble import Finish
from ual_ray.elicit.scoring import ScoreRows, needed
from ual_ray.engines import EngineSpec
from ual_ray.engines.monitor import Limits
from ual_ray.engines.pool import Job, map_rows, on_this_node, start_monitor
from ual_ray.errors import UserError
from ual_ray.run.progress import Meter

MEASURED = "measured"
FAILED = "failed"


def elicit(config: Config, seen: Look, folder: Path, store: Path, meter: Meter) -> dict[str, Any]:
    """Score the rows of the configured splits; `folder` gets rows, quarantine and scored, `store` what was measured.

    Rows that `store` holds are not measured again. Returns counts and means. Raises UserError when too many rows are bad
    or without a score; what was done is kept.
    """
    settings = config.elicit
    for place in (folder / col.ROWS_FOLDER, folder / QUARANTINE_FOLDER, store / FAILED):
        shutil.rmtree(place, ignore_errors=True)  # all three are written anew, from the rows that are there now
        place.mkdir(parents=True)
    # What was measured for another uncertainty may lack other scores than it did then.
    lacking = reduce(or_, (pyarrow.compute.field(col.uncertainty_column(name)).is_null() for name in needed(settings)))
    monitor = start_monitor(Limits(config.data.max_bad_share, settings.max_quarantine_share), store / MEASURED, lacking)
    claims = on_this_node(Claims)
    plan = Plan(config.data, seen.format_name, folder)
    job = Job(
        EngineSpec(config.engine, settings.model, settings.adapter, config.trust_remote_code),
        ScoreRows(settings, config.engine.overlong, config.seed),
        col.measured_schema(settings.estimators),
        store / MEASURED,
        store / FAILED,
    )
    read = partial(read_rows, seen.pieces, plan, settings.splits, claims, monitor)
    started = time.monotonic()
    map_rows(read, expected_rows(config, seen), job, monitor, meter)
    scoring_seconds = time.monotonic() - started
    finish = Finish(folder, store / MEASURED, store / FAILED, config.data, settings)
    figures = ray.get(ray.remote(num_cpus=1)(Finish.run).remote(finish))
    ray.kill(monitor)
    ray.kill(claims)
    check(config, figures, folder)
    return figures | {"format": seen.format_name, "scoring_seconds": scoring_seconds}


def expected_rows(config: Config, seen: Look) -> int | None:
    """Say how many rows will be scored: by the look where it saw all of them, by the shares of the splits elsewhere."""
    total = seen.estimated_rows
    shares = config.data.split_shares()
    return None if total is None else max(1, round(total * sum(shares[split] for split in config.elicit.splits)))


def check(config: Config, figures: dict[str, Any], folder: Path) -> None:
    """Raise UserError when too many rows are bad or without a score, or a split that later stages need has none."""
    data, settings = config.data, config.elicit
    if figures["bad"] / max(1, figures["bad"] + figures["total_rows"]) > data.max_bad_share:
        raise UserError(
            f"{figures['bad']} of {figures['bad'] + figures['total_rows']} rows of {data.path} are bad",
            got=f"{figures['bad_reasons']}; the rows are in {folder / QUARANTINE_FOLDER}",
            expected=f"a share of at most data.max_bad_share = {data.max_bad_share}",
            fix="mend the rows, or raise data.max_bad_share to go on without them",
        )
    shares = data.split_shares()
    for split in col.SPLITS:
        if shares[split] > 0 and not figures["splits"].get(split):
            raise UserError(
                f"the {split} split is empty",
                got=f"{figures['total_rows']} rows in all",
                fix="give more rows, or a larger share",
            )
    if figures["lost"]:
        raise UserError(
            f"{figures['lost']} rows were scored once, and their scores are gone",
            got=f"files are missing from the store beside {folder}",
            fix="--force scores all rows again",
        )
    if figures["quarantined"] / max(1, figures["rows"]) > settings.max_quarantine_share:
        raise UserError(
            f"{figures['quarantined']} of {figures['rows']} rows got no score",
            got=f"{figures['reasons']}; what was scored is in {folder / col.SCORED_FOLDER}",
            expected=f"a share of at most elicit.max_quarantine_share = {settings.max_quarantine_share}",
            fix="see the column 'error'; raise engine.max_model_len, or set engine.overlong=truncate, for overlong rows",
        )
