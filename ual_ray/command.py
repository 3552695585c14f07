"""What the commands share: the configuration from their arguments, the folder they hold, the terminal, errors in words."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

from ual_ray import settings
from ual_ray.config import DEMO
from ual_ray.errors import UserError
from ual_ray.quiet import make_console, quiet, tail

if TYPE_CHECKING:
    from ual_ray.config import Config
    from ual_ray.steps import Place, Session


def load(arguments: list[str] | None, config_file: Path | None) -> Config:
    """Read the configuration and the accelerate file it names, with paths that hold in every process of this machine."""
    return _with_accelerate_config(_with_absolute_paths(read(arguments, config_file)))


def read(arguments: list[str] | None, config_file: Path | None) -> Config:
    """Read [CONFIG] [KEY=VALUE]...: the first argument without '=' is the file."""
    items = list(arguments or [])
    if items and "=" not in items[0]:
        if config_file is not None:
            raise UserError("two configuration files were given", value=f"{items[0]} and --config {config_file}")
        config_file = Path(items.pop(0))
    return settings.load(config_file, items)


def _with_absolute_paths(config: Config) -> Config:
    """Ray's workers have working directories of their own: local models and files get paths that hold there too."""
    values = config.model_dump()
    elicit, judge, data, train = (values[name] for name in ("elicit", "judge", "data", "train"))
    for section, keys in (
        (values, ("model",)),
        (elicit, ("model", "adapter", "embedding_model", "templates", "calibrate_with")),
        (judge, ("model", "templates")),
        (data, ("path",)),
        *((benchmark, ("path",)) for benchmark in values["evaluate"]["benchmarks"].values()),
    ):
        for key in keys:
            section[key] = _absolute_name(section[key]) if section[key] else section[key]
    if train["storage"] and "://" not in train["storage"]:
        train["storage"] = str(absolute(Path(train["storage"])))
    return settings.validate(values)


def _with_accelerate_config(config: Config) -> Config:
    """Put the settings of train.accelerate_config in the place of its name: what it says counts, not where it lies."""
    if config.train.accelerate_config is None:
        return config
    from ual_ray.train.accelerate_config import read_accelerate_config

    train = read_accelerate_config(Path(config.train.accelerate_config).expanduser(), config.train)
    return config.model_copy(update={"train": train.model_copy(update={"accelerate_config": None})})


def _absolute_name(name: str) -> str:
    return str(absolute(Path(name))) if name != DEMO and Path(name).expanduser().exists() else name


def check_stages(force: list[str]) -> frozenset[str]:
    """Take names of stages. Raises UserError for one that there is not."""
    from ual_ray.workspace import STAGES

    for name in force:
        if name not in STAGES:
            raise UserError("--force names no stage", value=name, legal=", ".join(STAGES))
    return frozenset(force)


@contextmanager
def session(config: Config, out: Path, force: bool, verbose: bool, stage: str) -> Iterator[Session]:
    """Hold the folder, the terminal and the MLflow store for a single stage."""
    from ual_ray.workspace import LOG_FILE, Workspace

    out = absolute(out)
    with Workspace(out).held(), terminal(out / LOG_FILE, verbose) as console:
        from ual_ray.steps import Session
        from ual_ray.tracking import Tracker

        only = frozenset({stage})
        with Tracker(config.tracking, out) as tracker:
            session = Session(config, console, tracker, only if force else frozenset(), only)
            with session.cluster:
                yield session
        session.say_failures()


@contextmanager
def terminal(log_file: Path, verbose: bool) -> Iterator[Console]:
    """Give a console; keep other output in the log unless it is asked for; explain a crash by the log's last lines."""
    if verbose:
        yield make_console()
        return
    failure: BaseException | None = None
    with quiet(log_file) as console:
        console.print(f"log of Ray, vLLM and transformers: {short(log_file)}", highlight=False)
        try:
            yield console
        except (UserError, KeyboardInterrupt, SystemExit):
            raise
        except Exception as error:
            import logging

            logging.getLogger(__name__).exception("the command failed")
            failure = error
    if failure is not None:
        if (user_error := _user_error_in(failure)) is not None:
            raise user_error
        Console(stderr=True).print(
            f"[bold red]failed:[/bold red] {type(failure).__name__}: {escape(failure)[:500]}\n\n"
            f"[dim]{escape(tail(log_file))}[/dim]\n\nthe whole log: {log_file}",
            highlight=False,
        )
        raise typer.Exit(1) from failure


def _user_error_in(error: BaseException) -> UserError | None:
    """Find the user's mistake that a Ray worker reported, wrapped in Ray's own errors."""
    seen: Any = error
    while seen is not None:
        if isinstance(seen, UserError):
            return UserError(str(seen).rsplit("UserError: ", 1)[-1])
        workers = getattr(seen, "worker_failures", None) or {}
        seen = next(iter(workers.values()), None) or getattr(seen, "cause", None) or seen.__cause__
    return None


def at(folder: Path) -> Place:
    """Work in this folder, whatever the digest of the inputs."""
    return lambda _: absolute(folder)


def absolute(path: Path) -> Path:
    """Name a path so that Ray's workers, which may have another working directory, find it too."""
    return path.expanduser().absolute()


def short(path: Path) -> Path:
    """Name a path from here, where it lies below."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def find(path: Path, inside: str, made_by: str) -> Path:
    """Find a stage's result in the folder that the stage was given, in its newest part, or take the path itself."""
    from ual_ray.preflight import check_input
    from ual_ray.workspace import newest

    path = absolute(path)
    found = next(
        (
            place / inside
            for place in (path, newest(path), *map(newest, (path / "elicit", path / "evaluate")))
            if (place / inside).exists()
        ),
        path,
    )
    check_input(found, made_by)
    if found.is_dir() and not any(found.glob("**/*.parquet")):
        raise UserError(f"there is no '{inside}' in the folder", value=path, legal=f"what `{made_by}` wrote")
    return found


def override(key: str, value: str) -> str:
    """Write key=value so that YAML takes the value as the text it is, whatever characters it holds."""
    return f"{key}={json.dumps(value, ensure_ascii=False)}"


def escape(text: object) -> str:
    """Keep rich from reading brackets of a text as its markup."""
    from rich.markup import escape

    return escape(str(text))
