"""Options that commands share, and the configuration read from them.

One grammar: positional arguments name inputs, `--config FILE` the configuration, `KEY=VALUE` overrides use full dotted keys.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ual_ray.errors import UserError
from ual_ray.run.terminal import absolute, is_uri, terminal

if TYPE_CHECKING:
    from ual_ray.config import Config
    from ual_ray.run import StageName
    from ual_ray.run.step import Session


def complete_key(incomplete: str) -> list[str]:
    """List the configuration keys that start with `incomplete`, for the shell's completion."""
    from ual_ray.config import Config
    from ual_ray.config.load import dotted_keys

    return [f"{key}=" for key in dotted_keys(Config().model_dump()) if key.startswith(incomplete)]


ConfigFile = Annotated[
    Path | None, typer.Option("--config", "-c", metavar="FILE", help="Read the configuration from a YAML file.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Override configuration keys, such as train.epochs=3; `ual config` lists them.",
        autocompletion=complete_key,
    ),
]
Data = Annotated[str, typer.Argument(metavar="DATA", help="Rows: file, folder, cloud URI, hub data set, or 'demo'.")]
Out = Annotated[
    str, typer.Option("--out", "-o", metavar="OUT", help="Folder to write to; a path, or a URI such as s3://BUCKET/RUN.")
]
Force = Annotated[bool, typer.Option("--force", help="Re-run from scratch, ignoring cached results.")]
RetryFailed = Annotated[bool, typer.Option("--retry-failed", help="Retry rows that failed with an engine error.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Print the output of Ray, vLLM and transformers.")]
Uri = Annotated[
    str | None,
    typer.Option(
        metavar="URI", help="MLflow tracking URI; needed where it contains a password, which is not kept in the folder."
    ),
]


def output_file(file: Path | None, option: str) -> Path | None:
    """Return the absolute path of a file to write, and make its folder. Raises UserError where it cannot be written."""
    if file is None:
        return None
    from ual_ray.config.files import try_writing

    path = absolute(file)
    try:
        try_writing(path.parent)
        if path.is_dir():
            raise IsADirectoryError("a folder has this name")
    except OSError as error:
        raise UserError(f"{option}: the file cannot be written", got=f"{path}: {error}", fix="give another file") from error
    return path


def load(config_file: Path | None, overrides: Sequence[str] | None, values: Mapping[str, str] | None = None) -> Config:
    """Read and check the configuration, with absolute paths and with the settings of the accelerate file it names.

    values: those of keys that a command takes as arguments, as the text they are, whatever YAML would make of it.
    """
    from ual_ray.config.keys import map_names
    from ual_ray.config.load import load as load_config

    if twice := [key for key in values or {} if any(text.startswith(f"{key}=") for text in overrides or [])]:
        raise UserError(f"{twice[0]} is given twice", got="an argument and an override", fix=f"leave {twice[0]}=... out")
    given = [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in (values or {}).items()]
    config = load_config(config_file, [*(overrides or []), *given])
    check_names(config)
    # Ray's workers have working directories of their own.
    config = map_names(config, _absolute_name, "model", "directory", "file", "data")
    config = map_names(config, lambda name: name if "://" in name else str(absolute(Path(name))), "storage")
    if config.train.accelerate_config is None:
        return config
    from ual_ray.train.accelerate_config import read_accelerate_config

    # Cache keys depend on the file's settings, not on its path.
    train = read_accelerate_config(Path(config.train.accelerate_config), config.train)
    return config.model_copy(update={"train": train.model_copy(update={"accelerate_config": None})})


def check_names(config: Config) -> None:
    """Raise UserError for a path that no file of this machine can have, such as one with `~` of an unknown user."""
    from ual_ray.config.keys import naming

    for key, name in naming(config, "model", "directory", "file", "data", "storage", "output").items():
        try:
            "://" in name or os.stat(Path(name).expanduser())
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(f"{key} cannot be a path here", got=f"{name!r}: {error}", fix=f"give another {key}") from error


def _absolute_name(name: str) -> str:
    from ual_ray.config import DEMO

    return str(absolute(Path(name))) if name != DEMO and Path(name).expanduser().exists() else name


@contextmanager
def session(config: Config, out: str, stage: StageName, *, force: bool, verbose: bool) -> Iterator[tuple[Session, Path]]:
    """Check the output and what the stage needs; yield the session of the single stage, and its folder, which is locked."""
    from ual_ray import preflight
    from ual_ray.mirror.output import open_output
    from ual_ray.run.output import Workspace
    from ual_ray.run.stage_cache import LOG_FILE

    output = open_output(out, "--out")
    preflight.check(config, {stage})
    with output.held() as folder, Workspace(folder).held(), terminal(folder / LOG_FILE, verbose) as console:
        from ual_ray.run.precision import with_inference_dtype
        from ual_ray.run.step import Session
        from ual_ray.tracking.tracker import Tracker

        only = frozenset({stage})
        config = config if stage == "train" else with_inference_dtype(config, folder)
        with Tracker(config.tracking, folder) as tracker:
            session = Session(config, console, tracker, only if force else frozenset(), only)
            with session.cluster:
                yield session, folder
        session.say_failures()


def find(place: str, inside: str, made_by: str) -> Path:
    """Return `place`/`inside`, or that of the newest result in the folder `place`, or else `place` itself; of a URI, a copy.

    Raises UserError when it does not exist, or holds no Parquet file; `made_by` is the command that writes it.
    """
    from ual_ray.run.stage_cache import newest

    path = local(place)
    places = (path, newest(path), *map(newest, (path / "elicit", path / "evaluate")))
    found = next((place / inside for place in places if (place / inside).exists()), path)
    expected = f"output of `{made_by}`"
    if not found.exists():
        raise UserError(
            "the input does not exist", got=path, expected=expected, fix=f"check the path, or run `{made_by}` first"
        )
    if found.is_dir() and not _holds_rows(found):
        raise UserError(
            f"there is no '{inside}' in the folder",
            got=path,
            expected=expected,
            fix=f"give another folder, or run `{made_by}` to its end",
        )
    if not found.is_dir() and found.suffix != ".parquet":
        raise UserError("the input is not a Parquet file", got=path, expected=expected)
    return found


def _holds_rows(folder: Path) -> bool:
    """Whether a folder holds Parquet files and no others, as a reader of all its files needs; hidden ones are not read."""
    parts = (file.relative_to(folder) for file in folder.rglob("*") if file.is_file())
    return {part.suffix for part in parts if not any(name.startswith((".", "_")) for name in part.parts)} == {".parquet"}


def local(place: Path | str, *, with_store: bool = False) -> Path:
    """Return a path as it is; of a URI, a copy that lasts until the command ends."""
    if not is_uri(place):
        return absolute(Path(place))
    from ual_ray.mirror.output import local_input

    return local_input(place, "the input", with_store=with_store)
