"""A real MLflow server over HTTP with a real database behind it, stopped and started while runs log to it."""

from __future__ import annotations

import importlib.util
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from processes import free_port

from ual_ray.config import TrackingConfig
from ual_ray.tracking.tracker import Tracker, catch_up

RETRY = 0.5
STEPS = 30
# Seconds that a call may take once the store is known to be away.
PATIENCE = 5.0


def wait_for(ready: Callable[[], Any], what: str, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            ready()
            return
        except Exception as error:
            assert time.monotonic() < deadline, f"{what}: {error}"
            time.sleep(0.2)


def find_postgres() -> dict[str, str] | None:
    """Find PostgreSQL's programs: on the path, or where Debian keeps them."""
    places = os.pathsep.join([os.environ["PATH"], *map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin")))])
    found = {name: shutil.which(name, path=places) for name in ("initdb", "postgres")}
    return {name: path for name, path in found.items() if path} if all(found.values()) else None


class Postgres:
    """A database server of its own; it refuses to be root's, so root runs it as nobody."""

    def __init__(self, programs: dict[str, str]) -> None:
        self._programs = programs
        self._folder = Path(tempfile.mkdtemp(prefix="ual-postgres-", dir="/tmp"))
        self._port = free_port()
        self._as: dict[str, Any] = {}
        if os.getuid() == 0:
            user = pwd.getpwnam("nobody")
            self._as = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
            os.chown(self._folder, user.pw_uid, user.pw_gid)
        self._data = self._folder / "data"
        command = [programs["initdb"], "-D", str(self._data), "-U", "ual", "-A", "trust", "--no-sync"]
        subprocess.run(command, check=True, capture_output=True, cwd="/", **self._as)
        # With the driver's name: SQLAlchemy's default driver has changed with its versions.
        self.uri = f"postgresql+psycopg2://ual@127.0.0.1:{self._port}/postgres"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        import psycopg2

        options = ["listen_addresses=127.0.0.1", f"unix_socket_directories={self._folder}", "fsync=off", "shared_buffers=16MB"]
        command = [self._programs["postgres"], "-D", str(self._data), "-p", str(self._port)]
        command += [part for option in options for part in ("-c", option)]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, cwd="/", stdout=log, stderr=log, **self._as)
        where = {"host": "127.0.0.1", "port": self._port, "user": "ual", "dbname": "postgres"}
        wait_for(lambda: psycopg2.connect(**where).close(), "PostgreSQL starts")

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)  # fast shutdown
            self._process.wait(timeout=60)
            self._process = None

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self._folder)


