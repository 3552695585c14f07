"""What an evaluation leaves in its folder: result rows and figures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute
import pyarrow.dataset
import pyarrow.parquet

from ual_ray import columns as col
from ual_ray.stats.metrics import Figure


def read_results(folder: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read the result rows (`columns.RESULTS`) that `evaluate` wrote, ordered by id."""
    files = pyarrow.dataset.dataset(str(folder / col.RESULTS_FOLDER), format="parquet")
    return files.to_table(columns=None if columns is None else [*columns]).sort_by(col.ID)


def read_figures(folder: Path) -> tuple[str, list[Figure]]:
    """Read what `evaluate` wrote: the model's name and its figures."""
    content = json.loads((folder / col.FIGURES_FILE).read_text())
    return content["name"], [Figure(**figure) for figure in content["figures"]]


def metrics_of(figures: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Spell figures as names and values for a run: `benchmark.metric.source`, its standard error and its n."""
    values: dict[str, float] = {}
    for figure in figures:
        key = f"{figure['benchmark']}.{figure['metric']}.{figure['source']}"
        values |= {key: figure["value"], f"{key}.standard_error": figure["standard_error"], f"{key}.n": figure["n"]}
    return values
