"""Ray's job server: reach it, and find, follow, stop and describe its jobs.

Errors of the server become UserErrors with the job's id; a server that does not answer is one after CONNECT_SECONDS.
"""

import asyncio
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from urllib.parse import urlsplit

import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient
from rich.console import Console

from ual_ray.config.redact import hidden_values, hide, redact_uri
from ual_ray.errors import UserError
from ual_ray.formatting import MISSING, duration, shorten_list

CONNECT_SECONDS = 10.0
STOP_SECONDS = 60.0
POLL_SECONDS = 0.5
# Ray's client takes these in place of the address that it is given.
ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
# Loggers of Ray's client, which tell of every upload and connection.
CHATTY = ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk", "ray._private.runtime_env.packaging")
EXPECTED_ADDRESS = "http://HOST:8265"


def connect(address: str) -> JobSubmissionClient:
    """Connect to the job server at a URL. Raises UserError within seconds for one that does not answer as such."""
    try:
        where = urlsplit(address)
    except ValueError:  # such as half of an IPv6 address
        where = urlsplit("")
    if where.scheme not in ("http", "https") or not where.hostname:
        raise UserError("--address is not the URL of a Ray job server", got=redact_uri(address), expected=EXPECTED_ADDRESS)
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    set_aside = {name: os.environ.pop(name) for name in ADDRESS_VARIABLES if name in os.environ}
    try:
        # Ray's own requests have no timeout. Any answer is one, such as that of a server which wants a token.
        requests.get(f"{address.rstrip('/')}/api/version", timeout=CONNECT_SECONDS)
        return JobSubmissionClient(address)
    except (OSError, ValueError, KeyError, RuntimeError, AuthenticationError) as error:  # requests' errors are OSErrors
        raise UserError(
            "the Ray job server is unreachable",
            got=f"{redact_uri(address)}: {error}",
            expected=EXPECTED_ADDRESS,
            fix="start a local cluster (cluster/local.sh start), or forward the port of a remote one; for a cluster with token "
            "authentication set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN",
        ) from error
    finally:
        os.environ.update(set_aside)


def submitted(client: JobSubmissionClient) -> list[JobDetails]:
    """List the jobs that were submitted, the oldest first. Drivers that connected themselves are left out."""
    with _explained("its jobs cannot be listed"):
        return sorted((job for job in client.list_jobs() if job.submission_id), key=lambda job: job.start_time or 0)


def find(client: JobSubmissionClient, job: str) -> JobDetails:
    """Return a job by its submission id. Raises UserError, with the ids there are, for another one."""
    jobs = {found.submission_id: found for found in submitted(client)}
    if job not in jobs:
        ids = shorten_list([*filter(None, reversed(jobs))])
        raise UserError("there is no such job", got=job, expected=ids or "an id that `ual jobs list` prints; it has none yet")
    return jobs[job]


def follow(client: JobSubmissionClient, job: str, console: Console) -> JobStatus:
    """Print a job's log until the job ends; return its last status. The log goes on where a dropped connection left it."""
    try:
        return asyncio.run(_follow(client, job, console))
    except KeyboardInterrupt:
        console.print(
            f"\njob {job} goes on; `ual jobs logs {job} --follow` shows it, `ual jobs stop {job}` ends it",
            markup=False,
            highlight=False,
        )
        raise


async def _follow(client: JobSubmissionClient, job: str, console: Console) -> JobStatus:
    printed = 0
    lost_at: float | None = None
    while True:
        seen = 0
        try:
            async for lines in client.tail_job_logs(job):
                seen += len(lines)
                if seen > printed:
                    console.print(lines[-(seen - printed) :], end="", highlight=False, markup=False)
                    printed = seen
                lost_at = None
            status = JobStatus(client.get_job_status(job))
        except Exception as error:  # aiohttp, behind the client, has errors of many types
            lost_at = lost_at or time.monotonic()
            if time.monotonic() > lost_at + CONNECT_SECONDS:
                raise UserError(
                    "the connection to the Ray job server was lost; the job may still run",
                    got=error,
                    fix=f"`ual jobs status {job}`, once the server answers",
                ) from error
        else:
            lost_at = None
            if status.is_terminal():
                return status
        await asyncio.sleep(POLL_SECONDS)


def stop(client: JobSubmissionClient, job: str) -> JobDetails:
    """End a job and wait until it has ended; one that has ended stays as it is. Raises UserError after STOP_SECONDS."""
    find(client, job)
    with _explained(f"job {job} cannot be stopped"):
        client.stop_job(job)
    deadline = time.monotonic() + STOP_SECONDS
    while not (found := find(client, job)).status.is_terminal():
        if time.monotonic() > deadline:
            raise UserError(f"job {job} has not ended in {STOP_SECONDS:g} s", got=found.status.value, fix="stop it again")
        time.sleep(POLL_SECONDS)
    return found


def logs(client: JobSubmissionClient, job: str) -> str:
    """Return what a job has printed until now."""
    find(client, job)
    with _explained(f"the log of job {job} cannot be read"):
        return client.get_job_logs(job)


def describe(job: JobDetails) -> list[tuple[str, str]]:
    """Return a job's facts, a name and a text each; of its environment variables the names alone."""
    environment = (job.runtime_env or {}).get("env_vars") or {}
    facts = [
        ("job", job.submission_id or MISSING),
        ("status", JobStatus(job.status).value),
        ("started", _when(job.start_time)),
        ("took", took(job)),
        *sorted((job.metadata or {}).items()),
        ("environment", ", ".join(sorted(environment)) or MISSING),
        ("message", job.message or MISSING),
    ]
    return [(name, redact_uri(hide(text, hidden_values(environment)))) for name, text in facts]


def took(job: JobDetails) -> str:
    """Format how long a job has run."""
    if not job.start_time:
        return MISSING
    return duration((job.end_time or time.time() * 1000) / 1000 - job.start_time / 1000)


def _when(milliseconds: int | None) -> str:
    if not milliseconds:
        return MISSING
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turn errors of the server into a UserError."""
    try:
        yield
    except (OSError, RuntimeError, AuthenticationError) as error:
        raise UserError(
            f"the Ray job server refused or dropped a request: {what}",
            got=error,
            fix="check RAY_AUTH_TOKEN and that the cluster runs, then run the command again",
        ) from error
