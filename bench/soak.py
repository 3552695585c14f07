"""Does a pipeline survive what kills it? `ual run` again and again, with parts of it killed at random moments.

    python bench/soak.py [--runs 20] [--seed 0]

Each run is a folder of its own. One to four times a part of it is ended: the command (SIGKILL, SIGTERM, SIGINT), one of Ray's
workers, or a process of Ray's cluster; a command that ends is started again, until it succeeds. A run counts as passed when
scores, answers and trained weights are those of an undisturbed run, no row is lost or there twice, no process is left, and no
MLflow run is left RUNNING. A random two-layer model, the fake engine, real FSDP over two ranks and a real MLflow store.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
from common import report
from safetensors.torch import load_file

from ual_ray import columns as col
from ual_ray.models.resolve import resolve_model
from ual_ray.parquet import read_table

# In the environment of everything that a run starts.
MARK = "UAL_RAY_SOAK"
PARTS = ("command SIGKILL", "command SIGTERM", "command SIGINT", "a worker", "the cluster")
CLUSTER = ("raylet", "gcs_server")
MOST_STARTS = 8
# The latest first kill, as a share of the time of an undisturbed run, before whose end it should come.
LATEST = 0.8
SECONDS_TO_LEAVE = 60.0
RESULTS_COMPARED = (col.ID, col.BENCHMARK, col.PREDICTION, col.NLL_SUM, col.STATUS)
SETTINGS = (
    "data.path=demo",
    "data.max_rows=64",
    "engine.kind=fake",
    "engine.batch_size=4",
    "engine.arguments.seconds_per_run=0.3",
    "elicit.estimators=[verbalized_error]",
    "elicit.uncertainty=verbalized_error",
    "train.max_steps=6",
    "train.checkpoint_every=2",
    "train.global_batch_size=8",
    "train.dtype=float32",
    "evaluate.calibration.enabled=false",
    "evaluate.resamples=200",
)


def make_model(folder: Path) -> None:
    """Save a random two-layer Llama with the demo model's tokenizer."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(resolve_model("demo"))
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@dataclass(frozen=True)
class Results:
    """Scores by id, answers by model and question, trained weights by arm."""

    scores: dict[str, float | None]
    answers: dict[tuple[str, ...], dict[str, Any]]
    weights: dict[str, dict[str, torch.Tensor]]


@dataclass
class Pipeline:
    """One output folder, and the commands that fill it."""

    folder: Path
    model: Path
    starts: int = 0
    ended: list[str] = field(default_factory=list)
    command: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the command, in a session of its own."""
        self.starts += 1
        self.folder.mkdir(parents=True, exist_ok=True)
        settings = (*SETTINGS, f"model={self.model}", f"elicit.model={self.model}", f"output={self.folder / 'out'}")
        environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | {MARK: str(self.folder)}
        with (self.folder / f"printed-{self.starts}.txt").open("wb") as printed:
            self.command = subprocess.Popen(
                [sys.executable, "-m", "ual_ray", "run", *settings],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait(self, seconds: float) -> int | None:
        """Wait for the command's end, so long at most; return its exit code, None while it runs."""
        assert self.command is not None, "it was started"
        with suppress(subprocess.TimeoutExpired):
            self.command.wait(seconds)
        return self.command.returncode

    def processes(self) -> list[psutil.Process]:
        """List the processes that it started, also those whose parents are gone."""
        return [process for process in psutil.process_iter() if process.pid != os.getpid() and self._owns(process)]

    def _owns(self, process: psutil.Process) -> bool:
        with suppress(psutil.Error):
            return process.environ().get(MARK) == str(self.folder) and process.status() != psutil.STATUS_ZOMBIE
        return False

    def end_a_part(self, part: str, draw: random.Random) -> bool:
        """Kill a part of it; return whether there is such a part now."""
        assert self.command is not None, "it was started"
        if part.startswith("command"):
            self.ended.append(part)
            self.command.send_signal(getattr(signal, part.split()[1]))
            return True
        found = [process for process in self.processes() if _is(process, part)]
        if found:
            chosen = draw.choice(sorted(found, key=lambda process: process.pid))
            with suppress(psutil.Error):
                self.ended.append(f"{part} ({_title(chosen).split(' ')[0][:40]})")
                chosen.kill()
        return bool(found)

    def left(self) -> list[str]:
        """Wait for its processes to leave; return the titles of those that did not."""
        deadline = time.monotonic() + SECONDS_TO_LEAVE
        while (processes := self.processes()) and time.monotonic() < deadline:
            time.sleep(1)
        titles = [_title(process) for process in processes]
        for process in processes:
            with suppress(psutil.Error):
                process.kill()
        return titles

    def results(self) -> Results:
        """Read what it made. Raises ValueError for a row that is there twice."""
        out = self.folder / "out"
        scores = _rows(out, "elicit/*/scored", [col.ID, col.UNCERTAINTY], col.ID)
        answers: dict[tuple[str, ...], dict[str, Any]] = {}
        for folder in sorted(out.glob("**/evaluate/*/results")):
            found = _rows(folder, "", [*RESULTS_COMPARED], col.BENCHMARK, col.ID)
            answers |= {(str(folder.parents[2].name), *key): row for key, row in found.items()}
        files = sorted(out.glob("arms/*/train/*/model/model.safetensors"))
        weights = {file.parents[3].name: load_file(file) for file in files}
        return Results({key[0]: row[col.UNCERTAINTY] for key, row in scores.items()}, answers, weights)

    def running(self) -> list[str]:
        """List the MLflow runs that are not FINISHED, by name."""
        from mlflow import MlflowClient

        client = MlflowClient(f"sqlite:///{self.folder / 'out' / 'mlflow.db'}")
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        return [
            f"{run.info.run_name} {run.info.status}" for run in client.search_runs(experiments) if run.info.status != "FINISHED"
        ]


