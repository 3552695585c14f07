"""The output folder: whose it is, who works in it, and which stages are finished.

    output/
      config.yaml                 the configuration of the last run
      owner.json                  the data and the model this folder belongs to
      ual.log                     what Ray, vLLM and transformers had to say
      <stage>/<digest>/           one folder per stage and per digest of its inputs and settings
        started.json              written first: the inputs and settings
        done.json                 written last: the stage's figures

A stage whose digest has a done.json is not done again. One that was interrupted finds its folder as it left it.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ual_ray.config import DEMO, Config
from ual_ray.errors import UserError
from ual_ray.records import SCHEMA_VERSION, digest
from ual_ray.settings import dump, redact
from ual_ray.sources.fingerprint import fingerprint

STAGES = ("elicit", "smooth", "train", "evaluate", "calibrate", "judge")

CONFIG_FILE = "config.yaml"
OWNER_FILE = "owner.json"
LOG_FILE = "ual.log"
STARTED_FILE = "started.json"
DONE_FILE = "done.json"
NEWEST_FILE = "newest"
LOCK_FILE = ".lock"
STORE_FILE = "mlflow.db"
ARTIFACTS_FOLDER = "mlflow-artifacts"
SPOOL_FOLDER = "mlflow-spool"
# What a single command holds open in its --out while it works there.
KEPT_FILES = (LOCK_FILE, LOG_FILE, STORE_FILE, ARTIFACTS_FOLDER, SPOOL_FOLDER)


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

    def __init__(self, root: Path) -> None:
        """Take the folder."""
        self.root = root

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
                changed = {
                    key: f"{found.get(key)!r} there, {owner[key]!r} now" for key in owner if found.get(key) != owner[key]
                }
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
        (self.root / CONFIG_FILE).write_text(dump(redact(config)))

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


def run_stage(folder: Path, inputs: Mapping[str, Any], work: Callable[[], dict[str, Any]], *, force: bool = False) -> Done:
    """Do a stage in `folder` unless it is done there: `work()` returns its figures.

    `inputs` holds the digests of what the stage reads and the settings that shape its result. An interrupted stage finds
    the folder as it left it; `force` empties it first. Raises UserError when the folder is another configuration's.
    """
    key = stage_digest(inputs)
    if force:
        _empty(folder)
    started_as = _read_json(folder / STARTED_FILE)
    if started_as is not None and started_as["digest"] != key:
        changed = [name for name in inputs if started_as["inputs"].get(name) != _plain(inputs[name])]
        raise UserError(
            f"the output directory {folder} belongs to another configuration",
            value=f"different: {', '.join(changed) or 'the layout of its rows'}",
            fix="give another --out, or --force to do it again from the start",
        )
    if (done := _read_json(folder / DONE_FILE)) is not None:
        return Done(folder, key, done["figures"], done["seconds"], reused=True)
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / STARTED_FILE, {"digest": key, "inputs": inputs})
    started = time.monotonic()
    figures = work()
    seconds = time.monotonic() - started
    _write_json(folder / DONE_FILE, {"figures": figures, "seconds": seconds})
    return Done(folder, key, figures, seconds, reused=False)


def _empty(folder: Path) -> None:
    """Remove what a stage wrote, and nothing else. Raises UserError for a folder that no stage made."""
    if folder.is_dir() and any(file.name not in KEPT_FILES for file in folder.iterdir()):
        if not (folder / STARTED_FILE).is_file():
            raise UserError(f"{folder} was not made by this stage", fix="give another --out, or leave --force out")
        for file in folder.iterdir():
            if file.name not in KEPT_FILES:
                shutil.rmtree(file) if file.is_dir() else file.unlink()


def point_to(root: Path, folder: Path) -> None:
    """Remember which of a folder's parts is the newest."""
    (root / NEWEST_FILE).write_text(folder.name)


def newest(root: Path) -> Path:
    """Return the newest part of a folder; the folder itself where none is remembered."""
    pointer = root / NEWEST_FILE
    return root / pointer.read_text().strip() if pointer.is_file() else root


def stage_digest(inputs: Mapping[str, Any]) -> str:
    """Hash the inputs and settings of a stage, and the version of the rows."""
    return digest({"schema": SCHEMA_VERSION, **_plain(inputs)})


def _owner(config: Config) -> dict[str, Any]:
    """Say whose folder it is by content: a data file may move, as it does when a job is submitted."""
    content = DEMO if config.data.path == DEMO else f"content {fingerprint(config.data)}"
    return {"data.path": content, "model": config.model}


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text()) if path.is_file() else None


def _write_json(path: Path, content: Any) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(content, indent=2, default=str))
    part.replace(path)
