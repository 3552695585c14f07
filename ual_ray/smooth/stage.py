"""Stage 2: scored rows in, rows with alpha out. No language model is called."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet

from ual_ray.config import SmoothConfig
from ual_ray.errors import UserError
from ual_ray.records import ALPHA, ID, SPLIT, TRAIN, UNCERTAINTY, read_table, rows_digest
from ual_ray.smooth.maps import assign_alpha, describe

SMOOTHED_FILE = "smoothed.parquet"
MAP_METADATA = b"ual_ray.map"
SCORED_DIGEST = "scored_digest"


def smooth(scored: Path, spec: SmoothConfig, seed: int, folder: Path) -> dict[str, Any]:
    """Write the training rows with their alpha; return the distribution and the counts of missing and excluded rows.

    Raises UserError when the scored rows lack the uncertainty column, or hold no training row.
    """
    table = read_table(scored)
    if UNCERTAINTY not in table.column_names:
        raise UserError(f"{scored} has no column '{UNCERTAINTY}'", value=table.column_names, legal="the output of `ual elicit`")
    table = table.filter(pa.compute.equal(table[SPLIT], TRAIN))
    if not len(table):
        raise UserError(f"{scored} holds no row of the split '{TRAIN}'", fix="elicit.splits must contain train")
    uncertainty = np.array(table[UNCERTAINTY].to_pylist(), dtype=np.float64)
    alpha = assign_alpha(uncertainty, spec, seed)
    kept = ~np.isnan(alpha)
    smoothed = table.append_column(ALPHA, pa.array(alpha)).filter(pa.array(kept))
    if not len(smoothed):
        raise UserError("every row was excluded for want of a score", fix="use missing: impute, or elicit again")
    folder.mkdir(parents=True, exist_ok=True)
    record = json.dumps({**spec.model_dump(), "seed": seed, SCORED_DIGEST: rows_digest(scored)}).encode()
    pyarrow.parquet.write_table(smoothed.replace_schema_metadata({MAP_METADATA: record}), folder / SMOOTHED_FILE)
    return {"map": spec.map, "missing": int(np.isnan(uncertainty).sum()), **describe(alpha)}


def recorded_map(smoothed: Path) -> dict[str, Any]:
    """Read the map that made a file of alphas, and the digest of the scores it read; empty for a file made elsewhere."""
    file = next(smoothed.rglob("*.parquet")) if smoothed.is_dir() else smoothed
    metadata = pyarrow.parquet.read_schema(file).metadata or {}
    return json.loads(metadata.get(MAP_METADATA, b"{}"))


def histogram(smoothed: Path, bins: int = 10) -> list[tuple[float, float, int]]:
    """Count rows per interval of alpha: (from, to, rows), for the terminal and for plots."""
    alpha = np.array(read_table(smoothed, [ID, ALPHA])[ALPHA].to_pylist())
    counts, edges = np.histogram(alpha, bins=bins if np.ptp(alpha) > 0 else 1)
    return [(float(low), float(high), int(count)) for low, high, count in zip(edges, edges[1:], counts, strict=False)]
