"""Submit a pipeline to a Ray cluster through Ray's job server.

What the job needs from here is uploaded with it: the resolved configuration, this package, and the files that the
configuration names (data, prompts, labels, accelerate's settings) if they are here. Folders are not: data sets of many files,
models and adapters have to lie where every node of the cluster sees them, as `output` has to, to which all results go.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient
from rich.console import Console

import ual_ray
from ual_ray.config import DEMO, Config, DataConfig
from ual_ray.config.keys import naming, replaced
from ual_ray.config.load import dump
from ual_ray.config.redact import redact
from ual_ray.data.files import ADDRESS, find_files
from ual_ray.errors import UserError
from ual_ray.run.output import CONFIG_FILE

# Raylets that share a machine lay the working directory out anew under a running job: the driver must not stand in it.
ENTRYPOINT = f'here="$PWD"; cd / && python -m ual_ray run "$here/{CONFIG_FILE}"'
LARGEST_UPLOAD_MB = 100
SHARED = "a hub name, or an absolute path that all nodes see"


@dataclass(frozen=True)
class Packed:
    """The configuration that a job will run with, and the files that go with it: their names in the job, by key."""

    config: Config
    uploads: Mapping[str, str]


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


def entrypoint(packed: Packed) -> str:
    """Give the job's shell command; files that were uploaded are named by where they lie in the job."""
    return " ".join([ENTRYPOINT, *(f'"{key}=$here/{name}"' for key, name in packed.uploads.items())])


def pack(config: Config, folder: Path) -> Packed:
    """Write what the job needs into `folder`: the configuration, and the files it names that are here.

    Raises UserError for a relative output, a secret, and for local paths that the cluster cannot see.
    """
    if not Path(config.output).is_absolute():
        raise UserError(
            "output is not an absolute path: it would be lost with the job's working directory",
            got=config.output,
            expected="an absolute path on storage that every node sees",
            fix="output=/shared/runs/...",
        )
    _check_models(config)
    _check_storage(config)
    if redact(config) != config:
        raise UserError("the configuration holds a secret, and jobs are not secret", fix="set it in the cluster's environment")
    uploads = {key: _upload(key, source, folder) for key, source in _files(config).items()}
    packed = Packed(replaced(config, {**uploads, "runtime.address": "auto"}), uploads)
    (folder / CONFIG_FILE).write_text(dump(packed.config), encoding="utf-8")
    return packed


def _check_models(config: Config) -> None:
    """Raise UserError for models of this machine: what is not an absolute path has to be a hub name."""
    for key, name in naming(config, "model").items():
        if name != DEMO and not Path(name).is_absolute() and (name.startswith((".", "~")) or Path(name).is_dir()):
            raise UserError(f"{key} is a path of this machine", got=name, expected=SHARED)
    for key, name in naming(config, "directory").items():
        if not Path(name).is_absolute():
            raise UserError(f"{key} is a path of this machine", got=name, expected="an absolute path that all nodes see")


def _check_storage(config: Config) -> None:
    """Raise UserError for a folder of this machine as the place of checkpoints."""
    storage = config.train.storage
    if storage and not ADDRESS.match(storage) and not Path(storage).is_absolute():
        raise UserError(
            "train.storage is a path of this machine",
            got=storage,
            expected="an address (s3://...), or an absolute path that all nodes see",
        )


def _files(config: Config) -> dict[str, Path]:
    """Find the files that have to be uploaded, by key. Raises UserError for what is neither here nor elsewhere."""
    given = naming(config, "file")
    files = {key: Path(name).expanduser() for key, name in given.items()}
    for key, path in list(files.items()):
        if path.is_file():
            continue
        if not Path(given[key]).is_absolute():
            raise UserError(f"{key} does not exist here, so it cannot be uploaded", got=given[key])
        del files[key]  # the nodes may see it
    data = {f"evaluate.benchmarks.{name}.path": benchmark.data() for name, benchmark in config.evaluate.benchmarks.items()}
    for key, section in {"data.path": config.data, **data}.items():
        if section is not None and (file := _data_file(key, section)) is not None:
            files[key] = file
    return files


def _data_file(key: str, data: DataConfig) -> Path | None:
    """Find the data if it is a file here; addresses, hub names and absolute folders stay where they are."""
    name = data.path
    path = Path(name).expanduser()
    if name == DEMO or ADDRESS.match(name):
        return None
    if path.is_file():
        return path
    if Path(name).is_absolute():
        return None
    if path.is_dir():
        raise UserError(
            f"{key} is a folder of this machine, and folders are not uploaded",
            got=name,
            expected="one file, a hub name, a cloud address, or an absolute path that all nodes see",
            fix="put the folder on shared storage or in a bucket, and give its address",
        )
    if find_files(data) is not None:
        raise UserError(f"{key} does not exist here, so it cannot be uploaded", got=name)
    return None


def _upload(key: str, source: Path, folder: Path) -> str:
    """Copy a file into the job's folder; return its name there, in which a shell finds nothing to do."""
    if source.stat().st_size > LARGEST_UPLOAD_MB * 2**20:
        raise UserError(
            f"{key} is larger than {LARGEST_UPLOAD_MB} MB", got=source, fix="put it on shared storage and submit there"
        )
    name = re.sub(r"[^\w.-]", "_", source.name)
    if name == CONFIG_FILE or (folder / name).exists():
        name = f"{key}-{name}"
    shutil.copy(source, folder / name)
    return name


def _connect(address: str) -> JobSubmissionClient:
    try:
        return JobSubmissionClient(address)
    except (ConnectionError, RuntimeError, AuthenticationError) as error:
        raise UserError(
            "the Ray job server cannot be reached",
            got=f"{address}: {error}",
            expected="http://HOST:8265",
            fix="`bash cluster/local.sh start` starts one here; for a remote one forward its port, and for one with a "
            "token set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN",
        ) from error


async def _follow(client: JobSubmissionClient, job: str, console: Console) -> None:
    async for lines in client.tail_job_logs(job):
        console.print(lines, end="", highlight=False, markup=False)
