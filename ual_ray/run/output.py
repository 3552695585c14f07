"""The output folder: its owner, its lock, and its finished stages.

    output/
      config.yaml                 the configuration of the last run
      owner.json                  the data and the model this folder belongs to
      ual.log                     output of Ray, vLLM and transformers
      <stage>/<digest>/           see `stage_cache`

A stage that is done is not run again.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from ual_ray.config import DEMO, Config
from ual_ray.config.files import read_object, write_record, write_text
from ual_ray.config.load import dump
from ual_ray.config.redact import redact
from ual_ray.data.fingerprint import fingerprint
from ual_ray.errors import UserError
from ual_ray.run.stage_cache import LOCK_FILE, LOG_FILE

CONFIG_FILE = "config.yaml"
OWNER_FILE = "owner.json"


class Workspace:
    """One output folder, used by one process at a time."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def log_file(self) -> Path:
        """The log file of Ray, vLLM and transformers."""
        return self.root / LOG_FILE

    def check_owner(self, config: Config) -> None:
        """Raise UserError when the folder belongs to other data or another model, or contains unrelated files."""
        owner = _owner(config)
        path = self.root / OWNER_FILE
        if (found := read_object(path, fix="restore it from a copy, or give another output=...")) is not None:
            changed = {key: f"{found.get(key)!r} there, {owner[key]!r} now" for key in owner if found.get(key) != owner[key]}
            if changed:
                raise UserError(
                    f"the output directory {self.root} belongs to another configuration",
                    got="; ".join(f"{key}: {text}" for key, text in changed.items()),
                    fix="give another output=..., or remove the directory",
                )
        elif self.root.exists() and not self.root.is_dir():
            raise UserError("output is not a directory", got=self.root, fix="give another output=...")
        elif self.root.is_dir() and any(file.name not in (LOG_FILE, LOCK_FILE) for file in self.root.iterdir()):
            raise UserError(
                f"the output directory {self.root} is not empty and was not made by ual",
                got=sorted(file.name for file in self.root.iterdir())[:5],
                fix="give another output=...",
            )

    def claim(self, config: Config) -> None:
        """Record the folder's owner and the current configuration."""
        self.root.mkdir(parents=True, exist_ok=True)
        write_record(self.root / OWNER_FILE, _owner(config))
        write_text(self.root / CONFIG_FILE, dump(redact(config)))

    @contextmanager
    def held(self) -> Iterator[None]:
        """Lock the folder while the block runs. Raises UserError when another run holds the lock."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            held = FileLock(str(self.root / LOCK_FILE), timeout=0).acquire()
        except Timeout as error:
            raise UserError(f"another run is working in {self.root}", fix="wait for it, or give another output=...") from error
        except OSError as error:
            raise UserError(f"output {self.root} cannot be written", got=error, expected="a writable directory") from error
        with held:
            yield


def recorded_config(root: Path) -> dict[str, Any]:
    """Read the configuration of the last run in a folder; empty without one."""
    file = root / CONFIG_FILE
    return (yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else None) or {}


def _owner(config: Config) -> dict[str, Any]:
    """Identify the owner by the data's content: a data file may move, as when a job is submitted."""
    content = DEMO if config.data.path == DEMO else f"content {fingerprint(config.data)}"
    return {"data.path": content, "model": config.model}
