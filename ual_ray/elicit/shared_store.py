"""A store of the elicitor's replies that output folders and machines share (`elicit.store`): a folder at a path or a URI.

A run works in the store of its own output folder. At its start it fetches what the same elicitor has answered in any run; what
it adds is copied to the shared store while it works, and the rest at the end. Every file has a name of its own, Ray Data's or
a hash of its content, and is written once: runs at the same time need no lock. Rows are copied before the ids that mark them
as finished.

    KEY/asked.json              whom the rows asked
    KEY/finished, checkpoint    as in a `RowStore`, and so in KEY/self_check
    KEY/retried                 failed rows: whoever fetches them sends them again, but not what was answered about them
    KEY/erased.json             names of files that --force removed: copies of them in other output folders do not come back
    KEY/working/DATA.json       who scores these data with the settings of the key: another run waits, and does not pay twice
"""

import logging
import os
import socket
import time
import uuid
from bisect import bisect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path, PurePosixPath
from typing import Any

from pyarrow.fs import FileInfo, LocalFileSystem

from ual_ray.config.files import read_json, replacing
from ual_ray.config.redact import redact_uri
from ual_ray.elicit.known import ASKED_FILE, note_asked
from ual_ray.engines.row_store import CHECKPOINT_FOLDER, FAILED_FOLDER, FINISHED_FOLDER, RETRIED_FOLDER
from ual_ray.errors import UserError
from ual_ray.mirror.changes import Version, changes, refers, scan
from ual_ray.mirror.copying import ATTEMPTS, attempt, copied, each, finish, repeated
from ual_ray.mirror.remote import Remote, asked_all
from ual_ray.mirror.transfer import BEAT_SECONDS, CLAIM_SECONDS, DEAD_SECONDS
from ual_ray.parquet import damage_of, file_digest

ROWS = ".parquet"
ERASED_FILE = "erased.json"

logger = logging.getLogger(__name__)
Say = Callable[[str], None]


