"""Evaluation through a real local Ray: killed with -9 and resumed, a benchmark added later; every call is counted."""

from __future__ import annotations

import json
import runpy
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet
import yaml

from ual_ray import columns as col
from ual_ray.benchmarks import make_benchmarks
from ual_ray.columns import digest
from ual_ray.config import load as settings
from ual_ray.config.keys import engine_settings
from ual_ray.engines import EngineSpec, make_engine
from ual_ray.evaluate.answering import AnswerRows
from ual_ray.evaluate.stage import engine_of, model_digest
from ual_ray.parquet import read_table
from ual_ray.stats.results import read_metrics, read_results

WORKER = Path(__file__).with_name("evaluating_worker.py")
ROWS, ROWS_PER_BLOCK, ACTORS = 120, 4, 2
# Per actor, the block that it is at and another that was not written yet.
UNWRITTEN = 2 * ACTORS * ROWS_PER_BLOCK
PATIENCE = 240.0


class Evaluations:
    """Evaluations that share a store, and a file of what the engine was sent."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.store, self.log = folder, folder / "store", folder / "sent.jsonl"

    def task(self, out: str, benchmarks: dict[str, Any]) -> dict[str, str]:
        engine = {"kind": "fake", "min_actors": ACTORS, "max_actors": ACTORS, "batch_size": ROWS_PER_BLOCK}
        arguments = {"seconds_per_run": 0.3, "log": str(self.log)}
        config = {"engine": engine | {"rows_per_block": ROWS_PER_BLOCK, "arguments": arguments}}
        path = self.folder / f"{out}.yaml"
        path.write_text(yaml.safe_dump(config | {"evaluate": {"benchmarks": benchmarks}}))
        return {"config": str(path), "folder": str(self.folder / out), "store": str(self.store), "name": out}

    def start(self, *tasks: dict[str, str]) -> subprocess.Popen[bytes]:
        printed = (self.folder / "printed.txt").open("ab")
        command = [sys.executable, str(WORKER), json.dumps(tasks)]
        return subprocess.Popen(command, stdout=printed, stderr=subprocess.STDOUT, start_new_session=True)

    def finished(self) -> set[str]:
        """Read the ids of the rows that are remembered as finished."""
        files = [file for file in (self.store / "checkpoint").glob("*.parquet") if ".pending" not in file.name]
        return {one for file in files for one in pyarrow.parquet.read_table(file, columns=["id"])["id"].to_pylist()}

    def sent(self) -> list[str]:
        """List the texts that the engine was sent so far."""
        return [json.loads(line)["text"] for line in self.log.read_text().splitlines()] if self.log.is_file() else []

    def tail(self) -> str:
        return (self.folder / "printed.txt").read_text(errors="replace")[-3000:]


def kill(driver: subprocess.Popen[bytes]) -> None:
    """Kill -9 the driver, and wait for what it started; end what is left of that."""
    below = psutil.Process(driver.pid).children(recursive=True)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    for process in psutil.wait_procs(below, timeout=20)[1]:
        process.kill()


def expected(task: dict[str, str]) -> list[dict[str, Any]]:
    """Answer the questions of a task in this process, with nothing in the way."""
    config = settings.load(task["config"])
    rows = read_table(Path(task["folder"]) / "questions.parquet").to_pylist()
    fake = engine_of(config).model_copy(update={"arguments": {}})
    digests = model_digest(config, "m"), digest(engine_settings(engine_of(config), "answers"))
    answer = AnswerRows(make_benchmarks(config.evaluate.benchmarks), task["name"], *digests)
    answered = answer(rows, make_engine(EngineSpec(fake, "m")))
    return [{name: row.get(name) for name in col.RESULTS.names} for row in answered]


def results(task: dict[str, str]) -> list[dict[str, Any]]:
    return read_results(Path(task["folder"])).to_pylist()


def test_kill_9_and_a_benchmark_added_later(local_ray: None, tmp_path: Path) -> None:
    grade, held = tmp_path / "grade.jsonl", tmp_path / "held.jsonl"
    grade.write_text("".join(json.dumps({"question": f"row-{n:03}", "answer": f"#### {n}"}) + "\n" for n in range(ROWS)))
    held.write_text("".join(json.dumps({"instruction": f"i{n}", "output": f"held-{n:03}"}) + "\n" for n in range(20)))
    one: dict[str, Any] = {"gsm": {"kind": "gsm8k", "path": str(grade)}}
    run = Evaluations(tmp_path)
    first = run.task("first", one)
    both = run.task("both", {"held": {"kind": "held_out", "path": str(held)}, **one})
    again = run.task("again", one)

    driver = run.start(first)
    deadline = time.monotonic() + PATIENCE
    while len(finished := run.finished()) < 24:
        assert driver.poll() is None and time.monotonic() < deadline, run.tail()
        time.sleep(0.05)
    kill(driver)
    finished, before = run.finished(), len(run.sent())
    assert 24 <= len(finished) < ROWS

    runpy.run_path(str(WORKER))["main"]([first, both, again])
    sent = run.sent()
    names = {row["id"]: row["messages"][-1]["content"] for row in results(both)}
    print(f"\n  killed with {len(finished)} of {ROWS} rows finished after {before} calls; {len(sent) - before} calls after it")
    assert not {names[one] for one in finished} & set(sent[before:]), "a finished row was sent again"
    counts = Counter(sent)
    assert len(counts) == ROWS + 20
    assert sum(counts.values()) - len(counts) <= UNWRITTEN, "more than what was under way was done again"
    assert all(counts[text] == 1 for text in counts if text.startswith("held")), (
        "the added benchmark, and nothing else, was sent"
    )

    assert results(first) == sorted(expected(first), key=lambda row: row["id"])
    assert results(both) == sorted(expected(both), key=lambda row: row["id"])
    assert {row["model"] for row in results(again)} == {"again"} and len(results(again)) == ROWS
    name, figures = read_metrics(Path(both["folder"]))
    assert name == "both"
    assert {(figure.benchmark, figure.metric, figure.n) for figure in figures} >= {
        ("gsm", "exact_match_strict", ROWS),
        ("held", "nll", 20),
    }
