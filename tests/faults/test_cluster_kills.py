"""A cluster whose object stores are the smallest that Ray allows, whose disk is full, and whose nodes are killed, one by one.

Every test ends with the rows and the scores of an undisturbed run. `pytest -s` shows what was sent and redone.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from elicitation_checks import ROWS, UNWRITTEN_CALLS, assert_equal, assert_resumed, redone, transcript, write_rows
from local_cluster import Cluster

STORE_BYTES = 75 * 2**20
# The share of a disk from which on Ray counts it as full; the rest is for logs, without which its workers do not start.
FULL = 0.6
# So long Ray waits for a head that is gone; in the cluster and in the commands.
RECONNECT_SECONDS = 20
# Three times the store.
FILES, LARGE_ROWS, CHARACTERS = 8, 120, 2_000_000
OTHER_JOB = """
import numpy, ray, sys
ray.init(address="auto", log_to_driver=False)
kept = [ray.put(numpy.ones(5 * 2**20, numpy.uint8)) for _ in range(14)]
print("kept", flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def disk(small_disk: Any) -> Path:
    """Mount a disk of its own for what Ray writes."""
    folder = Path(tempfile.mkdtemp(prefix="ual"))
    with suppress(pytest.skip.Exception):  # the other tests do without
        small_disk(folder, "400m")
    return folder


@pytest.fixture(scope="module")
def small_cluster(disk: Path) -> Iterator[Cluster]:
    """Start a cluster with two small object stores, and stop it."""
    settings = {
        "UAL_OBJECT_STORE_BYTES": str(STORE_BYTES),
        "RAY_local_fs_capacity_threshold": str(FULL),
        "RAY_gcs_rpc_server_reconnect_timeout_s": str(RECONNECT_SECONDS),
    }
    started = Cluster(disk, **settings)
    try:
        yield started
    finally:
        started.stop()


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write rows that take several times the object store, in several files."""
    folder = tmp_path_factory.mktemp("large")
    for file in range(FILES):
        rows = [(f"Question of row-{n:03d}.", f"{n:03d}" * (CHARACTERS // 3)) for n in range(file, LARGE_ROWS, FILES)]
        write_rows(folder / f"{file}.jsonl", rows)
    return folder


@contextmanager
def full_store(cluster: Cluster) -> Iterator[None]:
    """Have another job of the cluster keep objects that take all of the driver's object store."""
    variables = os.environ | cluster.environment
    command = [sys.executable, "-c", OTHER_JOB]
    with subprocess.Popen(command, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as job:
        assert job.stdout is not None
        assert job.stdout.readline() == "kept\n"
        try:
            yield
        finally:
            job.kill()


@contextmanager
def full_disk(disk: Path) -> Iterator[None]:
    """Fill a disk up to what Ray takes for full."""
    usage, filler = shutil.disk_usage(disk), disk / "filler"
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, int((FULL + 0.1) * usage.total) - usage.used)
    try:
        yield
    finally:
        filler.unlink()


def test_an_object_store_that_is_full_and_then_its_disk_too(elicit: Any, large: Path, small_cluster: Any, disk: Path) -> None:
    if not disk.is_mount():
        pytest.skip("mounting a disk needs root (in a container: --cap-add SYS_ADMIN)")
    few = {"elicit.estimators": "[verbalized_error]", "elicit.uncertainty": "verbalized_error"}
    run = elicit(0.0, small_cluster.environment, large, **few, **{"runtime.address": "auto"})
    with full_store(small_cluster):
        with full_disk(disk):
            run.start()
            run.wait(code=2)
        told, before, finished = run.printed, len(run.calls()), run.finished()
        assert "a disk is full" in told and "what is finished is kept" in told and "Traceback" not in told, told
        run.start()
        run.wait()
        spilled = [file for file in disk.rglob("ray_spilled_objects*/*") if file.is_file()]
    undisturbed = elicit(0.0, None, large, **few)
    undisturbed.run()
    transcript(
        "the object store was full", rows=LARGE_ROWS, bytes=LARGE_ROWS * CHARACTERS, store=STORE_BYTES, spilled=len(spilled),
        finished_with_a_full_disk=len(finished), calls_with_a_full_disk=before, calls=len(run.calls()),
        seconds=round(run.seconds),
    )  # fmt: skip
    assert spilled, "the store was too small"
    scores = [{name: row["uncertainty"] for name, row in one.scored().items()} for one in (run, undisturbed)]
    assert scores[0] == scores[1] and len(scores[0]) == LARGE_ROWS
    assert run.sent(since=before).keys() == scores[1].keys() - finished
    assert {*run.sent(since=before).values()} == {1}


def test_kill_9_of_a_node(elicit: Any, undisturbed: Any, small_cluster: Any) -> None:
    run = elicit(seconds_per_run=0.6, environment=small_cluster.environment, **{"runtime.address": "auto"})
    run.start()
    run.until_finished(8)
    there = run.until(
        lambda: {call["pid"] for call in run.calls()} & small_cluster.on_worker_node(),
        "an engine works on the node to be killed",
    )
    finished, before = run.finished(), len(run.calls())
    assert len(finished) < ROWS
    small_cluster.kill_worker_node()
    run.wait()
    transcript(
        "node killed", rows=ROWS, finished_at_the_kill=len(finished), engines_there=len(there), calls_before=before,
        calls_after=len(run.calls()) - before, redone=redone(run), seconds=round(run.seconds),
    )  # fmt: skip
    assert_equal(run, undisturbed)
    assert redone(run) <= UNWRITTEN_CALLS


def test_kill_9_of_the_head(elicit: Any, undisturbed: Any, small_cluster: Any) -> None:
    run = elicit(0.4, small_cluster.environment, **{"runtime.address": "auto"})
    run.start()
    run.until_finished(40)
    small_cluster.kill_head()
    killed = time.monotonic()
    run.wait(code=2)
    seconds, finished, before = time.monotonic() - killed, run.finished(), len(run.calls())
    assert "error: the head of the Ray cluster is gone" in run.printed and "run the same command" in run.printed
    assert run.printed.count("error: ") == 1 and "Traceback" not in run.printed, run.printed
    assert len(finished) < ROWS
    run.run()
    transcript(
        "the head killed", rows=ROWS, finished_at_the_end=len(finished), seconds_to_the_end=round(seconds), calls_before=before,
        calls_after=len(run.calls()) - before, redone=redone(run),
    )  # fmt: skip
    assert_equal(run, undisturbed)
    assert_resumed(run, finished, before)
    assert seconds < RECONNECT_SECONDS + 10
