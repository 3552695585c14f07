"""The output folder: whose it is, who works in it, and which stages are finished.

    output/
      config.yaml                 the configuration of the last run
      owner.json                  the data and the model this folder belongs to
      ual.log                     what Ray, vLLM and transformers had to say
      <stage>/<digest>/           one folder per stage and per digest of its inputs and settings
        done.json                 written last: the stage's figures

A stage whose digest has a done.json is not done again. One that was interrupted finds its folder as it left it.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ual_ray.config import Config, dump
from ual_ray.errors import UserError
from ual_ray.records import SCHEMA_VERSION, digest

CONFIG_FILE = "config.yaml"
OWNER_FILE = "owner.json"
LOG_FILE = "ual.log"
DONE_FILE = "done.json"
LOCK_FILE = ".lock"


@dataclass(frozen=True)
class Done:
    """A finished stage: where it is, what it found, how long it took, and whether it was finished before."""

    folder: Path
    digest: str
    figures: dict[str, Any]
    seconds: float
    reused: bool


class Workspace:
    """One output folder, held by one process at a time."""

    def __init__(self, root: Path, force: frozenset[str] = frozenset()) -> None:
        """Take the folder; stages named in `force` are done again."""
        self.root = root
        self._force = force

    @property
    def log_file(self) -> Path:
        """Where the chatter goes."""
        return self.root / LOG_FILE

    def check_owner(self, config: Config) -> None:
        """Raise UserError when the folder belongs to other data or another model, or holds somebody's files."""
        owner = _owner(config)
        path = self.root / OWNER_FILE
        if path.is_file():
            found = json.loads(path.read_text())
            if found != owner:
                changed = {key: f"{found.get(key)!r} there, {owner[key]!r} now" for key in owner if found.get(key) != owner[key]}
                raise UserError(
                    f"the output directory {self.root} belongs to another configuration",
                    value="; ".join(f"{key}: {text}" for key, text in changed.items()),
                    fix="give another output=..., or remove the directory",
                )
        elif self.root.exists() and not self.root.is_dir():
            raise UserError("output is not a directory", value=self.root)
        elif self.root.is_dir() and any(file.name not in (LOG_FILE, LOCK_FILE) for file in self.root.iterdir()):
            raise UserError(
                f"the output directory {self.root} is not empty and was not made by ual",
                value=sorted(file.name for file in self.root.iterdir())[:5],
                fix="give another output=...",
            )

    def claim(self, config: Config) -> None:
        """Write down whose folder this is, and the configuration in force."""
        self.root.mkdir(parents=True, exist_ok=True)
        _write_json(self.root / OWNER_FILE, _owner(config))
        (self.root / CONFIG_FILE).write_text(dump(config))

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other runs out while the block runs. Raises UserError when one is in."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock = FileLock(str(self.root / LOCK_FILE), timeout=0)
            lock.acquire()
        except Timeout as error:
            raise UserError(f"another run is working in {self.root}", fix="wait for it, or give another output=...") from error
        except OSError as error:
            raise UserError(f"output {self.root} cannot be written", value=error, legal="a writable directory") from error
        try:
            yield
        finally:
            lock.release()

    def run(self, stage: str, inputs: dict[str, Any], work: Callable[[Path], dict[str, Any]]) -> Done:
        """Do a stage unless it is done: `work(folder)` returns its figures.

        `stage` may have parts ('arms/ual/train'); `--force` names the last. `inputs` holds the digests of what the stage
        reads and the settings that shape its result.
        """
        key = digest({"schema": SCHEMA_VERSION, **inputs})
        folder = self.root / stage / key
        done = folder / DONE_FILE
        if stage.rsplit("/", 1)[-1] in self._force:
            shutil.rmtree(folder, ignore_errors=True)
        if done.is_file():
            content = json.loads(done.read_text())
            return Done(folder, key, content["figures"], content["seconds"], reused=True)
        folder.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        figures = work(folder)
        seconds = time.monotonic() - started
        _write_json(done, {"figures": figures, "seconds": seconds, "inputs": inputs})
        return Done(folder, key, figures, seconds, reused=False)


def _owner(config: Config) -> dict[str, Any]:
    path = config.data.path
    absolute = path if path == Config().data.path else os.path.abspath(os.path.expanduser(path))
    return {"data.path": absolute, "model": config.model}


def _write_json(path: Path, content: Any) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(content, indent=2, default=str))
    part.replace(path)
