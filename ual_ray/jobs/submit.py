"""Submit a configuration once: its job's id follows from its digest, and the same configuration follows its running job.

    ual-DIGEST, ual-DIGEST-2, ...

The number counts the tries of one configuration. Every stage is idempotent, so that a later try continues the one before.
Environment variables that a job gets by name have the values that they have where it is submitted.
"""

import os
import re
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient
from rich.console import Console

import ual_ray
from ual_ray.config import Config
from ual_ray.config.redact import MASK, hidden_values, hide, redact_uri
from ual_ray.errors import UserError
from ual_ray.jobs.pack import Packed, entrypoint, pack
from ual_ray.jobs.server import connect, follow, submitted, took

# Of the folders that are uploaded: caches of Python, and of tools.
EXCLUDES = ["__pycache__/", "*.pyc", ".*_cache/"]
VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def submit(
    config: Config, address: str, console: Console, *, environment: Sequence[str] = (), new: bool = False, wait: bool = True
) -> int:
    """Submit a configuration, or find the job that it has; `wait`: print the log until the job ends. Returns the exit code.

    environment: names of variables whose values the job gets. new: another job, although the newest one has ended.
    Raises UserError for a configuration that cannot be submitted, for an unreachable job server, and for a `new` job while
    another one with this configuration runs.
    """
    values = read_environment(environment)
    with tempfile.TemporaryDirectory() as folder:
        packed = pack(config, Path(folder))
        client = connect(address)
        latest = newest(submitted(client), packed.digest)
        if latest is None or (new and latest.status.is_terminal()):
            job = next_id(packed.digest, latest)
            latest = _send(client, job, packed, Path(folder), values)
            if latest is None:
                told = f"job {job} submitted to {redact_uri(address)}; it writes to {config.output}"
                console.print(told, highlight=False, markup=False)
                return _wait(client, job, console) if wait else 0
    job = str(latest.submission_id)
    if latest.status.is_terminal():
        ended = f"job {job} has this configuration and files, and ended: {latest.status.value}, after {took(latest)}."
        console.print(
            f"{ended} Submit another one with --new; it continues from {config.output}", highlight=False, markup=False
        )
        return int(latest.status != JobStatus.SUCCEEDED)
    if new:
        raise UserError(
            "--new: a job with this configuration still runs, and would write to the same output",
            got=f"{job}: {latest.status.value}",
            fix=f"wait for it, `ual jobs stop {job}`, or give another output=...",
        )
    console.print(
        f"job {job} has this configuration and files, and runs already: {latest.status.value}", highlight=False, markup=False
    )
    return _wait(client, job, console) if wait else 0


def newest(jobs: Sequence[JobDetails], digest: str) -> JobDetails | None:
    """Return the last try of a configuration among jobs; None if there is none."""
    tries = [(_try_of(str(job.submission_id), digest), job) for job in jobs]
    return max(((number, job) for number, job in tries if number), key=lambda pair: pair[0], default=(0, None))[1]


def next_id(digest: str, latest: JobDetails | None) -> str:
    """Return the id of the try after `latest`."""
    number = 1 + (_try_of(str(latest.submission_id), digest) if latest else 0)
    return f"ual-{digest}" if number == 1 else f"ual-{digest}-{number}"


def _try_of(job: str, digest: str) -> int:
    """Return the number of a job among the tries of a configuration, from 1; 0 if it is not one of them."""
    found = re.fullmatch(rf"ual-{digest}(?:-(\d+))?", job)
    return int(found[1] or 1) if found else 0


def _send(client: JobSubmissionClient, job: str, packed: Packed, folder: Path, values: dict[str, str]) -> JobDetails | None:
    """Submit a job; return the one that another process has submitted under this id meanwhile, or None."""
    runtime = {"working_dir": str(folder), "py_modules": [str(Path(ual_ray.__file__).parent)], "excludes": EXCLUDES}
    try:
        client.submit_job(
            submission_id=job,
            entrypoint=entrypoint(packed),
            runtime_env=runtime | ({"env_vars": values} if values else {}),
            metadata={"output": packed.config.output, "ual_ray": ual_ray.__version__},
        )
    except (OSError, RuntimeError, ValueError, AuthenticationError) as error:
        if (other := newest(submitted(client), packed.digest)) is not None and other.submission_id == job:
            return other
        raise UserError(
            "the Ray job server did not take the job",
            got=hide(str(error), hidden_values(values)),
            fix="check RAY_AUTH_TOKEN and that the cluster runs, then run the command again",
        ) from None
    return None


def _wait(client: JobSubmissionClient, job: str, console: Console) -> int:
    status = follow(client, job, console)
    console.print(f"job {job}: {status.value}", highlight=False, markup=False)
    return int(status != JobStatus.SUCCEEDED)


def read_environment(names: Iterable[str]) -> dict[str, str]:
    """Return the values of environment variables. Raises UserError, which shows no value, for what is not set or not a name."""
    values = {}
    for given in names:
        name = given.split("=")[0]
        if given != name or not VARIABLE_NAME.fullmatch(name):
            raise UserError(
                "--env takes the name of an environment variable, without a value",
                got=f"{name}={MASK}" if given != name else given,
                expected="such as --env HF_TOKEN",
                fix="set the variable in your shell; a value on the command line would be seen by others",
            )
        if not os.environ.get(name):
            raise UserError(
                "--env names a variable that is not set here", got=name, fix=f"export {name}=..., or leave --env {name} out"
            )
        values[name] = os.environ[name]
    return values
