"""Submit a pipeline to a Ray cluster through Ray's job server.

What the job needs from here is uploaded with it: the resolved configuration, the data file if it is local, this package.
Everything it writes goes to `output`, which has to be a path that every node of the cluster sees.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from pathlib import Path

from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient
from rich.console import Console

import ual_ray
from ual_ray.config import DEMO, Config, dump, redact
from ual_ray.errors import UserError

CONFIG_FILE = "config.yaml"
# Raylets that share a machine lay the working directory out anew under a running job: the driver must not stand in it.
ENTRYPOINT = f'here="$PWD"; cd / && python -m ual_ray run "$here/{CONFIG_FILE}"'
LARGEST_UPLOAD_MB = 100


def submit(config: Config, address: str, follow: bool, console: Console) -> int:
    """Upload, start, and follow to the end; return 0 when the job succeeded. Raises UserError for what cannot be sent."""
    with tempfile.TemporaryDirectory() as folder:
        packed = pack(config, Path(folder))
        client = _connect(address)
        job = client.submit_job(
            entrypoint=entrypoint(packed),
            runtime_env={"working_dir": folder, "py_modules": [str(Path(ual_ray.__file__).parent)]},
        )
    console.print(f"job {job} submitted to {address}; it writes to {config.output}", highlight=False)
    if not follow:
        return 0
    asyncio.run(_follow(client, job, console))
    status = client.get_job_status(job)
    console.print(f"job {job}: {status.value}", highlight=False)
    return 0 if status == JobStatus.SUCCEEDED else 1


def entrypoint(packed: Config) -> str:
    """Give the job's shell command; data that was uploaded is named by where it lies in the job."""
    path = packed.data.path
    uploaded = path != DEMO and not Path(path).is_absolute()
    return ENTRYPOINT + (f' "data.path=$here/{path}"' if uploaded else "")


def pack(config: Config, folder: Path) -> Config:
    """Write what the job needs into `folder`; return the configuration it will run with.

    Raises UserError for a relative output, and for local paths that the cluster cannot see.
    """
    if not Path(config.output).is_absolute():
        raise UserError(
            "output is not an absolute path: it would be lost with the job's working directory",
            value=config.output,
            legal="an absolute path on storage that every node sees",
            fix="output=/shared/runs/...",
        )
    for key, model in (("model", config.model), ("elicit.model", config.elicit.model)):
        if model.startswith((".", "~")):
            raise UserError(f"{key} is a path of this machine", value=model, legal="a hub name, or a path all nodes see")
    if redact(config) != config:
        raise UserError("the configuration holds a secret, and jobs are not secret", fix="set it in the cluster's environment")
    values = config.model_dump(mode="json")
    if config.data.path != DEMO:
        source = Path(config.data.path).expanduser()
        if not source.is_file() and not source.is_absolute():
            raise UserError("data.path does not exist here, so it cannot be uploaded", value=config.data.path)
    if config.data.path != DEMO and Path(config.data.path).expanduser().is_file():
        source = Path(config.data.path).expanduser()
        if source.stat().st_size > LARGEST_UPLOAD_MB * 2**20:
            raise UserError(
                f"data.path is larger than {LARGEST_UPLOAD_MB} MB",
                value=source,
                fix="put it on shared storage and submit there",
            )
        shutil.copy(source, folder / source.name)
        values["data"]["path"] = source.name
    values["runtime"]["address"] = "auto"
    packed = Config.model_validate(values)
    (folder / CONFIG_FILE).write_text(dump(packed))
    return packed


def _connect(address: str) -> JobSubmissionClient:
    try:
        return JobSubmissionClient(address)
    except (ConnectionError, RuntimeError, AuthenticationError) as error:
        raise UserError(
            "the Ray job server cannot be reached",
            value=f"{address}: {error}",
            legal="http://HOST:8265",
            fix="`bash cluster/local.sh start` starts one here; for a remote one forward its port, and for one with a "
            "token set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN",
        ) from error


async def _follow(client: JobSubmissionClient, job: str, console: Console) -> None:
    async for lines in client.tail_job_logs(job):
        console.print(lines, end="", highlight=False, markup=False)