class Server:
    """An MLflow server that keeps its address when it is started again."""

    def __init__(self, database: str, folder: Path) -> None:
        self._database, self._folder, self._port = database, folder, free_port()
        self.uri = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self._port)]
        command += ["--backend-store-uri", self._database, "--artifacts-destination", str(self._folder / "artifacts")]
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "--workers", "1"], env=environment, stdout=log, stderr=log, start_new_session=True
            )
        wait_for(self._answers, "the MLflow server starts")

    def _answers(self) -> None:
        assert self._process is not None
        if self._process.poll() is not None:
            pytest.fail(f"the MLflow server has ended:\n{(self._folder / 'server.log').read_text()[-3000:]}")
        urllib.request.urlopen(f"{self.uri}/health", timeout=5).close()

    def stop(self) -> None:
        """End it and its workers at once, as an outage does."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres | str]:
    """Start PostgreSQL; where there is none, let SQLite take its place behind the server."""
    programs = find_postgres() if importlib.util.find_spec("psycopg2") else None
    if programs is None:
        yield f"sqlite:///{tmp_path_factory.mktemp('database')}/mlflow.db"
        return
    postgres = Postgres(programs)
    try:
        postgres.start()
        yield postgres
    finally:
        postgres.remove()


@pytest.fixture(scope="module")
def server(database: Postgres | str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(database.uri if isinstance(database, Postgres) else database, tmp_path_factory.mktemp("server"))
    try:
        made.start()
        yield made
    finally:
        made.stop()


class Timed:
    """Times calls."""

    def __init__(self) -> None:
        self.slowest = 0.0
        self.calls = 0

    def __call__(self, call: Callable[..., Any], *arguments: Any) -> Any:
        started = time.monotonic()
        result = call(*arguments)
        self.slowest = max(self.slowest, time.monotonic() - started)
        self.calls += 1
        return result


def tracker_of(server: Server, out: Path, experiment: str) -> Tracker:
    return Tracker(TrackingConfig(uri=server.uri, experiment=experiment, retry_seconds=RETRY), out)


def runs_of(tracker: Tracker) -> dict[str, Any]:
    runs = tracker.client.search_runs([tracker.experiment_id])
    assert len({run.info.run_name for run in runs}) == len(runs), "a run was opened twice"
    return {run.info.run_name: run for run in runs}


def steps_of(tracker: Tracker, run: Any, metric: str = "nll") -> list[int]:
    return [entry.step for entry in tracker.client.get_metric_history(run.info.run_id, metric)]


def files_of(tracker: Tracker, run: Any, folder: str | None = None) -> set[str]:
    return {file.path for file in tracker.client.list_artifacts(run.info.run_id, folder)}


def say(line: str, started: Sequence[float] = (time.monotonic(),)) -> None:
    print(f"  {time.monotonic() - started[0]:6.1f} s  {line}")


def test_what_is_logged_while_the_server_is_away_is_caught_up(
    server: Server, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("model: tiny\n")
    tracker, timed = tracker_of(server, tmp_path, "outage"), Timed()
    with capsys.disabled():
        print()
        with tracker.run("pipeline", tmp_path, {"stage": "pipeline"}) as parent:
            parent.params({"model": "tiny"})
            parent.metrics({"nll": 9.0}, step=0)
            parent.artifact(config)
            say("the server answers; the parent run is open")
            server.stop()
            say("the server is killed")
            before = int(time.time() * 1000)
            Timed()(parent.tags, {"notices": "the outage"})
            say(f"the outage is noticed; waiting: {tracker.waiting}")
            for step in range(1, STEPS + 1):
                timed(parent.metrics, {"nll": 1 / step}, step)
                time.sleep(0.02)
            timed(parent.plot, Figure(), "plots/loss.png")
            with tracker.run("train ual", tmp_path / "train", {"ual_ray.arm": "ual"}, parent) as child:
                timed(child.params, {"learning_rate": 1e-5})
                timed(child.table, {"step": [1], "nll": [2.0]}, "table.json")
                assert timed(child.model, tiny_model, "outage-ual", {"ual_ray.arm": "ual"}) is None
                assert timed(parent.last_step, "nll") == STEPS
            after = int(time.time() * 1000)
            say(f"{timed.calls} calls while it is away, slowest {timed.slowest * 1000:.0f} ms; waiting: {tracker.waiting}")
            assert tracker.waiting > STEPS and timed.slowest < PATIENCE
            server.start()
            say("the server is started again")
        left = tracker.close(60)
        say(f"caught up: {tracker.caught_up}; waiting: {left}; refused: {tracker.failures}")
    assert (left, tracker.failures) == (0, 0)

    runs = runs_of(tracker)
    pipeline, trained = runs["pipeline"], runs["train ual"]
    history = tracker.client.get_metric_history(pipeline.info.run_id, "nll")
    assert [entry.step for entry in history] == list(range(STEPS + 1))
    assert [entry.value for entry in history[1:]] == pytest.approx([1 / step for step in range(1, STEPS + 1)])
    times = [entry.timestamp for entry in history[1:]]
    assert times == sorted(times) and len(set(times)) == STEPS and before <= times[0] <= times[-1] <= after
    assert {"config.yaml", "plots"} == files_of(tracker, pipeline)
    assert files_of(tracker, pipeline, "plots") == {"plots/loss.png"}
    assert trained.data.tags["mlflow.parentRunId"] == pipeline.info.run_id
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert trained.data.params == {"learning_rate": "1e-05"} and before <= trained.info.end_time <= after
    version = tracker.client.get_model_version_by_alias("outage-ual", "candidate")
    assert (version.run_id, version.tags["ual_ray.arm"]) == (trained.info.run_id, "ual")


PROGRAM = """
import sys, time
from pathlib import Path
from ual_ray.config import TrackingConfig
from ual_ray.tracking.tracker import Tracker
uri, out = sys.argv[1], Path(sys.argv[2])
tracker = Tracker(TrackingConfig(uri=uri, experiment="killed", retry_seconds=0.5), out)
with tracker.run("pipeline", out, {}) as run:
    run.metrics({"nll": 9.0}, 1)
    print("open", flush=True)
    sys.stdin.readline()
    for step in range(2, 32):
        run.metrics({"nll": 1 / step}, step)
    with tracker.run("train", out / "train", {}, run) as child:
        child.params({"a": 1})
        print("logged", flush=True)
        time.sleep(600)
