"""Loss curves of trainings that were killed, stopped, or resumed on other ranks, laid over that of one that was not.

    python bench/resume_curves.py [--model demo --steps 24 --rows 64]

Runs `ual train` five times in a scratch folder, writes results/resume_curves.png and the largest differences as JSON.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet
from common import RESULTS, report
from matplotlib.figure import Figure

from ual_ray import columns as col
from ual_ray.data.demo import sample_rows
from ual_ray.run.metrics_log import read_metrics

UNDISTURBED = "undisturbed"
Lines = list[dict[str, float]]


class Run:
    """One training, started once or more in its own folder."""

    def __init__(self, folder: Path, data: Path, options: argparse.Namespace) -> None:
        """Take what every start has in common."""
        self.folder = folder
        settings = {
            **{"model": options.model, "train.max_steps": options.steps, "train.epochs": 100, "train.dtype": "float32"},
            **{"train.global_batch_size": 4, "train.micro_batch_size": 2, "train.max_length": 512},
            **{"train.learning_rate": 3e-4, "train.checkpoint_every": max(1, options.steps // 6)},
            **{"train.validate_every": max(1, options.steps // 4), "runtime.check_memory": "false"},
        }
        self._command = [sys.executable, "-m", "ual_ray", "train", str(data / "smoothed.parquet"), "--out", str(folder)]
        self._command += ["--validation", str(data / "rows"), *(f"{key}={value}" for key, value in settings.items())]

    def start(self, *more: str) -> subprocess.Popen[bytes]:
        """Start it, or go on with it."""
        environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
        return subprocess.Popen([*self._command, *more], env=environment)

    def lines(self) -> Lines:
        """Read the metrics so far."""
        return read_metrics(self.folder / "metrics.jsonl")

    def until(self, running: subprocess.Popen[bytes], step: int) -> None:
        """Wait for a step, and for a checkpoint."""
        while self.lines()[-1:] == [] or self.lines()[-1]["step"] < step or not [*self.folder.glob("*/step-*/progress.json")]:
            assert running.poll() is None, f"it ended before step {step}"
            time.sleep(0.05)


def undisturbed(run: Run, steps: int) -> None:
    """Train with nothing in the way."""
    assert run.start().wait() == 0


def worker_killed(run: Run, steps: int) -> None:
    """Kill -9 a worker in the middle; the same command goes on by itself."""
    running = run.start()
    run.until(running, steps // 2)
    found = psutil.Process(running.pid).children(recursive=True)
    next(process for process in found if " ".join(process.cmdline()).startswith("ray::RayTrainWorker")).kill()
    assert running.wait() == 0


def driver_killed(run: Run, steps: int) -> None:
    """Kill -9 the command in the middle, and start it again."""
    running = run.start()
    run.until(running, steps // 2)
    running.kill()
    running.wait()
    time.sleep(10)
    undisturbed(run, steps)


def stopped(run: Run, steps: int) -> None:
    """End the command by SIGTERM in the middle, and start it again."""
    running = run.start()
    run.until(running, steps // 2)
    running.send_signal(signal.SIGTERM)
    assert running.wait() == 128 + signal.SIGTERM
    undisturbed(run, steps)


def two_one_two(run: Run, steps: int) -> None:
    """Begin on 2 workers, go on with 1, end on 2."""
    for ranks, step in ((2, steps // 3), (1, 2 * steps // 3)):
        running = run.start(f"train.num_workers={ranks}")
        run.until(running, step)
        running.send_signal(signal.SIGTERM)
        assert running.wait() == 128 + signal.SIGTERM
    undisturbed(run, steps)


KINDS: dict[str, Callable[[Run, int], None]] = {
    UNDISTURBED: undisturbed,
    "worker killed": worker_killed,
    "driver killed": driver_killed,
    "SIGTERM": stopped,
    "2, 1, 2 workers": two_one_two,
}


def write_data(folder: Path, count: int) -> None:
    """Write rows of the embedded sample with random alphas; every eighth is for validation."""
    random = np.random.default_rng(0)
    chats = [messages for _, messages in sample_rows()][:count]
    rows = [
        {
            col.ID: col.content_id(chat),
            col.SOURCE: "demo",
            col.SPLIT: col.TRAIN if at % 8 else col.VALIDATION,
            col.MESSAGES: chat,
        }
        for at, chat in enumerate(chats)
    ]
    (folder / "rows").mkdir(parents=True)
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows, col.ROWS), folder / "rows" / "rows.parquet")
    training = pa.Table.from_pylist([row for row in rows if row[col.SPLIT] == col.TRAIN], col.ROWS)
    for name, high in ((col.UNCERTAINTY, 1.0), (col.ALPHA, 0.3)):
        training = training.append_column(name, pa.array(random.uniform(0, high, len(training))))
    pyarrow.parquet.write_table(training, folder / "smoothed.parquet")


def draw(curves: dict[str, Lines]) -> Figure:
    """Lay the curves over each other, and their distances from the undisturbed one below."""
    figure = Figure(figsize=(8, 7), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    styles = ["-", "--", "-.", ":", (0, (1, 3))]
    for index, (name, lines) in enumerate(curves.items()):
        look = {"color": f"C{index}", "linestyle": styles[index], "linewidth": 5 - index, "alpha": 0.8, "label": name}
        steps = [line["step"] for line in lines if "nll" in line]
        above.plot(steps, [line["nll"] for line in lines if "nll" in line], **look)
        if index:
            below.plot(steps, [max(1e-12, distance) for distance in distances(curves[UNDISTURBED], lines)], **look)
    above.set(ylabel="unsmoothed training NLL (nats per token)", title="Interrupted and resumed, over not interrupted")
    below.set(xlabel="optimizer step", ylabel="difference (0 is drawn as 1e-12)", yscale="log")
    above.legend()
    return figure


def distances(one: Lines, two: Lines) -> list[float]:
    """Absolute differences of the training NLL, step by step."""
    return [abs(a["nll"] - b["nll"]) for a, b in zip(one, two, strict=True) if "nll" in a]


def main() -> None:
    """Run all kinds, compare, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--rows", type=int, default=64)
    options = parser.parse_args()
    curves: dict[str, Lines] = {}
    measured: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        write_data(Path(scratch) / "data", options.rows)
        for index, (name, train) in enumerate(KINDS.items()):
            run = Run(Path(scratch) / str(index), Path(scratch) / "data", options)
            train(run, options.steps)
            curves[name] = run.lines()
            worst = max(distances(curves[UNDISTURBED], curves[name]))
            measured.append({"run": name, "steps": len(curves[name]) - 1, "largest NLL difference": worst})
    RESULTS.mkdir(exist_ok=True)
    draw(curves).savefig(RESULTS / "resume_curves.png", dpi=120)
    same_ranks = max(row["largest NLL difference"] for row in measured[:-1])
    ratios = {
        "largest difference at the same number of workers": (float(same_ranks), "0"),
        "largest difference over 2, 1, 2 workers": (float(measured[-1]["largest NLL difference"]), "at most 1e-5"),
    }
    report("resume_curves", measured, ratios, **vars(options))


if __name__ == "__main__":
    main()
