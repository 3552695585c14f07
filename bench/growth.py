"""Does elicitation keep its pace as the data grows? The whole of `ual elicit` with an engine that costs nothing.

    python bench/growth.py [--sizes 1000,10000,100000,1000000]

Every row is read from Parquet, checked, hashed, claimed, rendered with the demo model's chat template, tokenised and
measured against engine.max_model_len; only the model's own work is left out. The driver's memory is its resident set.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet
from common import report

WORDS = "the model reads each row once and says how sure it is of what the answer claims about tides and bread".split()  # noqa: SIM905
ROWS_PER_GROUP = 50_000


def write_data(path: Path, rows: int) -> None:
    """Write alpaca rows of about 120 tokens, all different."""
    schema = pa.schema([("instruction", pa.string()), ("output", pa.string())])
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        for start in range(0, rows, ROWS_PER_GROUP):
            numbers = range(start, min(start + ROWS_PER_GROUP, rows))
            instructions = [f"Explain point {n} of the list: {' '.join(WORDS[n % 7 :])}." for n in numbers]
            outputs = [f"Point {n} is this: {' '.join(WORDS[n % 5 :] + WORDS[: n % 11] + WORDS)}." for n in numbers]
            writer.write_table(pa.table({"instruction": instructions, "output": outputs}, schema=schema))


def run(data: Path, out: Path, actors: int) -> tuple[float, float, float]:
    """Run the command; return its seconds, the seconds of scoring, and the driver's largest resident set in MB."""
    settings = [
        *(
            "engine.kind=fake",
            "engine.arguments.render=true",
            f"engine.max_actors={actors}",
            "elicit.estimators=[verbalized_error]",
        ),
        *("elicit.retest_share=0", "data.test_share=0", "data.validation_share=0", "engine.batch_size=256"),
    ]
    command = [sys.executable, "-m", "ual_ray", "elicit", str(data), *settings, "--out", str(out)]
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    driver, peak = psutil.Process(process.pid), 0
    while process.poll() is None:
        try:
            peak = max(peak, driver.memory_info().rss)
        except psutil.NoSuchProcess:
            break
        time.sleep(0.2)
    if process.wait() != 0:
        raise SystemExit(f"{' '.join(command)} failed; see {out}/ual.log")
    seconds = time.monotonic() - started
    (done,) = out.glob("*/done.json")
    return seconds, json.loads(done.read_text())["figures"]["scoring_seconds"], peak / 2**20


def main() -> None:
    """Measure every size, and report the pace and the memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default="1000,10000,100000,1000000")
    parser.add_argument("--actors", type=int, default=2)
    options = parser.parse_args()
    sizes = [int(size) for size in options.sizes.split(",")]
    if len(sizes) < 2:
        parser.error("growth takes two sizes at least")
    rows = []
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            data = Path(folder) / "rows.parquet"
            write_data(data, size)
            seconds, scoring, memory = run(data, Path(folder) / "out", options.actors)
        rows.append(
            {
                "rows": size,
                "whole command (s)": seconds,
                "reading and scoring (s)": scoring,
                "rows/s": size / scoring,
                "driver (MB)": memory,
            }
        )
        print(rows[-1], flush=True)
    before, last = rows[-2:]
    ratios = {
        f"rows/s at {last['rows']:,} over {before['rows']:,}": (last["rows/s"] / before["rows/s"], ">= 0.8"),
        f"rows/s at {last['rows']:,} over 3,000": (last["rows/s"] / 3000, ">= 1"),
        "driver memory, most over least, in MB": (
            max(r["driver (MB)"] for r in rows) - min(r["driver (MB)"] for r in rows),
            "<= 100",
        ),
    }
    report("growth", rows, ratios, actors=options.actors)


if __name__ == "__main__":
    main()
