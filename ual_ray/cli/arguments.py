"""What the commands share: the configuration from their arguments, the folder they hold, the terminal, errors in words."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ual_ray.config import DEMO
from ual_ray.config import load as settings
from ual_ray.config.keys import map_names
from ual_ray.errors import UserError
from ual_ray.run.console import absolute, terminal

if TYPE_CHECKING:
    from ual_ray.config import Config
    from ual_ray.run.step import Place, Session


def load(arguments: list[str] | None, config_file: Path | None) -> Config:
    """Read the configuration and the accelerate file it names, with paths that hold in every process of this machine."""
    return _with_accelerate_config(_with_absolute_paths(read(arguments, config_file)))


def read(arguments: list[str] | None, config_file: Path | None) -> Config:
    """Read [CONFIG] [KEY=VALUE]...: the first argument without '=' is the file."""
    items = list(arguments or [])
    if items and "=" not in items[0]:
        if config_file is not None:
            raise UserError("two configuration files were given", got=f"{items[0]} and --config {config_file}")
        config_file = Path(items.pop(0))
    return settings.load(config_file, items)


def _with_absolute_paths(config: Config) -> Config:
    """Make local paths absolute: Ray's workers have working directories of their own."""
    config = map_names(config, _absolute_name, "model", "directory", "file", "data")
    return map_names(config, lambda name: name if "://" in name else str(absolute(Path(name))), "storage")


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
    from ual_ray.run.stage_cache import STAGES

    for name in force:
        if name not in STAGES:
            raise UserError("--force names no stage", got=name, expected=", ".join(STAGES))
    return frozenset(force)


@contextmanager
def session(config: Config, out: Path, force: bool, verbose: bool, stage: str) -> Iterator[Session]:
    """Hold the folder, the terminal and the MLflow store for a single stage."""
    from ual_ray.run.output import Workspace
    from ual_ray.run.stage_cache import LOG_FILE

    out = absolute(out)
    with Workspace(out).held(), terminal(out / LOG_FILE, verbose) as console:
        from ual_ray.run.step import Session
        from ual_ray.tracking.tracker import Tracker

        only = frozenset({stage})
        with Tracker(config.tracking, out) as tracker:
            session = Session(config, console, tracker, only if force else frozenset(), only)
            with session.cluster:
                yield session
        session.say_failures()


def at(folder: Path) -> Place:
    """Work in this folder itself, whatever the step's cache key."""
    from ual_ray.run.step import Place

    return Place(absolute(folder), keyed=False)


def find(path: Path, inside: str, made_by: str) -> Path:
    """Find a stage's result in the folder that the stage was given, in its newest part, or take the path itself."""
    from ual_ray.preflight import check_input
    from ual_ray.run.stage_cache import newest

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
        raise UserError(f"there is no '{inside}' in the folder", got=path, expected=f"what `{made_by}` wrote")
    return found


def override(key: str, value: str) -> str:
    """Write key=value so that YAML takes the value as the text it is, whatever characters it holds."""
    return f"{key}={json.dumps(value, ensure_ascii=False)}"
