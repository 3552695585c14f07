"""The job server: reached or refused in seconds, jobs found, followed over dropped connections, stopped and described."""

from __future__ import annotations

import asyncio
import http.server
import inspect
import io
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator

import pytest
from job_server import JobServer, job_details
from ray.job_submission import JobStatus, JobSubmissionClient
from rich.console import Console

from ual_ray.errors import UserError
from ual_ray.jobs import server as module


def follow(jobs: JobServer, job: str) -> tuple[JobStatus, str]:
    out = io.StringIO()
    return module.follow(jobs, job, Console(file=out, width=200)), out.getvalue()  # type: ignore[arg-type]


def test_the_stand_in_keeps_the_contract_of_rays_client() -> None:
    names = {name for name in vars(JobServer) if not name.startswith("_")} - {"end"}
    assert names == {"list_jobs", "submit_job", "get_job_status", "get_job_logs", "tail_job_logs", "stop_job"}
    for name in names:
        ours, theirs = (inspect.signature(getattr(owner, name)).parameters for owner in (JobServer, JobSubmissionClient))
        assert ours.keys() <= theirs.keys(), name
        assert all(ours[key].kind == theirs[key].kind for key in ours), name


@pytest.mark.parametrize("address", ["127.0.0.1:8265", "ray://127.0.0.1:10001", "auto", "", "http://", "https://[::1"])
def test_only_a_url_is_the_address_of_a_job_server(address: str) -> None:
    with pytest.raises(UserError, match="(?s)--address.*http://HOST:8265"):
        module.connect(address)


def test_a_dead_address_is_an_error_in_seconds_whatever_ray_address_says(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("RAY_ADDRESS", "auto")
        start = time.monotonic()
        with pytest.raises(UserError, match="(?s)unreachable.*http://127.0.0.1:.*local.sh start"):
            module.connect(f"http://127.0.0.1:{closed.getsockname()[1]}")
        assert time.monotonic() - start < 5
        import os

        assert os.environ["RAY_ADDRESS"] == "auto"


def test_a_server_that_never_answers_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CONNECT_SECONDS", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(UserError, match="(?s)unreachable.*timed out"):
            module.connect(f"http://127.0.0.1:{silent.getsockname()[1]}")


def test_the_loggers_that_are_made_quiet_are_rays() -> None:
    from ray._private.runtime_env import packaging
    from ray.dashboard.modules import dashboard_sdk
    from ray.dashboard.modules.job import sdk

    assert {one.__name__ for one in (packaging, dashboard_sdk, sdk)} == set(module.CHATTY)
    assert dashboard_sdk.logger.name == module.CHATTY[0] and sdk.logger.name == module.CHATTY[1]


@pytest.fixture
def other_server() -> Iterator[str]:
    """Serve pages that are not Ray's."""

    class Pages(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>welcome</html>")

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Pages) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_another_server_is_refused_and_the_password_of_its_address_hidden(other_server: str) -> None:
    with pytest.raises(UserError, match=r"unreachable") as raised:
        module.connect(other_server.replace("http://", "http://me:planted@"))
    assert "planted" not in str(raised.value)


def test_jobs_are_listed_by_age_without_drivers() -> None:
    jobs = JobServer(job_details("late", "RUNNING", start=3), job_details("early", "FAILED", start=1))
    assert [job.submission_id for job in module.submitted(jobs)] == ["early", "late"]  # type: ignore[arg-type]


def test_an_unknown_job_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"(?s)no such job.*ual-x.*early"):
        module.find(JobServer(job_details("early", "FAILED", start=1)), "ual-x")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="expected: an id that `ual jobs list` prints; it has none yet"):
        module.find(JobServer(), "ual-x")  # type: ignore[arg-type]


def test_a_log_goes_on_where_a_dropped_connection_left_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL_SECONDS", 0.0)
    jobs = JobServer(job_details("ual-x", "RUNNING"), ends=("RUNNING", "FAILED"), log="first line\nsecond\n")
    jobs.drop_after = 14
    assert follow(jobs, "ual-x") == (JobStatus.FAILED, "first line\nsecond\n")