class SharedStore:
    """The shared store as one run sees it, whose own rows are in the folder `store`, named by their key.

    asked: whom the run asks (`known.asked_of`). data: identifies the data that it scores; None = some rows of them.
    """

    def __init__(self, remote: Remote, store: Path, asked: str, data: str | None = None) -> None:
        """Take both folders, without connecting."""
        self._remote, self._root, self._key, self._asked = remote, store.parent, store.name, asked
        self._claim = None if data is None else f"{self._key}/working/{data}.json"
        self._me = {"session": uuid.uuid4().hex, "host": socket.gethostname(), "folder": str(store.absolute())}
        self._beat = 0
        self._keys = {self._key}
        self._copied: dict[str, Version] = {}
        self._names: dict[tuple[str, Version], str] = {}

    @contextmanager
    def held(self, say: Say) -> Iterator[None]:
        """Fetch what the elicitor has answered, and copy to the shared store what is added until the block has ended.

        Waits for a run that scores the same data with the same settings. Raises UserError where the store cannot be read or
        written, or has damaged rows of this elicitor.
        """
        self._wait(say)
        try:
            with repeated(self._remote, self._live_on, BEAT_SECONDS) if self._claim else nullcontext():
                if size := asked_all(self._remote, "fetched", self._fetch_whole):
                    say(f"{size / 2**20:,.1f} MB of replies fetched from {self._name}")
                if self._remote.read(f"{self._key}/{ASKED_FILE}") != self._asked:
                    self._remote.write(f"{self._key}/{ASKED_FILE}", self._asked)
                yield from self._copying()
        finally:
            attempt(self._remote, self._release)

    def _copying(self) -> Iterator[None]:
        try:
            with copied(self._remote, self.copy):
                yield
        except BaseException:
            attempt(self._remote, self.copy)
            raise
        kept = f"all rows are kept in {self._root}: run the same command again, which sends none of them"
        finish(self._remote, self.copy, lambda: kept)

    def _fetch_whole(self) -> int:
        for _ in range(ATTEMPTS - 1):
            with suppress(FileNotFoundError):  # it was erased meanwhile
                return self.fetch()
        return self.fetch()

    def fetch(self) -> int:
        """Fetch the rows of the elicitor that are not here, and remove those that were erased there; return the bytes."""
        there = self._remote.entries()
        asked = [name for name in there if name.count("/") == 1 and name.endswith(f"/{ASKED_FILE}")]
        same = {_key(name) for name in asked if self._remote.read(name) == self._asked}
        own = {file.parent.name for file in self._root.glob(f"*/{ASKED_FILE}") if read_json(file) == self._asked}
        self._keys = {self._key} | same | own
        erased = {name for key in sorted(self._keys) if f"{key}/{ERASED_FILE}" in there for name in self._erased(key)}
        here = {name: self._name_there(name, version) for name, version in self._scan().items()}
        for name in sorted(here, key=lambda name: not refers(name)):
            if here[name] in erased:
                (self._root / name).unlink(missing_ok=True)
        # A second look: rows were copied before the ids of the first one.
        whole = _Whole(there)
        there = self._remote.entries()
        wanted = [name for name in there if _key(name) in self._keys and name not in erased and whole.holds(name)]
        missing = {name: there[name] for name in wanted if not (self._root / _name_here(name)).exists()}
        for key in sorted(self._keys):
            note_asked(self._root / key, self._asked)
        for late in (False, True):
            each(lambda name: self._get(name, there[name]), [name for name in missing if refers(name) == late])
        found = self._scan().items()
        self._copied = {name: version for name, version in found if self._name_there(name, version) in there}
        return sum(info.size or 0 for info in missing.values())

    def copy(self, settled: float = float("inf")) -> None:
        """Copy there what was added before `settled` (in nanoseconds) and is whole."""
        first = self._scan()
        wanted = changes(self._copied, first, now := self._scan(), settled)
        for name in wanted.erased:  # failed rows that are sent again
            del self._copied[name]
        for names in (wanted.copied, wanted.last):
            each(lambda name: self._put(name, now[name]), names)

    def forget(self) -> None:
        """Erase the rows of the run's own key there, before they are forgotten here."""

        def erase() -> None:
            names = [name for name in self._remote.entries() if _key(name) == self._key and name.endswith(ROWS)]
            here = (self._name_there(name, version) for name, version in self._scan().items())
            if gone := {*names, *here}:
                self._remote.write(f"{self._key}/{ERASED_FILE}", sorted(gone | self._erased(self._key)))
            each(self._remote.delete, names)

        asked_all(self._remote, "written", erase)

    # --- files --------------------------------------------------------------------------------------------------------

    @property
    def _name(self) -> str:
        return redact_uri(self._remote.uri)

    def _scan(self) -> dict[str, Version]:
        """Return the versions of the rows here, and of ids that are not committed, by name."""
        return {name: found for name, found in scan(self._root).items() if _key(name) in self._keys and name.endswith(ROWS)}

    def _name_there(self, name: str, version: Version) -> str:
        """Return the name of a file in the shared store."""
        path = PurePosixPath(name)
        if path.parent.name not in (FAILED_FOLDER, RETRIED_FOLDER):
            return name
        if (name, version) not in self._names:
            self._names[name, version] = f"{path.parent.parent}/{RETRIED_FOLDER}/{file_digest(self._root / name)}{ROWS}"
        return self._names[name, version]

    def _erased(self, key: str) -> set[str]:
        found = self._remote.read(f"{key}/{ERASED_FILE}")
        return {*map(str, found)} if isinstance(found, list) else set()

    def _put(self, name: str, version: Version) -> None:
        target = self._name_there(name, version)
        if not self._linked(self._root / name, Path(self._remote.root, target)):
            self._remote.put(self._root / name, target)
        self._copied[name] = version

    def _get(self, name: str, info: FileInfo) -> None:
        target = self._root / _name_here(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as part:
            part.unlink(missing_ok=True)
            if not self._linked(Path(self._remote.root, name), part):
                self._remote.get(name, part)
                if info.mtime_ns is not None:  # of several replies to a request the newest counts
                    os.utime(part, ns=(info.mtime_ns, info.mtime_ns))
            if not refers(name) and (damage := damage_of(part)) is not None:  # of ids the names are all that is read
                raise UserError(
                    f"{self._remote.key}: a file there is damaged, or no Parquet file",
                    got=f"{self._name}: {name}: {damage}",
                    fix="restore it from a copy, or delete it there: its rows are sent again, and no others",
                )

    def _linked(self, source: Path, target: Path) -> bool:
        """Let a file have a second name, where both folders are on one disk: it is never changed."""
        if not isinstance(self._remote.filesystem, LocalFileSystem):
            return False
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(source, target)
        except OSError:
            return False
        return True

    # --- the run ------------------------------------------------------------------------------------------------------

    def _wait(self, say: Say) -> None:
        """Wait while another run that scores the same data with the same settings gives signs of life; then be that run."""
        if self._claim is None:
            return
        seen: Mapping[str, Any] | None = None
        until = 0.0
        while (found := self._claimed()) and not self._is_of_here(found):
            if seen is None:
                text = "another run scores the same data with the same settings: its replies are waited for, not paid twice"
                say(f"{text} ({found.get('host')}, {found.get('folder')})")
            if found != seen:
                seen, until = found, time.monotonic() + DEAD_SECONDS
            if time.monotonic() > until:
                break
            time.sleep(CLAIM_SECONDS)
        self._mark()
        time.sleep(CLAIM_SECONDS)
        if self._claimed().get("session") != self._me["session"]:  # of two at once the later has it
            self._wait(say)

    def _claimed(self) -> Mapping[str, Any]:
        found = self._remote.read(self._claim) if self._claim else None
        return found if isinstance(found, dict) else {}

    def _is_of_here(self, found: Mapping[str, Any]) -> bool:
        """Whether a run worked in the folder that this one has locked: it is dead."""
        return all(found.get(name) == self._me[name] for name in ("host", "folder"))

    def _mark(self) -> None:
        assert self._claim is not None, "some rows of the data are nobody's"
        self._beat += 1
        self._remote.write(self._claim, self._me | {"beat": self._beat})

    def _live_on(self) -> None:
        if self._claimed().get("session") in (None, self._me["session"]):  # else it was taken for dead
            self._mark()

    def _release(self) -> None:
        if self._claim is not None and self._claimed().get("session") == self._me["session"]:
            self._remote.delete(self._claim)


class _Whole:
    """Which files of a store are rows to be read: finished ones whose ids are there, these ids, and failed ones."""

    def __init__(self, there: Iterable[str]) -> None:
        paths = (PurePosixPath(name) for name in there if name.endswith(ROWS))
        ids = [path for path in paths if path.parent.name == CHECKPOINT_FOLDER]
        self._ids = {*map(str, ids)}
        self._rows = sorted(str(path.parent.parent / FINISHED_FOLDER / path.stem) for path in ids)

    def holds(self, name: str) -> bool:
        """Whether a file is one of them."""
        folder = PurePosixPath(name).parent.name
        if not name.endswith(ROWS) or folder not in (CHECKPOINT_FOLDER, FINISHED_FOLDER, FAILED_FOLDER, RETRIED_FOLDER):
            return False
        if folder == CHECKPOINT_FOLDER:
            return name in self._ids
        at = bisect(self._rows, name)
        return folder != FINISHED_FOLDER or (at > 0 and name.startswith(self._rows[at - 1]))


def _key(name: str) -> str:
    return name.partition("/")[0]


def _name_here(name: str) -> str:
    """Return the name of a file of the shared store in an output folder; stores of earlier versions have failed rows."""
    path = PurePosixPath(name)
    return str(path.parent.parent / RETRIED_FOLDER / path.name) if path.parent.name == FAILED_FOLDER else name
