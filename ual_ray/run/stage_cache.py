"""Stages that are done are not done again: one folder per stage and digest of its inputs and settings.

    <stage>/<digest>/
      started.json      written first: the inputs and settings
      done.json         written last: the stage's figures

An interrupted stage finds its folder as it left it.
"""

import json
import re
import shutil
import threading
import time
from collections.abc import Callable, Collection, Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ual_ray import columns as col
from ual_ray.columns import digest
from ual_ray.config.files import ARTIFACTS_FOLDER, SPOOL_FOLDER, STORE_FILE, read_object, write_record, write_text
from ual_ray.config.redact import redact_values
from ual_ray.errors import UserError
from ual_ray.formatting import shorten

LOG_FILE = "ual.log"
LONGEST_DIFFERENCE = 200

STARTED_FILE = "started.json"

DONE_FILE = "done.json"

NEWEST_FILE = "newest"
PART_NAME = re.compile(r"(?!\.{1,2}\Z)[^/\x00]{1,60}")

LOCK_FILE = ".lock"
# In a row store whose rows before were forgotten.
FORGOTTEN_FILE = "forgotten"
# What a single command holds open in its --out while it works there.
KEPT_FILES = (LOCK_FILE, LOG_FILE, STORE_FILE, ARTIFACTS_FOLDER, SPOOL_FOLDER)


_pointing = threading.Lock()


@dataclass(frozen=True)
class Done:
    """A finished stage: its folder, cache key, metrics and seconds; `reused` tells that it was finished before."""

    folder: Path
    digest: str
    metrics: dict[str, Any]
    seconds: float
    reused: bool


def run_stage(
    folder: Path,
    inputs: Mapping[str, Any],
    work: Callable[[], dict[str, Any]],
    *,
    force: bool = False,
    written: Collection[str] | None = None,
) -> Done:
    """Run a stage in `folder` unless it is finished there; `work()` returns its metrics.

    inputs: digests of what the stage reads, and the settings that affect its result. An interrupted stage finds the folder
    as it left it; `force` removes what the stage wrote first. written: its names, in a folder where others may write too;
    None = all is the stage's. Raises UserError when the folder belongs to another configuration, or has files of these names.
    """
    key = stage_digest(inputs)
    if force:
        _empty(folder, written)
    started_as = read_object(folder / STARTED_FILE, "digest", "inputs")
    if started_as is None and (taken := [name for name in written or () if (folder / name).exists()]):
        raise UserError(f"{folder} has what this stage did not write", got=taken, fix="give another --out")
    if started_as is not None and started_as["digest"] != key:
        changed = list(differences(redact_values(started_as["inputs"]), redact_values(_plain(inputs))))
        raise UserError(
            f"the output directory {folder} belongs to another configuration",
            got="; ".join(changed) or "a different layout of its rows",
            fix="give another --out, or --force to do it again from the start",
        )
    if (done := read_object(folder / DONE_FILE, "figures", "seconds")) is not None:
        return Done(folder, key, done["figures"], done["seconds"], reused=True)
    folder.mkdir(parents=True, exist_ok=True)
    write_record(folder / STARTED_FILE, {"digest": key, "inputs": inputs})
    started = time.monotonic()
    metrics = work()
    seconds = time.monotonic() - started
    write_record(folder / DONE_FILE, {"figures": metrics, "seconds": seconds})
    return Done(folder, key, metrics, seconds, reused=False)


def _empty(folder: Path, written: Collection[str] | None) -> None:
    """Remove what a stage wrote, and nothing else. Raises UserError for a folder that no stage made."""
    if folder.is_dir() and any(file.name not in KEPT_FILES for file in folder.iterdir()):
        if not (folder / STARTED_FILE).is_file():
            raise UserError(f"{folder} was not made by this stage", fix="give another --out, or leave --force out")
        # After a kill it is neither done without its files, nor a folder that no stage made.
        order = {DONE_FILE: 0, STARTED_FILE: 2}
        own = written if written is None else {*order, *written, *(f"{name}.part" for name in written)}
        kept = {file.name for file in folder.iterdir() if own is not None and file.name not in own}
        _clear(folder, {*KEPT_FILES, *kept}, key=lambda file: order.get(file.name, 1))


def _clear(folder: Path, kept: Container[str], key: Callable[[Path], Any] | None = None) -> None:
    for file in sorted(folder.iterdir(), key=key):
        if file.name not in kept:
            shutil.rmtree(file) if file.is_dir() else file.unlink()


def forget(store: Path) -> None:
    """Remove the rows of a store. A mark stays, so that rows of a copy that was not told (`mirror`) are not fetched back."""
    if store.is_dir():
        write_text(store / FORGOTTEN_FILE, "")
        _clear(store, (FORGOTTEN_FILE,))


def point_to(root: Path, folder: Path) -> None:
    """Remember which of a folder's parts is the newest, also where parts end side by side."""
    with _pointing:
        write_text(root / NEWEST_FILE, folder.name)


def newest(root: Path) -> Path:
    """Return the newest part of a folder; the folder itself where none, or no name, is remembered."""
    pointer = root / NEWEST_FILE
    name = pointer.read_text(errors="replace").strip() if pointer.is_file() else ""
    return root / name if PART_NAME.fullmatch(name) else root


def stage_digest(inputs: Mapping[str, Any]) -> str:
    """Hash the inputs and settings of a stage, and the version of the rows."""
    return digest({"schema": col.SCHEMA_VERSION, **_plain(inputs)})


def differences(there: Any, now: Any, name: str = "") -> Iterator[str]:
    """Describe what differs by dotted names, with both values."""
    if isinstance(there, dict) and isinstance(now, dict):
        for key in {**there, **now}:
            yield from differences(there.get(key), now.get(key), f"{name}.{key}" if name else key)
    elif there != now:
        yield shorten(f"{name}: {there!r} there, {now!r} now", LONGEST_DIFFERENCE)


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))
