"""Does the report keep its pace and its memory as the result rows grow? `ual report RUN --html` on made-up rows of 3 models.

    python bench/report_growth.py [--sizes 1000,10000,100000]

Sizes count the result rows of all models together. Every row has a prompt and a prediction of some hundred characters, as
real ones do, which the report must not read. Each size runs in a process of its own; its memory is the largest resident set.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from alone import peak_bytes
from common import report

from ual_ray import columns as col
from ual_ray.stats.metrics import measure

MODELS = ("base", "sft", "ual")
ROWS_PER_GROUP = 1_000
WORDS = "the model reads each question once and says what it takes the answer to be, and why, in so many words; ".split()  # noqa: SIM905


def rows_of(model: str, start: int, stop: int) -> pa.Table:
    """Make the results of one model on questions start to stop: even ones are held-out rows, odd ones GSM8K."""
    random, own = np.random.default_rng(start), np.random.default_rng([start, MODELS.index(model)])
    n = stop - start
    tokens, hard, luck = random.integers(10, 300, n), random.gamma(4, 0.5, n), random.random(n)
    nll = tokens * (hard + own.normal(0.02 * (2 - MODELS.index(model)), 0.1, n))
    rows: list[dict[str, Any]] = []
    for at in range(n):
        held = at % 2 == 0
        text = " ".join(WORDS[at % 7 :] * 4) + f" {start + at}"
        right = float(luck[at] < 0.3 + 0.02 * MODELS.index(model))
        scores = [] if held else [("exact_match_strict", right), ("exact_match_flexible", right)]
        rows.append(
            {
                "id": f"{start + at:016x}",
                "benchmark": "held_out" if held else "gsm8k",
                "source": "abc"[at % 3] if held else "gsm8k",
                "messages": [{"role": "user", "content": text}, {"role": "assistant", "content": text}],
                "prediction": None if held else text,
                "scores": scores,
                "nll_sum": float(nll[at]) if held else None,
                "target_tokens": int(tokens[at]) if held else None,
                "status": "ok",
            }
        )
    return pa.Table.from_pylist(rows, schema=col.RESULTS)


def write_run(root: Path, rows: int) -> None:
    """Write a run's folder with `rows` result rows in all."""
    per_model = rows // len(MODELS)
    for model in MODELS:
        folder = root / ("base" if model == "base" else f"arms/{model}") / "evaluate" / "key"
        (folder / "results").mkdir(parents=True)
        with pyarrow.parquet.ParquetWriter(folder / "results" / "results.parquet", col.RESULTS) as writer:
            for start in range(0, per_model, ROWS_PER_GROUP):
                writer.write_table(rows_of(model, start, min(start + ROWS_PER_GROUP, per_model)))
        table = pyarrow.parquet.read_table(
            folder / "results", columns=["benchmark", "source", "scores", "nll_sum", "target_tokens"]
        )
        content = {"name": model, "figures": [value.as_dict() for value in measure(table)]}
        (folder / "figures.json").write_text(json.dumps(content))
        (folder / "started.json").write_text(json.dumps({"digest": "key", "inputs": {}}))


def one(root: Path) -> None:
    """Report on a run in this process; print its seconds and memory as JSON."""
    from rich.console import Console

    from ual_ray.report.step import report_on

    before = peak_bytes() / 2**20
    started = time.monotonic()
    with (root / "printed.txt").open("w") as sink:
        findings = report_on([root], None, Console(file=sink, width=110), root / "page.html")
    seconds = time.monotonic() - started
    print(
        json.dumps(
            {
                "seconds": seconds,
                "before": before,
                "peak": peak_bytes() / 2**20,
                "comparisons": len(findings.comparisons.entries),
            }
        )
    )


def main() -> None:
    """Measure every size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default="1000,10000,100000")
    parser.add_argument("--one", type=Path, help="internal: report on this folder")
    arguments = parser.parse_args()
    if arguments.one:
        one(arguments.one)
        return
    measured = []
    for size in map(int, arguments.sizes.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            write_run(root, size)
            command = [sys.executable, __file__, "--one", str(root)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found = json.loads(done.stdout.splitlines()[-1])
            size_mb = sum(file.stat().st_size for file in root.rglob("*.parquet")) / 2**20
        measured.append(
            {
                "result rows": size,
                "rows on disk, MB": size_mb,
                "comparisons": found["comparisons"],
                "seconds": found["seconds"],
                "memory, MB": found["peak"],
                "of that imports, MB": found["before"],
            }
        )
    first, last = measured[0], measured[-1]
    ratios = {
        f"seconds at {last['result rows']:,} rows": (last["seconds"], "below 30"),
        f"growth of memory from {first['result rows']:,} rows, MB": (
            last["memory, MB"] - first["memory, MB"],
            "below 150: flat",
        ),
    }
    report("report_growth", measured, ratios, models=len(MODELS), resamples=2000)


if __name__ == "__main__":
    main()
