"""Stage 1: canonical rows in, scored rows out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet

from ual_ray.config import Config
from ual_ray.elicit.pool import Pool, map_rows
from ual_ray.elicit.scoring import ScoreRows
from ual_ray.errors import UserError
from ual_ray.progress import Meter
from ual_ray.records import (
    ERROR,
    GENERATED_TOKENS,
    ID,
    PROMPT_TOKENS,
    SPLIT,
    STATUS,
    STATUS_QUARANTINED,
    UNCERTAINTY,
    read_table,
    scored_schema,
    uncertainty_column,
)

SCORED = "scored"
TO_SCORE_FILE = "to_score.parquet"


def select(rows: Path, splits: tuple[str, ...], folder: Path) -> int:
    """Write the rows of the named splits to the stage's folder; return how many there are."""
    table = read_table(rows)
    chosen = table.filter(pa.compute.is_in(table[SPLIT], pa.array(splits)))
    if not len(chosen):
        raise UserError(f"{rows} has no row of the splits {list(splits)}", fix="change elicit.splits")
    folder.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(chosen, folder / TO_SCORE_FILE)
    return len(chosen)


def elicit(config: Config, folder: Path, meter: Meter) -> dict[str, Any]:
    """Score the rows that `select` wrote; return counts and means. Raises UserError when too many have no score."""
    settings = config.elicit
    task = ScoreRows(settings.estimators, settings.uncertainty, settings.model)
    pool = Pool(config.engine, settings.model, config.trust_remote_code)
    map_rows(folder / TO_SCORE_FILE, folder / SCORED, task, scored_schema(settings.estimators), pool, meter)
    figures = describe(folder / SCORED, settings.estimators)
    if figures["quarantined"] > settings.max_quarantine_share * figures["rows"]:
        raise UserError(
            f"{figures['quarantined']} of {figures['rows']} rows got no score",
            value=f"{figures['reasons']}; what was scored is in {folder / SCORED}",
            legal=f"a share of at most elicit.max_quarantine_share = {settings.max_quarantine_share}",
            fix="see the column 'error'; raise engine.max_model_len for overlong rows",
        )
    return figures


def describe(scored: Path, estimators: tuple[str, ...]) -> dict[str, Any]:
    """Count rows, quarantined rows by reason, and tokens; average every estimator over the rows it scored."""
    columns = [ID, UNCERTAINTY, STATUS, ERROR, PROMPT_TOKENS, GENERATED_TOKENS, *map(uncertainty_column, estimators)]
    table = read_table(scored, columns)
    reasons: dict[str, int] = {}
    for status, error in zip(table[STATUS].to_pylist(), table[ERROR].to_pylist(), strict=True):
        if status == STATUS_QUARANTINED:
            kind = (error or "unknown").split(":")[0]
            reasons[kind] = reasons.get(kind, 0) + 1
    means = {name: pa.compute.mean(table[uncertainty_column(name)]).as_py() for name in estimators}
    return {
        "rows": len(table),
        "quarantined": sum(reasons.values()),
        "reasons": reasons,
        "prompt_tokens": pa.compute.sum(table[PROMPT_TOKENS]).as_py(),
        "generated_tokens": pa.compute.sum(table[GENERATED_TOKENS]).as_py(),
        "mean_uncertainty": means,
    }
