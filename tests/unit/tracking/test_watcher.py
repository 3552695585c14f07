"""A run whose process is killed is closed as KILLED by the watcher beside it; one that was closed or reopened is left alone."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ual_ray.config import TrackingConfig
from ual_ray.config.files import STORE_FILE
from ual_ray.tracking import watcher
from ual_ray.tracking.tracker import Tracker, default_uri
from ual_ray.tracking.watcher import HOLDER, watched

PROGRAM = """
import sys, time
from pathlib import Path
from ual_ray.config import TrackingConfig
from ual_ray.tracking.tracker import Tracker
from ual_ray.tracking.watcher import watched
out = Path(sys.argv[1])
tracker = Tracker(TrackingConfig(), out)
with tracker.run("train", out, {}) as run, watched(TrackingConfig(), tracker.uri, [run]):
    print(run.id, flush=True)
    time.sleep(600)
"""


def status(out: Path, run_id: str) -> str:
    return Tracker(TrackingConfig(), out).client.get_run(run_id).info.status


@pytest.fixture(autouse=True)
def store(tmp_path: Path, empty_store: Path) -> None:
    shutil.copy(empty_store, tmp_path / STORE_FILE)


@pytest.fixture
def held(tmp_path: Path) -> Any:
    """Start a process that holds a run open; end it."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    yield process, process.stdout.readline().strip()
    process.kill()
    process.wait()


@pytest.mark.slow
def test_kill_9_leaves_no_run_running(held: Any, tmp_path: Path) -> None:
    process, run_id = held
    assert status(tmp_path, run_id) == "RUNNING"
    os.killpg(process.pid, signal.SIGKILL)
    deadline = time.monotonic() + 120
    while status(tmp_path, run_id) == "RUNNING":
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert status(tmp_path, run_id) == "KILLED"


@pytest.mark.slow
def test_an_orderly_end_is_not_touched(tmp_path: Path) -> None:
    tracker = Tracker(TrackingConfig(), tmp_path)
    with tracker.run("train", tmp_path, {}) as run, watched(TrackingConfig(), tracker.uri, [run]):
        assert HOLDER in tracker.client.get_run(run.id).data.tags
    assert status(tmp_path, run.id) == "FINISHED"


@pytest.mark.slow
def test_a_run_that_another_process_reopened_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = Tracker(TrackingConfig(), tmp_path)
    run = tracker.client.create_run(tracker.experiment_id, tags={HOLDER: "another:1"})
    task = {"uri": default_uri(tmp_path), "experiment": "ual_ray", "runs": [run.info.run_id]}
    for holder, expected in (("this:2", "RUNNING"), ("another:1", "KILLED")):
        monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(task | {"holder": holder}) + "\n"))
        watcher.main()
        assert status(tmp_path, run.info.run_id) == expected


@pytest.mark.parametrize("gone_before", ["the first line", "the last line"])
def test_a_watcher_that_is_gone_does_no_harm(
    gone_before: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    program = {"the first line": ["/bin/true"], "the last line": ["/bin/sh", "-c", "read line"]}[gone_before]
    started: list[subprocess.Popen[bytes]] = []

    def start(_: list[str], **options: Any) -> subprocess.Popen[bytes]:
        started.append(popen(program, **options))
        if gone_before == "the first line":
            # Not reaped: the caller cannot know that it has ended.
            os.waitid(os.P_PID, started[-1].pid, os.WEXITED | os.WNOWAIT)
        return started[-1]

    popen = subprocess.Popen
    monkeypatch.setattr(watcher.subprocess, "Popen", start)
    tracker = Tracker(TrackingConfig(), tmp_path)
    with tracker.run("train", tmp_path, {}) as run, watched(TrackingConfig(), tracker.uri, [run]):
        os.waitid(os.P_PID, started[0].pid, os.WEXITED | os.WNOWAIT)
    assert status(tmp_path, run.id) == "FINISHED"
    assert "has ended" in caplog.text


def test_a_watcher_that_waits_has_not_imported_mlflow() -> None:
    program = "import sys, ual_ray.tracking.watcher; print('mlflow' in sys.modules, 'pydantic' in sys.modules)"
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert printed == "False False\n"
