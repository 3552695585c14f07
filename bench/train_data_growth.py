"""Does the data side of training keep its pace and its memory as the rows grow? No model is loaded.

    python bench/train_data_growth.py [--sizes 1000,10000,100000,1000000] [--max-length 1024]

Two processes per size, each measured by its own high-water mark: a driver that renders rows of about 160 tokens under Ray
Data with the demo model's tokenizer, and a rank that opens the token store, plans the run, packed and not, and reads and
collates micro-batches. A rank's memory is given beyond what importing its modules takes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet
from alone import peak_bytes

from ual_ray import columns as col
from ual_ray.columns import digest
from ual_ray.config import Config, RuntimeConfig, TrainConfig

WORDS = "the model reads each row once and says how sure it is of what the answer claims about tides and bread".split()  # noqa: SIM905
SCHEMA = pa.schema(
    [
        *((col.ID, pa.string()), (col.SPLIT, pa.string()), (col.MESSAGES, col.MESSAGES_TYPE)),
        *((col.UNCERTAINTY, pa.float64()), (col.ALPHA, pa.float64())),
    ]
)
ROWS_PER_GROUP = 50_000
MICRO_BATCHES = 200


def write_data(path: Path, rows: int) -> None:
    """Write smoothed rows of about 60 to 260 tokens, all different."""
    with pyarrow.parquet.ParquetWriter(path, SCHEMA) as writer:
        for start in range(0, rows, ROWS_PER_GROUP):
            numbers = range(start, min(start + ROWS_PER_GROUP, rows))
            made = [make_row(number) for number in numbers]
            writer.write_table(pa.Table.from_pylist(made, SCHEMA))


def make_row(number: int) -> dict[str, Any]:
    """Make up a row."""
    reply = f"Point {number} is this: {' '.join(WORDS[number % 5 :] + WORDS * (number % 9))}."
    messages = [
        {"role": "user", "content": f"Explain point {number} of the list: {' '.join(WORDS[number % 7 :])}."},
        {"role": "assistant", "content": reply},
    ]
    uncertainty = (number % 97) / 96
    return {
        col.ID: digest(number),
        col.SPLIT: col.TRAIN,
        col.MESSAGES: messages,
        col.UNCERTAINTY: uncertainty,
        col.ALPHA: 0.2 * uncertainty,
    }


def drive(folder: Path, max_length: int) -> dict[str, float]:
    """Render as the driver of a training run does; return seconds, rates, and the memory of driver and actors in MB."""
    from ual_ray.run.cluster import ray_cluster
    from ual_ray.train.tokenize import render

    with ray_cluster(RuntimeConfig()):
        actors = ActorMemory()
        started = time.monotonic()
        counts = render(Config(train=TrainConfig(max_length=max_length)), folder / "smoothed.parquet", None, folder)
        seconds = time.monotonic() - started
        actors.stop()
    rows = counts["train_rows"]
    return {
        "render (s)": seconds,
        "rows/s": rows / seconds,
        "driver (MB)": peak_bytes() / 2**20,
        "actor (MB)": actors.peak / 2**20,
    }


class ActorMemory:
    """Watches the resident sets of the actors that render."""

    def __init__(self) -> None:
        """Begin to watch."""
        self.peak = 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._stopped.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stopped.wait(0.5):
            for process in psutil.Process().children(recursive=True):
                try:
                    if "MapWorker" in " ".join(process.cmdline()):
                        self.peak = max(self.peak, process.memory_info().rss)
                except psutil.NoSuchProcess:
                    continue


def be_a_rank(tokens: Path, max_length: int) -> dict[str, float]:
    """Do the data side of one of two ranks; return seconds, micro-batches per second, and the memory beyond imports in MB."""
    from ual_ray.train.batches import StepPlan, collate
    from ual_ray.train.token_store import TokenStore

    collate([])
    imports = peak_bytes() / 2**20
    started = time.monotonic()
    store = TokenStore.open(tokens, col.TRAIN, 4)
    opened = time.monotonic() - started
    figures = {"open (s)": opened}
    for name, packing in (("plan", False), ("packed", True)):
        started = time.monotonic()
        config = TrainConfig(max_length=max_length, packing=packing)
        plan = StepPlan(store.lengths, store.target_tokens, config, seed=0, world_size=2)
        share = plan.padding_share
        figures |= {f"{name} (s)": time.monotonic() - started, f"{name} padding": round(share, 4)}
    batches = [batch for number in range(min(MICRO_BATCHES, len(plan))) for batch in plan[number].micro_batches[0]]
    started = time.monotonic()
    for batch in batches:
        collate([[store[row] for row in plan.sequences[sequence]] for sequence in batch], packed=True)
    figures["batches/s"] = len(batches) / (time.monotonic() - started)
    return figures | {"rank (MB)": peak_bytes() / 2**20 - imports, "tokens (MB)": folder_size(tokens)}


def folder_size(folder: Path) -> float:
    """Megabytes of a folder's files."""
    return sum(file.stat().st_size for file in folder.iterdir()) / 2**20


def measure(role: str, *arguments: object) -> dict[str, float]:
    """Play a role in a process of its own."""
    command = [sys.executable, __file__, "--role", role, *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    """Measure every size, and report pace and memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default="1000,10000,100000,1000000")
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--role", choices=["driver", "rank"])
    parser.add_argument("folder", nargs="?", type=Path)
    options = parser.parse_args()
    if options.role == "driver":
        print(json.dumps(drive(options.folder, options.max_length)))
    elif options.role == "rank":
        print(json.dumps(be_a_rank(options.folder / "tokens", options.max_length)))
    elif "," not in options.sizes:
        parser.error("growth takes two sizes at least")
    else:
        compare([int(size) for size in options.sizes.split(",")], options.max_length)


def compare(sizes: list[int], max_length: int) -> None:
    """Print and keep the figures of all sizes."""
    from common import report

    rows: list[dict[str, Any]] = []
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            write_data(Path(folder) / "smoothed.parquet", size)
            setting = (folder, "--max-length", max_length)
            rows.append({"rows": size, **measure("driver", *setting), **measure("rank", *setting)})
        print(rows[-1], flush=True)
    before, last = rows[-2:]
    drivers = np.array([row["driver (MB)"] for row in rows])
    ratios = {
        f"rows/s at {last['rows']:,} over {before['rows']:,}": (last["rows/s"] / before["rows/s"], ">= 0.8"),
        "driver memory, most over least, in MB": (float(np.ptp(drivers)), "<= 100"),
        f"a rank's memory over its tokens at {last['rows']:,}": (last["rank (MB)"] / last["tokens (MB)"], "<= 0.5"),
        f"seconds to plan {last['rows']:,} rows, packed": (last["packed (s)"], "<= 10"),
    }
    report("train_data_growth", rows, ratios, max_length=max_length)


if __name__ == "__main__":
    main()
