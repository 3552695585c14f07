"""A job submitted to a real Ray job server: uploaded, followed, finished, with nothing needed from the submitter's disk."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from processes import free_port, wait_until

from ual_ray.engines.compat_ray_data import complete_files
from ual_ray.engines.row_store import CHECKPOINT_FOLDER, FINISHED_FOLDER

SCRIPT = Path(__file__).parents[2] / "cluster" / "local.sh"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Make the home of a user, in which Ray keeps its token."""
    return str(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def job_server(home: str) -> Iterator[str]:
    """Start a head and one more node with the script that users have; stop them."""
    dashboard = free_port()
    environment = os.environ | {
        "HOME": home,
        "RAY": str(Path(sys.executable).with_name("ray")),
        "UAL_RAY_PORT": str(free_port()),
        "UAL_DASHBOARD_PORT": str(dashboard),
        "UAL_CLIENT_PORT": str(free_port()),
        # Ray's sockets lie below it, and the path of a socket may have 107 characters.
        "UAL_CLUSTER_STATE": tempfile.mkdtemp(prefix="ual"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    try:
        started = subprocess.run(["bash", SCRIPT, "start", "1"], env=environment, capture_output=True, text=True, timeout=180)
        assert started.returncode == 0, started.stdout + started.stderr
        yield f"http://127.0.0.1:{dashboard}"
    finally:
        subprocess.run(["bash", SCRIPT, "stop"], env=environment, capture_output=True, timeout=120)


def test_a_submitted_job_is_followed_to_its_end(
    ual_process: Any, one_arm: list[str], job_server: str, home: str, tmp_path: Path
) -> None:
    output = tmp_path / "shared" / "run"
    submit = ["submit", *one_arm, f"output={output}", "--address", job_server]
    done = ual_process(*submit, cwd=tmp_path, HOME=home)
    assert done.code == 0, done.output
    assert "NLL per token" in done.output
    assert "SUCCEEDED" in done.output
    assert (output / "report" / "report.md").is_file()

    same = ual_process(*submit, cwd=tmp_path, HOME=home)
    assert same.code == 0 and "ended: SUCCEEDED" in same.output and "cached" not in same.output, same.output
    again = ual_process(*submit, "--new", cwd=tmp_path, HOME=home)
    assert again.code == 0, again.output
    assert again.output.count("cached") == 7, "every stage is idempotent, so a retried job redoes nothing"


def test_a_job_that_fails_says_so(ual_process: Any, one_arm: list[str], job_server: str, home: str, tmp_path: Path) -> None:
    submit = ["submit", *one_arm, "model=/no/such/model", f"output={tmp_path / 'run'}", "--address", job_server]
    done = ual_process(*submit, HOME=home)
    assert done.code == 1, done.output
    assert "the directory does not exist" in done.output
    assert "FAILED" in done.output


def test_a_job_that_was_stopped_goes_on_where_it_was_and_sends_no_finished_row_again(
    ual_process: Any, one_arm: list[str], job_server: str, home: str, tmp_path: Path
) -> None:
    output, log = tmp_path / "shared" / "run", tmp_path / "shared" / "sent.jsonl"
    log.parent.mkdir()
    settings = [f"engine.arguments={{log: {log}, seconds_per_run: 0.5}}", "engine.batch_size=2", "elicit.retest_share=0"]
    settings += ["elicit.estimators=[p_true]", "elicit.uncertainty=p_true"]
    submit = ["submit", *one_arm, *settings, f"output={output}", "--address", job_server]

    def calls() -> int:
        """Count the calls of the elicitor; those of the benchmarks are of other kinds."""
        lines = log.read_text().splitlines() if log.is_file() else []
        return sum(json.loads(line)["kind"] == "Choice" for line in lines)

    def finished() -> int:
        stores = output.glob("elicit/store/*")
        files = (file for store in stores for file in complete_files(store / FINISHED_FOLDER, store / CHECKPOINT_FOLDER))
        return sum(pyarrow.parquet.read_metadata(file).num_rows for file in files)

    sent = ual_process(*submit, "--no-follow", cwd=tmp_path, HOME=home)
    assert sent.code == 0, sent.output
    (job,) = set(re.findall(r"ual-[0-9a-f]{16}", sent.output))
    wait_until(lambda: finished() >= 8, "rows are finished", 240)
    stopped = ual_process("jobs", "stop", job, "--address", job_server, HOME=home)
    assert stopped.code == 0 and "STOPPED" in stopped.output, stopped.output
    before, kept = calls(), finished()
    done = ual_process(*submit, "--new", cwd=tmp_path, HOME=home)
    assert done.code == 0 and f"{job}-2" in done.output, done.output
    (figures,) = (json.loads(file.read_text())["figures"] for file in output.glob("elicit/*/done.json"))
    per_row, left = figures["calls"] // figures["rows"], finished() - kept
    assert left > 0 and kept >= 8
    assert calls() - before == per_row * left, "no finished row is sent again"
