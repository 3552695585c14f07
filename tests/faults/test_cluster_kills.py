"""A cluster whose object stores are the smallest that Ray allows, and whose nodes are killed, one by one.

Every test ends with the rows and the scores of an undisturbed run. `pytest -s` shows what was sent and redone.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from elicitation_checks import ROWS, UNWRITTEN_CALLS, assert_equal, assert_resumed, redone, transcript
from local_cluster import Cluster

STORE_BYTES = 75 * 2**20
# So long Ray waits for a head that is gone; in the cluster and in the commands.
RECONNECT_SECONDS = 20


@pytest.fixture(scope="module")
def small_cluster() -> Iterator[Cluster]:
    """Start a cluster with two small object stores, and stop it."""
    settings = {
        "UAL_OBJECT_STORE_BYTES": str(STORE_BYTES),
        "RAY_gcs_rpc_server_reconnect_timeout_s": str(RECONNECT_SECONDS),
    }
    started = Cluster(**settings)
    try:
        yield started
    finally:
        started.stop()


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