def _rows(out: Path, pattern: str, columns: list[str], *key: str) -> dict[tuple[str, ...], dict[str, Any]]:
    folders = list(out.glob(pattern)) if pattern else [out]
    rows = [row for folder in folders for row in read_table(folder, columns).to_pylist()]
    by_key = {tuple(row[name] for name in key): row for row in rows}
    if len(by_key) != len(rows):
        raise ValueError(f"{len(rows) - len(by_key)} rows are there twice in {pattern or out}")
    return by_key


def _title(process: psutil.Process) -> str:
    """Return what a process calls itself, as Ray's workers do, without the folder of its program."""
    with suppress(psutil.Error):
        words = " ".join(process.cmdline()).split()
        return " ".join([Path(words[0]).name, *words[1:]]) if words else ""
    return ""


def _is(process: psutil.Process, part: str) -> bool:
    title = _title(process)
    return title.startswith("ray::") if part == "a worker" else title.split(" ")[0] in CLUSTER


def disturbed(pipeline: Pipeline, seconds: float, draw: random.Random) -> list[str]:
    """Run a pipeline with parts of it killed; return what is wrong with the way it ended."""
    kills = draw.randint(1, 4)
    while pipeline.starts < MOST_STARTS:
        pipeline.start()
        code = None
        while kills and code is None:
            code = pipeline.wait(draw.uniform(0, LATEST * seconds))
            if code is None and pipeline.end_a_part(draw.choice(PARTS), draw):
                kills -= 1
        if (code if code is not None else pipeline.wait(20 * seconds)) == 0:
            return []
        if pipeline.wait(0) is None:
            return [f"it did not end within {20 * seconds:.0f} s"]
    return [f"it did not succeed in {MOST_STARTS} starts"]


def compare(pipeline: Pipeline, expected: Results) -> list[str]:
    """Return what differs from the undisturbed run, is left over, or is not finished."""
    faults = []
    try:
        found = pipeline.results()
    except (OSError, ValueError) as error:
        return [str(error)]
    if found.scores != expected.scores:
        faults.append(f"scores differ: {len(found.scores)} of {len(expected.scores)} rows")
    if found.answers != expected.answers:
        faults.append(f"answers differ: {len(found.answers)} of {len(expected.answers)}")
    faults.extend(f"weights of {arm} differ" for arm in expected.weights if not _equal(found, expected, arm))
    if left := pipeline.left():
        faults.append(f"processes are left: {left[:3]}")
    if running := pipeline.running():
        faults.append(f"MLflow runs are not finished: {running}")
    return faults


def _equal(found: Results, expected: Results, arm: str) -> bool:
    tensors, others = expected.weights[arm], found.weights.get(arm, {})
    return tensors.keys() == others.keys() and all(torch.equal(others[name], tensor) for name, tensor in tensors.items())


def main() -> None:
    """Run once undisturbed, then again and again disturbed, and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for the outputs; a temporary one by default")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.keep or Path(temporary)).resolve()
        make_model(folder / "model")
        undisturbed = Pipeline(folder / "undisturbed", folder / "model")
        started = time.monotonic()
        undisturbed.start()
        if undisturbed.wait(1800) != 0:
            raise SystemExit(f"the undisturbed run failed; see {undisturbed.folder}/printed-1.txt, kept with --keep FOLDER")
        seconds = time.monotonic() - started
        expected = undisturbed.results()
        if not (expected.scores and expected.answers and expected.weights):
            raise SystemExit("the undisturbed run has no scores, answers or weights to compare with")
        measured = [soak(Pipeline(folder / f"run-{number}", folder / "model"), expected, seconds, options.seed, number)
                    for number in range(options.runs)]  # fmt: skip
    passed = sum(row["faults"] == "none" for row in measured)
    report(
        "soak", measured, {"share of runs that passed": (passed / options.runs, "1")},
        seed=options.seed, undisturbed_seconds=round(seconds),
        rows=len(expected.scores), answers=len(expected.answers), arms=len(expected.weights),
    )  # fmt: skip
    raise SystemExit(passed < options.runs)


def soak(pipeline: Pipeline, expected: Results, seconds: float, seed: int, number: int) -> dict[str, Any]:
    """Disturb one run, and return its line of the table."""
    started = time.monotonic()
    faults = disturbed(pipeline, seconds, random.Random(f"{seed} {number}"))
    faults += compare(pipeline, expected) if not faults else pipeline.left()
    line = {
        "run": number,
        "killed": ", ".join(pipeline.ended) or "nothing: it ended before",
        "starts": pipeline.starts,
        "seconds": time.monotonic() - started,
        "faults": "; ".join(faults) or "none",
    }
    print(json.dumps(line), flush=True)
    return line


if __name__ == "__main__":
    main()
