"""Does the data side of training keep its pace and its memory as the rows grow? No model is loaded.

    python bench/train_data_growth.py [--sizes 1000,10000,100000,1000000] [--max-length 1024] [--tokenizer costless]

Two processes per size: a driver that does all of a training but the training (the digests and checks of its step, rendering
under Ray Data, the plan, the distribution of alphas), and a rank that opens the token store, plans the run, packed and not,
and reads and collates micro-batches. Rows have about 160 tokens of the demo model's tokenizer; the costless one gives 20 to
39 without reading the text, of about 20 words. Memory is the high-water mark of the resident set, and of its anonymous part:
the system takes pages of mapped files, as the tokens are, for others when it needs them. Of a rank it is what it takes beyond
importing its modules.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import psutil
import pyarrow as pa
from alone import anonymous_bytes, peak_bytes

from ual_ray import columns as col
from ual_ray.columns import Message, digest
from ual_ray.config import Config, RuntimeConfig, TrainConfig
from ual_ray.models.chat import IGNORE_INDEX, Rendered
from ual_ray.parquet import writing
from ual_ray.train.tokenize import Render

WORDS = "the model reads each row once and says how sure it is of what the answer claims about tides and bread".split()  # noqa: SIM905
SCHEMA = pa.schema(
    [
        *((col.ID, pa.string()), (col.SPLIT, pa.string()), (col.MESSAGES, col.MESSAGES_TYPE)),
        *((col.UNCERTAINTY, pa.float64()), (col.ALPHA, pa.float64())),
    ]
)
ROWS_PER_GROUP = 50_000
MICRO_BATCHES = 200


def write_data(path: Path, rows: int, *, short: bool) -> None:
    """Write smoothed rows of about 60 to 260 tokens, or short ones, all different, as `ual smooth` does."""
    with writing(path, SCHEMA) as writer:
        for start in range(0, rows, ROWS_PER_GROUP):
            numbers = range(start, min(start + ROWS_PER_GROUP, rows))
            table = short_rows(numbers) if short else pa.Table.from_pylist([*map(make_row, numbers)], SCHEMA)
            writer.write_table(table)


def short_rows(numbers: range) -> pa.Table:
    """Make up rows of about 20 words."""
    count, reply = len(numbers), " ".join(WORDS[:12])
    texts = [text for number in numbers for text in (f"Explain point {number} of the list", f"{reply} {number % 1000}")]
    pairs = zip(texts[::2], texts[1::2], strict=True)
    ids = [digest([["user", question], ["assistant", answer]]) for question, answer in pairs]  # `columns.content_id`
    turns = pa.StructArray.from_arrays(
        [pa.array(["user", "assistant"] * count), pa.array(texts), pa.nulls(2 * count, pa.string())],
        fields=[*col.MESSAGES_TYPE.value_type],
    )
    chats = pa.ListArray.from_arrays(pa.array(range(0, 2 * count + 1, 2), pa.int32()), turns)
    uncertainties = np.array([number % 97 / 96 for number in numbers])
    columns = [pa.array(ids), pa.array([col.TRAIN] * count), chats, pa.array(uncertainties), pa.array(0.2 * uncertainties)]
    return pa.table(columns, SCHEMA.names).cast(SCHEMA)


class CostlessRender(Render):
    """Renders rows to 20 to 39 tokens without looking at their texts: what is left is reading, writing and the driver."""

    def __init__(self, model: str, settings: TrainConfig, trust_remote_code: bool, folder: Path) -> None:
        """Take what `Render` takes; no tokenizer is loaded."""
        self._renderer: Any = SimpleNamespace(ends_turn=lambda _: True)
        self._folder = folder

    def _sequences(self, row: dict[str, Any]) -> tuple[list[Rendered], bool]:
        tokens = [*range(20 + int(row[col.ID][:4], 16) % 20)]
        return [Rendered(tokens, [IGNORE_INDEX] * 10 + tokens[10:])], False


def make_row(number: int) -> dict[str, Any]:
    """Make up a row."""
    reply = f"Point {number} is this: {' '.join(WORDS[number % 5 :] + WORDS * (number % 9))}."
    messages: list[Message] = [
        {"role": "user", "content": f"Explain point {number} of the list: {' '.join(WORDS[number % 7 :])}."},
        {"role": "assistant", "content": reply},
    ]
    uncertainty = (number % 97) / 96
    return {
        col.ID: col.content_id(messages),
        col.SPLIT: col.TRAIN,
        col.MESSAGES: messages,
        col.UNCERTAINTY: uncertainty,
        col.ALPHA: 0.2 * uncertainty,
    }


class TrainingBegins(Exception):
    """Raised in place of training."""


def drive(folder: Path, max_length: int, renderer: type[Render]) -> dict[str, float]:
    """Do what the driver of a training does but for the training; return seconds, rates, and the memory in MB."""
    from ual_ray.parquet import alphas_digest
    from ual_ray.run.cluster import ray_cluster
    from ual_ray.smooth.stage import histogram
    from ual_ray.train import stage, tokenize

    def render(*arguments: Any, **options: Any) -> dict[str, Any]:
        started = time.monotonic()
        counts = tokenize.render_all(*arguments, **options)
        seconds = time.monotonic() - started
        figures.update({"render (s)": seconds, "rows/s": counts["train_rows"] / seconds})
        return counts

    smoothed, figures = folder / "smoothed.parquet", dict[str, float]()
    with ray_cluster(RuntimeConfig()), anonymous_memory() as anonymous:
        actors = ActorMemory()
        started = time.monotonic()
        alphas_digest(smoothed, sources=False)
        figures["digest (s)"] = time.monotonic() - started
        with (
            mock.patch.object(tokenize, "Render", renderer),
            mock.patch.object(stage, "render_all", render),
            mock.patch.object(stage, "fit", side_effect=TrainingBegins),
            contextlib.suppress(TrainingBegins),
        ):
            stage.train(Config(train=TrainConfig(max_length=max_length)), smoothed, None, folder, mock.Mock(), mock.Mock(), {})
        histogram(smoothed)
        figures["driver (s)"] = time.monotonic() - started
        actors.stop()
    figures |= {"driver (MB)": peak_bytes() / 2**20, "driver, anonymous (MB)": anonymous.peak / 2**20}
    return figures | {"actor (MB)": actors.peak / 2**20}


@contextlib.contextmanager
def anonymous_memory() -> Iterator[Any]:
    """Watch the anonymous memory of this process while the block runs: its `peak`, in bytes, of 50 samples a second."""
    found, ended = SimpleNamespace(peak=anonymous_bytes()), threading.Event()

    def watch() -> None:
        while not ended.wait(0.02):
            found.peak = max(found.peak, anonymous_bytes())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    yield found
    ended.set()
    thread.join()


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
    from ual_ray.train.batches import collate

    collate([])
    imports, anonymous_imports = peak_bytes() / 2**20, anonymous_bytes() / 2**20
    with anonymous_memory() as anonymous:
        figures = plan_and_read(tokens, max_length)
    figures |= {"rank (MB)": peak_bytes() / 2**20 - imports}
    return figures | {"rank, anonymous (MB)": anonymous.peak / 2**20 - anonymous_imports, "tokens (MB)": folder_size(tokens)}


def plan_and_read(tokens: Path, max_length: int) -> dict[str, float]:
    """Open the store, plan, and collate the first micro-batches of the packed plan; return seconds and pace."""
    from ual_ray.train.batches import StepPlan, collate
    from ual_ray.train.token_store import TokenStore

    def planned(name: str, *, packing: bool) -> StepPlan:
        started = time.monotonic()
        config = TrainConfig(max_length=max_length, packing=packing)
        plan = StepPlan(store.lengths, store.target_tokens, config, seed=0, world_size=2)
        share = plan.padding_share
        figures.update({f"{name} (s)": time.monotonic() - started, f"{name} padding": round(share, 4)})
        return plan

    started = time.monotonic()
    store = TokenStore.open(tokens, col.TRAIN, 4)
    figures = {"open (s)": time.monotonic() - started}
    planned("plan", packing=False)  # not kept: a rank has one plan
    plan = planned("packed", packing=True)
    batches = [batch for number in range(min(MICRO_BATCHES, len(plan))) for batch in plan[number].micro_batches[0]]
    started = time.monotonic()
    for batch in batches:
        collate([[store[row] for row in plan.sequences[sequence]] for sequence in batch], packed=True)
    figures["batches/s"] = len(batches) / (time.monotonic() - started)
    return figures


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
    parser.add_argument("--tokenizer", choices=["demo", "costless"], default="demo")
    parser.add_argument("--role", choices=["driver", "rank"])
    parser.add_argument("folder", nargs="?", type=Path)
    options = parser.parse_args()
    if options.role == "driver":
        renderer = CostlessRender if options.tokenizer == "costless" else Render
        print(json.dumps(drive(options.folder, options.max_length, renderer)))
    elif options.role == "rank":
        print(json.dumps(be_a_rank(options.folder / "tokens", options.max_length)))
    elif "," not in options.sizes:
        parser.error("growth takes two sizes at least")
    else:
        compare([int(size) for size in options.sizes.split(",")], options.max_length, options.tokenizer)


def compare(sizes: list[int], max_length: int, tokenizer: str) -> None:
    """Print and keep the figures of all sizes."""
    rows: list[dict[str, Any]] = []
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            write_data(Path(folder) / "smoothed.parquet", size, short=tokenizer == "costless")
            setting = (folder, "--max-length", max_length, "--tokenizer", tokenizer)
            rows.append({"rows": size, **measure("driver", *setting), **measure("rank", *setting)})
        print(rows[-1], flush=True)
        if len(rows) > 1:  # the largest takes most of the time
            keep(rows, max_length, tokenizer)


def keep(rows: list[dict[str, Any]], max_length: int, tokenizer: str) -> None:
    """Report the sizes so far, the last two of which are compared."""
    from common import report

    before, last = rows[-2:]
    resident, anonymous = (np.ptp([row[name] for row in rows]) for name in ("driver (MB)", "driver, anonymous (MB)"))
    ratios = {
        f"rows/s at {last['rows']:,} over {before['rows']:,}": (last["rows/s"] / before["rows/s"], ">= 0.8"),
        "driver's anonymous memory, most over least, in MB": (float(anonymous), "<= 100"),
        "driver's resident memory, most over least, in MB": (float(resident), "pages of mapped files among it"),
        f"a rank's anonymous memory over its tokens at {last['rows']:,}": (
            last["rank, anonymous (MB)"] / last["tokens (MB)"],
            "<= 0.5",
        ),
        f"seconds to plan {last['rows']:,} rows, packed": (last["packed (s)"], "<= 10"),
    }
    name = "train_data_growth" + ("" if tokenizer == "demo" else f"_{tokenizer}")
    report(name, rows, ratios, max_length=max_length, tokenizer=tokenizer)


if __name__ == "__main__":
    main()
