"""Scored rows, labels of them, and their inspection."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from ual_ray import columns as col
from ual_ray.inspect.measure import inspect
from ual_ray.inspect.summary import Inspection

ESTIMATORS = ("verbalized_error", "nll")


def row(name: str, score: float | None = 0.5, **values: Any) -> dict[str, Any]:
    """Make a scored row; `score` is that of verbalized_error, which the uncertainty is a copy of."""
    defaults = {
        "id": name,
        "source": "a",
        "split": "train",
        "messages": [{"role": "user", "content": f"question {name}"}, {"role": "assistant", "content": f"answer {name}"}],
        "uncertainty_verbalized_error": score,
        "uncertainty": score,
        "response_length": 10,
        "truncated": False,
        "status": "quarantined" if score is None else "ok",
        "elicitor": "model",
        "prompt_hash": "hash",
        "prompt_tokens": 100,
        "generated_tokens": 10,
        "calls": 2,
    }
    return defaults | values


def folder_of(folder: Path, rows: Sequence[dict[str, Any]], files: int = 1) -> Path:
    scored = folder / "scored"
    scored.mkdir()
    table = pa.Table.from_pylist([*rows], schema=col.scored_schema(ESTIMATORS))
    for place in range(files):
        part = table.take(pa.array(range(place, len(table), files), pa.int64()))
        pa.parquet.write_table(part, scored / f"part-{place}.parquet", row_group_size=max(3, len(part) // 4))
    return scored


def inspected(folder: Path, rows: Sequence[dict[str, Any]], **options: Any) -> Inspection:
    found = inspect(folder_of(folder, rows), **options)
    json.dumps(asdict(found), allow_nan=False)
    return found


def labels_of(folder: Path, verdicts: dict[str, int]) -> Path:
    path = folder / "labels.csv"
    path.write_text("id,correct\n" + "".join(f"{name},{verdict}\n" for name, verdict in verdicts.items()))
    return path


def many(n: int = 200, **columns: Any) -> list[dict[str, Any]]:
    """Make rows that no figure warns about, except as the columns say."""
    random = np.random.default_rng(3)
    score = random.random(n)
    values = {
        "uncertainty_verbalized_error": score,
        "uncertainty_nll": 0.7 * score + 0.3 * random.random(n),
        "retest_verbalized_error": score + random.normal(0, 0.01, n),
        "response_length": random.integers(1, 1000, n),
        **columns,
    }
    values.setdefault("uncertainty", values["uncertainty_verbalized_error"])
    return [row(f"{k:04}", **{name: np.asarray(column)[k].item() for name, column in values.items()}) for k in range(n)]


SCORE = np.random.default_rng(3).random(200)
