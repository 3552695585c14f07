"""What to copy of a working folder, and in which order, so that a kill at any moment leaves a copy to continue from."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from ual_ray.config.files import PROGRESS_FILE
from ual_ray.engines.compat_ray_data import PENDING_SUFFIX
from ual_ray.engines.row_store import CHECKPOINT_FOLDER, FINISHED_FOLDER
from ual_ray.run.stage_cache import DONE_FILE, LOCK_FILE, NEWEST_FILE

# Half-written files, locks, and what SQLite keeps of transactions in work: the store is copied by SQLite itself.
SKIPPED_SUFFIXES = (".part", ".db-journal", ".db-wal", ".db-shm", LOCK_FILE)
# Lines are added to them all the time; a copy without the last line serves.
GROWING = ".jsonl"
# They mark the files around them as whole.
REFERRING = (DONE_FILE, PROGRESS_FILE, NEWEST_FILE)


class Version(NamedTuple):
    """Tells a file's content from another one without reading it: bytes, and nanoseconds of the last change."""

    size: int
    changed: int


Files = Mapping[str, Version]


class Changes(NamedTuple):
    """Names to remove there, then to copy, then to copy when all of those are there."""

    erased: list[str]
    copied: list[str]
    last: list[str]


def scan(root: Path) -> dict[str, Version]:
    """Return the versions of a folder's files by name."""
    return dict(_walk(root, root))


def _walk(root: Path, folder: Path) -> Iterator[tuple[str, Version]]:
    try:
        entries = list(os.scandir(folder))
    except FileNotFoundError:  # removed meanwhile
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(root, Path(entry.path))
        elif not entry.name.endswith(SKIPPED_SUFFIXES):
            try:
                found = entry.stat()
            except FileNotFoundError:
                continue
            yield os.path.relpath(entry.path, root), Version(found.st_size, found.st_mtime_ns)


def refers(name: str) -> bool:
    """Whether a file marks others as whole: a finished stage or checkpoint, or ids of rows that are not sent again."""
    path = PurePosixPath(name)
    return path.name in REFERRING or path.parent.name == CHECKPOINT_FOLDER


def changes(known: Files, before: Files, now: Files, settled: float) -> Changes:
    """Compare a folder with its copy.

    known: what was copied. before, now: two scans, one after the other: what a file of the first refers to is in the second.
    settled: files changed later (in nanoseconds) may be half written, and wait for the next time.
    """
    pending = _in_work(before) | _in_work(now)
    ready, waiting = dict[str, Version](), list[str]()
    for name, version in now.items():
        if _belongs(name, pending) or (refers(name) and name not in before):
            continue
        if version.changed <= settled or name.endswith(GROWING):
            ready[name] = version
        elif not refers(name):
            waiting.append(name)
    held = {name for name in ready if refers(name) and _waits(name, waiting)}
    changed = [name for name, version in ready.items() if name not in held and known.get(name) != version]
    gone = [name for name in known if name not in now]
    # A stage that was done again is not done while its files are replaced.
    outdated = [name for name in known if PurePosixPath(name).name == DONE_FILE and name in now and known[name] != now[name]]
    erased = sorted([*gone, *outdated], key=lambda name: (not refers(name), name))
    return Changes(erased, [name for name in changed if not refers(name)], [name for name in changed if refers(name)])


def _in_work(files: Files) -> set[tuple[str, str]]:
    """Return store and prefix of the blocks whose ids Ray Data has not committed."""
    return {
        (str(path.parent.parent), path.name.removesuffix(PENDING_SUFFIX))
        for path in map(PurePosixPath, files)
        if path.parent.name == CHECKPOINT_FOLDER and path.name.endswith(PENDING_SUFFIX)
    }


def _belongs(name: str, pending: set[tuple[str, str]]) -> bool:
    path = PurePosixPath(name)
    if path.parent.name not in (CHECKPOINT_FOLDER, FINISHED_FOLDER):
        return False
    store = str(path.parent.parent)
    return any(store == other and path.name.startswith(prefix) for other, prefix in pending)


def _waits(name: str, waiting: list[str]) -> bool:
    """Whether a file that a referring one speaks of is not ready."""
    path = PurePosixPath(name)
    if path.parent.name != CHECKPOINT_FOLDER:
        return any(PurePosixPath(other).is_relative_to(path.parent) for other in waiting)
    return any(other.startswith(f"{path.parent.parent / FINISHED_FOLDER / path.stem}") for other in waiting)
