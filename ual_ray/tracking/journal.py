"""The spool: operations logged while the store is unreachable, on disk and in order.

    mlflow-spool/<key>/store.json             the store and experiment the operations are meant for, secrets masked
    mlflow-spool/<key>/<number>.json          one operation; numbers rise with time
    mlflow-spool/<key>/files/<name>/...       copies of the files that operations upload
    mlflow-spool/<key>/refused/<number>.json  an operation that the store rejected, with the reason

Every file is written under a temporary name and then renamed, so a killed process leaves no partial operation.
"""

import json
import logging
import shutil
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from filelock import FileLock, Timeout

from ual_ray.columns import digest
from ual_ray.config.files import SPOOL_FOLDER, write_json, write_record
from ual_ray.config.redact import redact_values

STORE = "store.json"
FILES, REFUSED, LOCK = "files", "refused", ".lock"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Operation:
    """One operation on the store: its kind, the local id of its run, and its JSON-serializable values.

    file: the file to upload; the spool keeps a copy of it.
    """

    kind: str
    run: str
    content: dict[str, Any] = field(default_factory=dict)
    file: str | None = None


class Spool:
    """The operations waiting for one store and experiment, in order; a single process appends to it."""

    def __init__(self, output: Path, store: Mapping[str, str | None]) -> None:
        """Find the operations left by an earlier process; nothing is written until an operation has to wait.

        store: identified by `uri` (without secrets) and `experiment`; other values are kept for `catch_up`.
        """
        self._store = dict(store)
        self.folder = output.absolute() / SPOOL_FOLDER / digest({key: store[key] for key in ("uri", "experiment")})[:12]
        self._lock = threading.Lock()
        self._names: deque[str] = deque(sorted(path.stem for path in self.folder.glob("[0-9]*.json")))
        self._last = int(self._names[-1]) if self._names else 0

    @property
    def known(self) -> bool:
        """Whether operations for this store have been spooled here before, so its address is known to be valid."""
        return (self.folder / STORE).is_file()

    @property
    def waiting(self) -> int:
        """Number of waiting operations."""
        return len(self._names)

    def append(self, operation: Operation) -> None:
        """Write an operation and a copy of its file. Raises OSError when the write fails."""
        if not self.known:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_record(self.folder / STORE, self._store)
        if operation.file is not None:
            operation = replace(operation, file=self._copy(Path(operation.file)))
        with self._lock:
            # The clock orders operations across processes; the maximum keeps the order when the clock is set back.
            self._last = max(self._last + 1, time.time_ns())
            name = f"{self._last:020d}"
            write_json(self._path(name), redact_values(asdict(operation)))
            self._names.append(name)

    def first(self) -> tuple[str, Operation] | None:
        """Return the name and content of the oldest waiting operation, or None. Unreadable operations are moved aside."""
        while self._names:
            name = self._names[0]
            try:
                return name, self._read(name)
            except FileNotFoundError:
                self._forget(name)  # another process has sent it
            except (ValueError, TypeError) as error:
                logger.error("MLflow: %s holds no operation: %s", self._path(name), error)
                self._path(name).replace(self._aside() / f"{name}.json")
                self._forget(name)
        return None

    def remove(self, name: str, operation: Operation) -> None:
        """Delete an operation that has been sent, and its file."""
        self._path(name).unlink(missing_ok=True)
        if operation.file is not None and (copy := Path(operation.file)).parents[1] == self.folder / FILES:
            shutil.rmtree(copy.parent, ignore_errors=True)
        self._forget(name)

    def refuse(self, operation: Operation, reason: str, name: str | None = None) -> Path:
        """Move a rejected operation to `refused`; `name` is set if it was spooled. Its file is not moved."""
        aside = self._aside() / f"{name or f'{time.time_ns():020d}'}.json"
        write_json(aside, redact_values({**asdict(operation), "reason": reason}))
        if name is not None:
            self._path(name).unlink(missing_ok=True)
            self._forget(name)
        return aside

    @contextmanager
    def held(self) -> Iterator[bool]:
        """Lock the spool for sending; yields False when another process holds the lock."""
        try:
            held = FileLock(str(self.folder / LOCK), timeout=0).acquire()
        except Timeout:
            yield False
            return
        with held:
            yield True

    def _read(self, name: str) -> Operation:
        operation = Operation(**json.loads(self._path(name).read_text(encoding="utf-8")))
        if operation.file is None:
            return operation
        file = self.folder / operation.file
        if not file.resolve().is_relative_to(self.folder.resolve()):
            raise ValueError(f"the file {operation.file} is not in this folder")
        return replace(operation, file=str(file))

    def _copy(self, file: Path) -> str:
        """Copy a file into the spool; returns the path relative to the folder, which may be moved."""
        name = f"{FILES}/{uuid4().hex}/{file.name}"
        copy = self.folder / name
        copy.parent.mkdir(parents=True)
        shutil.copyfile(file, copy)
        return name

    def _aside(self) -> Path:
        aside = self.folder / REFUSED
        aside.mkdir(parents=True, exist_ok=True)
        return aside

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def _forget(self, name: str) -> None:
        with self._lock:
            self._names.remove(name)
