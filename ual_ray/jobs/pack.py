"""What a job takes along: its configuration, this package, and the local files that the configuration names.

Files are data, prompts, labels and accelerate's settings. Folders are not uploaded: data sets of several files, models
and adapters must be on storage that every node of the cluster can access, and so must the output folder unless it is a URI.
"""

import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ual_ray.columns import digest
from ual_ray.config import DEMO, Config, DataConfig
from ual_ray.config.keys import naming, replaced
from ual_ray.config.load import dump
from ual_ray.config.redact import redact
from ual_ray.data.files import ADDRESS, find_files
from ual_ray.errors import UserError
from ual_ray.parquet import file_digest
from ual_ray.run.output import CONFIG_FILE

# Raylets that share a machine re-create the working directory under a running job: the driver must not run in it.
ENTRYPOINT = f'here="$PWD"; cd / && python -m ual_ray run --config "$here/{CONFIG_FILE}"'
LARGEST_UPLOAD_MB = 100
SHARED_PATH = "an absolute path on storage that all nodes can access"


@dataclass(frozen=True)
class Packed:
    """The configuration of a job, and the names that uploaded files have in the job, by configuration key.

    `digest`: equal for equal configurations and equal contents of the uploaded files.
    """

    config: Config
    uploads: Mapping[str, str]
    digest: str


def entrypoint(packed: Packed) -> str:
    """Return the job's shell command, with the uploaded files as overrides."""
    return " ".join([ENTRYPOINT, *(f'"{key}=$here/{name}"' for key, name in packed.uploads.items())])


def pack(config: Config, folder: Path) -> Packed:
    """Write the configuration and the local files that it names into `folder`.

    Raises UserError for a relative output, a secret, and local paths that the cluster cannot access.
    """
    if not ADDRESS.match(config.output) and not Path(config.output).is_absolute():
        raise UserError(
            "output is not an absolute path: it would be lost with the job's working directory",
            got=config.output,
            expected=f"{SHARED_PATH}, or a URI (s3://...)",
            fix="output=/shared/runs/...",
        )
    _check_paths(config)
    if secrets := [*_secrets(config.model_dump(mode="json"), redact(config).model_dump(mode="json"))]:
        raise UserError(
            "the configuration contains a secret, which the job server would show",
            got=", ".join(secrets),
            expected="a configuration without passwords, tokens and keys",
            fix="leave it out, and set its environment variable on the cluster, or here with --env NAME",
        )
    files = _files(config)
    _check_sizes(files)
    uploads = {key: _upload(key, source, folder) for key, source in files.items()}
    sent = replaced(config, {**uploads, "runtime.address": "auto"})
    contents = {key: file_digest(folder / name) for key, name in uploads.items()}
    (folder / CONFIG_FILE).write_text(dump(sent), encoding="utf-8")
    return Packed(sent, uploads, digest({"config": sent.model_dump(mode="json"), "files": contents}))


def _secrets(plain: Mapping[str, Any], masked: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys whose values are masked, with what is shown of them."""
    for name, value in plain.items():
        if isinstance(value, dict):
            yield from _secrets(value, masked[name], f"{prefix}{name}.")
        elif value != masked[name]:
            yield f"{prefix}{name}={masked[name]}"


def _check_sizes(files: Mapping[str, Path]) -> None:
    """Raise UserError for files that are too large together; they are counted before anything is copied or sent."""
    sizes = {key: path.stat().st_size / 2**20 for key, path in files.items()}
    if sum(sizes.values()) > LARGEST_UPLOAD_MB:
        largest = sorted(sizes, key=sizes.__getitem__, reverse=True)
        raise UserError(
            f"{largest[0]} is too large to be uploaded",
            got=", ".join(f"{key}={files[key]}: {sizes[key]:,.1f} MB" for key in largest),
            expected=f"at most {LARGEST_UPLOAD_MB} MB in all",
            fix=f"copy it to shared storage and give {SHARED_PATH}, or a cloud URI",
        )


def _check_paths(config: Config) -> None:
    """Raise UserError for models, adapters and checkpoint storage given by a relative path."""
    for key, name in naming(config, "model").items():
        own = name.startswith((".", "~")) or name.count("/") > 1 or Path(name).is_dir()
        if name != DEMO and not Path(name).is_absolute() and own:
            raise UserError(
                f"{key} is a path of this machine, which the cluster does not have",
                got=name,
                expected=f"a hub name, or {SHARED_PATH}",
            )
    if (uri := config.tracking.uri or "").startswith("sqlite:") and not uri.startswith("sqlite:////"):
        raise UserError(
            "tracking.uri is in the job's working directory, with which it would be lost",
            got=uri,
            expected="http://HOST:PORT, null for a store in the output, or sqlite:////SHARED/FILE.db",
        )
    stores = {key: name for key, name in naming(config, "storage").items() if not ADDRESS.match(name)}
    for key, name in {**naming(config, "directory"), **stores}.items():
        if not Path(name).is_absolute():
            expected = f"{'a URI (s3://...), or ' if key in stores else ''}{SHARED_PATH}"
            raise UserError(f"{key} is a path of this machine, which the cluster does not have", got=name, expected=expected)


def _files(config: Config) -> dict[str, Path]:
    """Return the local files to upload, by key. Raises UserError for a relative path that does not exist."""
    given = naming(config, "file")
    files = {key: Path(name).expanduser() for key, name in given.items()}
    for key, path in list(files.items()):
        if path.is_file():
            continue
        if not Path(given[key]).is_absolute():
            raise UserError(
                f"{key} does not exist on this machine, so it cannot be uploaded",
                got=given[key],
                expected=f"a file of this machine, or {SHARED_PATH}",
            )
        del files[key]  # it may exist on the nodes
    data = {f"evaluate.benchmarks.{name}.path": benchmark.data() for name, benchmark in config.evaluate.benchmarks.items()}
    for key, section in {"data.path": config.data, **data}.items():
        if section is not None and (file := _data_file(key, section)) is not None:
            files[key] = file
    return files


def _data_file(key: str, data: DataConfig) -> Path | None:
    """Return the data if it is a local file; None for URIs, hub names and absolute folders, which are not uploaded."""
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
            expected=f"one file, a hub name, a cloud URI, or {SHARED_PATH}",
            fix="copy the folder to shared storage or to a bucket",
        )
    if find_files(data) is not None:
        raise UserError(
            f"{key} does not exist on this machine, so it cannot be uploaded",
            got=name,
            expected=f"a file of this machine, a hub name, a cloud URI, or {SHARED_PATH}",
        )
    return None


def _upload(key: str, source: Path, folder: Path) -> str:
    """Copy a file into the job's folder; return its name there, without characters that a shell interprets."""
    name = re.sub(r"[^\w.-]", "_", source.name)
    if name == CONFIG_FILE or (folder / name).exists():
        name = f"{key}-{name}"
    shutil.copy(source, folder / name)
    return name
