"""What runs leave for a report: evaluations, calibrations and finished stages, with made-up results."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from rich.console import Console

from ual_ray import columns as col
from ual_ray.stats.comparison import described
from ual_ray.stats.metrics import measure

N = 60


def evaluated(folder: Path, name: str, shift: float, luck: int, model: str | None = None) -> Path:
    """Write what an evaluation leaves."""
    shared, own = np.random.default_rng(0), np.random.default_rng(luck)
    tokens, hard = shared.integers(5, 30, N), shared.gamma(4, 0.5, N)
    nll = tokens * (hard + own.normal(shift, 0.05, N))
    rows = [
        {
            "id": f"{place:03}",
            "benchmark": "held_out",
            "source": "s",
            "nll_sum": nll[place],
            "target_tokens": int(tokens[place]),
            "model_digest": model,
        }
        for place in range(N)
    ]
    table = pa.Table.from_pylist(rows, schema=col.RESULTS)
    (folder / "results").mkdir(parents=True)
    pa.parquet.write_table(table, folder / "results" / "results.parquet")
    (folder / "figures.json").write_text(json.dumps({"name": name, "figures": [f.as_dict() for f in measure(table)]}))
    (folder / "started.json").write_text(json.dumps({"digest": "0", "inputs": {}}))
    (folder / "done.json").write_text(json.dumps({"figures": {}, "seconds": 1.0}))
    return folder


def calibrated(folder: Path, shift: float, luck: int) -> Path:
    """Write what a calibration leaves that comparisons read."""
    hard, noise = np.random.default_rng(0).gamma(4, 0.5, 3 * N), np.random.default_rng(luck).normal(shift, 0.05, 3 * N)
    rows = [{"id": f"{place // 3:03}", "adjusted_nll": hard[place] + noise[place]} for place in range(3 * N)]
    folder.mkdir(parents=True)
    pa.parquet.write_table(pa.Table.from_pylist(rows, schema=col.TOKEN_STATISTICS), folder / "tokens.parquet")
    (folder / "calibration.json").write_text(json.dumps({"token": {"raw": None, "scaled": None}}))
    (folder / "started.json").write_text(json.dumps({"digest": "0", "inputs": {}}))
    (folder / "done.json").write_text(json.dumps({"figures": {}, "seconds": 1.0}))
    return folder


def finished(folder: Path, metrics: dict[str, Any]) -> Path:
    """Write what every stage leaves."""
    folder.mkdir(parents=True)
    (folder / "started.json").write_text(json.dumps({"digest": "0", "inputs": {}}))
    (folder / "done.json").write_text(json.dumps({"figures": metrics, "seconds": 1.0}))
    return folder


MAPS = {"sft": "none", "ual": "rank"}


def run_of(root: Path, seed: int = 0, better: float = 0.1) -> Path:
    evaluated(root / "base" / "evaluate" / "k", "base", 0.5, 1)
    evaluated(root / "arms" / "sft" / "evaluate" / "k", "sft", 0.0, 10 + seed)
    evaluated(root / "arms" / "ual" / "evaluate" / "k", "ual", -better, 20 + seed)
    calibrated(root / "base" / "calibrate" / "k", 0.5, 1)
    calibrated(root / "arms" / "sft" / "calibrate" / "k", 0.0, 10 + seed)
    calibrated(root / "arms" / "ual" / "calibrate" / "k", -better, 20 + seed)
    for arm, name in MAPS.items():
        finished(root / "arms" / arm / "smooth" / "k", {"map": name, "mean": 0.1})
    (root / "config.yaml").write_text(f"seed: {seed}\nevaluate: {{resamples: 300, confidence: 0.9}}\n")
    return root


def console() -> tuple[Console, io.StringIO]:
    sink = io.StringIO()
    return Console(file=sink, width=110), sink


def scenario_of(root: Path, planned: list[int], trained: list[int]) -> Path:
    """Write what an experiment leaves of a scenario."""
    evaluated(root / "base" / "evaluate" / "k", "base", 0.5, 1)
    calibrated(root / "base" / "calibrate" / "k", 0.5, 1)
    for seed in trained:
        shutil.rmtree(run_of(root / f"seed-{seed}", seed) / "base")
    (root / "config.yaml").write_text("evaluate: {resamples: 300, confidence: 0.9}\n")
    record = {"measures": ["held_out.nll_adjusted"], "confidence": 0.9, "seeds": planned}
    (root / "primary.json").write_text(json.dumps(described(record["measures"]) | record))
    return root