@pytest.mark.slow
def test_a_connection_that_drops_after_a_long_silence_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CONNECT_SECONDS", 0.2)
    monkeypatch.setattr(module, "POLL_SECONDS", 0.0)
    jobs = JobServer(job_details("ual-x", "RUNNING"))
    tail = jobs.tail_job_logs

    async def silent(job_id: str) -> AsyncIterator[str]:
        jobs.tail_job_logs = tail  # type: ignore[method-assign]
        yield "one\n"
        await asyncio.sleep(0.5)
        raise RuntimeError("WebSocket connection closed unexpectedly with close code 1006")

    jobs.tail_job_logs = silent  # type: ignore[method-assign]
    assert follow(jobs, "ual-x") == (JobStatus.SUCCEEDED, "one\ntwo\n")


def test_a_lost_server_is_an_error_that_says_the_job_may_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(module, "CONNECT_SECONDS", 0.05)
    jobs = JobServer(job_details("ual-x", "RUNNING"))

    async def gone(job_id: str) -> None:
        raise ConnectionRefusedError("nobody listens")
        yield

    jobs.tail_job_logs = gone  # type: ignore[assignment]
    with pytest.raises(UserError, match=r"(?s)may still run.*nobody listens.*ual jobs status ual-x"):
        follow(jobs, "ual-x")


def test_ctrl_c_leaves_the_job_running() -> None:
    jobs, out = JobServer(job_details("ual-x", "RUNNING")), io.StringIO()

    async def interrupted(job_id: str) -> None:
        raise KeyboardInterrupt
        yield

    jobs.tail_job_logs = interrupted  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        module.follow(jobs, "ual-x", Console(file=out, width=200))  # type: ignore[arg-type]
    assert "ual jobs stop ual-x" in out.getvalue() and jobs.jobs["ual-x"].status == JobStatus.RUNNING


def test_a_job_is_stopped_once() -> None:
    jobs = JobServer(job_details("ual-x", "RUNNING"), job_details("ual-y", "SUCCEEDED"))
    assert module.stop(jobs, "ual-x").status == JobStatus.STOPPED  # type: ignore[arg-type]
    assert module.stop(jobs, "ual-y").status == JobStatus.SUCCEEDED  # type: ignore[arg-type]


def test_a_job_that_does_not_end_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(module, "STOP_SECONDS", 0.05)
    jobs = JobServer(job_details("ual-x", "RUNNING"))
    jobs.end = lambda *_: None  # type: ignore[assignment]
    with pytest.raises(UserError, match="(?s)ual-x has not ended.*RUNNING"):
        module.stop(jobs, "ual-x")  # type: ignore[arg-type]


def test_a_job_is_described_by_the_names_of_its_variables_alone() -> None:
    job = job_details(
        "ual-x",
        "FAILED",
        start=1_700_000_000_000,
        end_time=1_700_000_090_000,
        metadata={"output": "/shared/out"},
        runtime_env={"env_vars": {"HF_TOKEN": "planted", "A": ""}},
        message="exit code 1; the last lines: token planted, http://me:pw@host refused",
    )
    facts = dict(module.describe(job))
    assert facts == {
        "job": "ual-x",
        "status": "FAILED",
        "started": "2023-11-14 22:13:20 UTC",
        "took": "1 min 30 s",
        "output": "/shared/out",
        "environment": "A, HF_TOKEN",
        "message": "exit code 1; the last lines: token ***, http://***@host refused",
    }


def test_values_of_variables_that_are_words_garble_nothing() -> None:
    values = {"OMP_NUM_THREADS": "1", "MODE": "FAILED", "HF_TOKEN": "planted1"}
    job = job_details("ual-0123", "FAILED", runtime_env={"env_vars": values}, message="exit code 1 with planted1")
    facts = dict(module.describe(job))
    assert (facts["job"], facts["status"], facts["message"]) == ("ual-0123", "FAILED", "exit code 1 with ***")


def test_a_refusing_server_is_a_user_error() -> None:
    jobs = JobServer(job_details("ual-x", "RUNNING"))

    def refuse() -> None:
        raise RuntimeError("Request failed with status code 500: no.")

    jobs.list_jobs = refuse  # type: ignore[assignment, method-assign]
    with pytest.raises(UserError, match="(?s)cannot be listed.*status code 500"):
        module.submitted(jobs)  # type: ignore[arg-type]