"""


def test_kill_9_during_the_outage_loses_nothing_and_opens_nothing_twice(server: Server, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, server.uri, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        assert process.stdout.readline() == "open\n"
        server.stop()
        process.stdin.write("go on\n")
        process.stdin.flush()
        assert process.stdout.readline() == "logged\n"
    finally:
        process.kill()
        process.wait()

    second = tracker_of(server, tmp_path, "killed")
    left_by_the_first = second.waiting
    assert left_by_the_first > STEPS
    with second.run("pipeline", tmp_path, {}) as run, second.run("train", tmp_path / "train", {}, run):
        assert run.last_step("nll") == 31, "a second process goes on while the server is still away"
        run.metrics({"nll": 0.0}, 32)
    assert second.close(0) > left_by_the_first

    server.start()
    done = catch_up(tmp_path)
    assert (done.refused, done.waiting) == (0, 0) and done.sent > left_by_the_first
    with tracker_of(server, tmp_path, "killed") as third, third.run("pipeline", tmp_path, {}) as run:
        run.metrics({"nll": -1.0}, 33)
    runs = runs_of(third)
    assert set(runs) == {"pipeline", "train"}, "one run per pipeline, whatever the number of processes"
    assert steps_of(third, runs["pipeline"]) == list(range(1, 34))
    assert runs["train"].data.tags["mlflow.parentRunId"] == runs["pipeline"].info.run_id
    assert runs["train"].data.params == {"a": "1"}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}


def test_the_watcher_of_a_process_killed_in_the_outage_leaves_its_end_behind(server: Server, tmp_path: Path) -> None:
    with tracker_of(server, tmp_path, "watched") as tracker:
        run = tracker.client.create_run(tracker.experiment_id, run_name="train", tags={"ual_ray.process": "this:1"})
    server.stop()
    task = {"uri": server.uri, "experiment": "watched", "output": str(tmp_path), "holder": "this:1", "runs": [run.info.run_id]}
    watcher = subprocess.Popen([sys.executable, "-m", "ual_ray.tracking.watcher"], stdin=subprocess.PIPE, text=True)
    assert watcher.stdin is not None
    try:
        watcher.stdin.write(json.dumps(task) + "\n")
        watcher.stdin.close()  # as the kernel does for a process that is gone
        wait_for(lambda: next(tmp_path.glob("mlflow-spool/*/[0-9]*.json")), "the end waits on disk")
    finally:
        watcher.kill()
        watcher.wait()
    server.start()
    done = catch_up(tmp_path)
    assert (done.sent, done.waiting) == (1, 0)
    assert tracker.client.get_run(run.info.run_id).info.status == "KILLED"


def test_a_database_that_is_away_behind_the_server(database: Postgres | str, server: Server, tmp_path: Path) -> None:
    if not isinstance(database, Postgres):
        pytest.skip("no PostgreSQL, and SQLite cannot be away: apt-get install postgresql; pip install psycopg2-binary")
    tracker, timed = tracker_of(server, tmp_path, "database"), Timed()
    with tracker.run("pipeline", tmp_path, {}) as run:
        database.stop()
        run.metrics({"nll": 1.0}, 1)
        for step in range(2, STEPS + 1):
            timed(run.metrics, {"nll": 1.0}, step)
        assert tracker.waiting >= STEPS and timed.slowest < PATIENCE
        database.start()
    assert (tracker.close(90), tracker.failures) == (0, 0)
    runs = runs_of(tracker)
    assert steps_of(tracker, runs["pipeline"]) == list(range(1, STEPS + 1))
    assert runs["pipeline"].info.status == "FINISHED"
