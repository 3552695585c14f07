"""Copy a working folder to its URI while a command works in it, and mark the folder there as in use.

    PREFIX/.ual-output.json     who writes: the name of its session, whether it still works, and a count that grows
    PREFIX/.ual-times.json      when the files of models changed, by which stages recognise them

The working folder keeps the name of its last session, and of the one before, as a session may end before it has named itself at
the URI. Where the URI names one of them, nobody else has written there since, and what is in the working folder is kept; else
it is emptied, and all files are fetched. A file that went missing between two sessions was cleared to make room: it is fetched
again. After a kill it may also have been removed by the command: in a stage in work, and among what waits for MLflow.
"""

import os
import shutil
import socket
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from filelock import FileLock, Timeout

from ual_ray.columns import ADAPTER_FOLDER, MODEL_FOLDER
from ual_ray.config.files import SPOOL_FOLDER, STORE_FILE, URI_FILE, read_json, write_json, write_text
from ual_ray.config.redact import redact_uri
from ual_ray.errors import UserError
from ual_ray.mirror.changes import Version, changes, scan
from ual_ray.mirror.copying import copied, each, finish, repeated
from ual_ray.mirror.remote import Remote, asked_all
from ual_ray.run.output import OWNER_FILE
from ual_ray.run.stage_cache import DONE_FILE, FORGOTTEN_FILE, LOCK_FILE, STARTED_FILE
from ual_ray.run.terminal import end_command
from ual_ray.tracking.run_file import move_store

MARKER, TIMES = ".ual-output.json", ".ual-times.json"
STATE_FILE = "state.json"
# A session counts on every BEAT_SECONDS. One that has not for DEAD_SECONDS is dead.
BEAT_SECONDS, DEAD_SECONDS = 5.0, 30.0
# Of two that mark the folder at once, the later one has it: both look again after this time.
CLAIM_SECONDS = 1.0
AGAIN = "run the same command again on this machine"

Say = Callable[[str], None]


class Mirror:
    """A working folder `root` and its copy. Its state is kept next to it."""

    def __init__(self, remote: Remote, root: Path) -> None:
        """Take the folder, without connecting."""
        self.remote, self.root = remote, root
        self._session = uuid.uuid4().hex
        self._beat = 0
        self._folder = str(root)  # the one that the store at the URI names
        self._known: dict[str, Version] = {}
        self._stop, self._lost = threading.Event(), threading.Event()

    @contextmanager
    def held(self, say: Say) -> Iterator[None]:
        """Mark the folder at the URI as in use, fetch what is there, and copy changes there until the block has ended.

        Raises UserError where another run uses it, where it cannot be written, and where not all was copied at the end. When
        another run takes the folder over, the command is ended.
        """
        with self._alone():
            yield from self._held(say)

    def _held(self, say: Say) -> Iterator[None]:
        before = self._take(say)
        try:
            asked_all(self.remote, "fetched", lambda: self._fetch(before, say))
        except BaseException:
            self._mark(working=False)
            raise
        copying = ExitStack()
        # Two threads, as a large file takes longer than a sign of life may.
        copying.enter_context(repeated(self.remote, self._live, BEAT_SECONDS, self._stop))
        copying.enter_context(copied(self.remote, self.copy, self._stop))
        try:
            yield
        finally:
            try:
                copying.close()
                self._finish()
            except (SystemExit, KeyboardInterrupt):  # it keeps its exit code
                say(f"{self._name}: not everything was copied; it is kept in {self.root}: {AGAIN}")
                raise

    def copy(self, settled: float = float("inf")) -> None:
        """Copy what changed before `settled` (in nanoseconds), and remove there what was removed here."""
        if not self.root.is_dir():  # a cache may be cleared; the copy is not
            raise FileNotFoundError(f"the working folder {self.root} was removed while the command ran")
        first = scan(self.root)
        wanted = changes(self._known, first, now := scan(self.root), settled)
        try:
            if any(wanted):
                self._check_ours()
            for name in wanted.erased:
                self.remote.delete(name)
                del self._known[name]
            self._copy_all(wanted.copied, now)
            if any(map(_of_model, wanted.copied)):
                self.remote.write(TIMES, {name: version.changed for name, version in self._known.items() if _of_model(name)})
            self._copy_all(wanted.last, now)
        finally:
            if any(wanted):
                self._save()

    def _copy_all(self, names: Iterable[str], now: Mapping[str, Version]) -> None:
        def put(name: str) -> None:
            self._put(name)
            self._known[name] = now[name]

        each(put, names)

    # --- the session --------------------------------------------------------------------------------------------------

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Lock the working folder: a session of this folder that still counts as working, and holds no lock, is dead."""
        self.root.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.root.parent / URI_FILE, self.remote.uri)
        try:
            held = FileLock(self.root.parent / LOCK_FILE, timeout=0).acquire()
        except Timeout as error:
            raise self._used({"pid": "unknown", "host": "this machine"}) from error
        with held:
            yield

    def _take(self, say: Say) -> dict[str, Any] | None:
        """Mark the folder as ours, once nobody else works there; return the marker before."""
        found = self.remote.read(MARKER)
        if found is None:
            self._check_made_by_us()
        if found is not None and found["working"] and not self._is_of_here(found):
            say(f"{self._name} was in use on {found['host']}: waiting up to {DEAD_SECONDS:.0f} s for a sign of life")
            until = time.monotonic() + DEAD_SECONDS
            while time.monotonic() < until:
                time.sleep(CLAIM_SECONDS)
                seen = self.remote.read(MARKER)
                if seen is None or not seen["working"]:
                    found = seen
                    break
                if seen != found:
                    raise self._used(seen)
        self._folder = found["folder"] if found is not None else self._folder
        self._adopt(found)
        self._mark(working=True)
        time.sleep(CLAIM_SECONDS)
        self._check_ours()
        return found

    def _adopt(self, found: dict[str, Any] | None) -> None:
        """Keep the working folder if it is of the last session at the URI, also where this one ends before it has begun."""
        if found is not None and self._is_of_here(found):
            write_json(self._state, self._kept() | {"session": self._session, "before": found["session"]})

    def _is_of_here(self, marker: Mapping[str, Any]) -> bool:
        """Whether a marker is of the last session of this working folder."""
        kept = self._kept()
        return marker["session"] in (kept.get("session"), kept.get("before"))

    def _mark(self, *, working: bool) -> None:
        self._beat += 1
        content = {"session": self._session, "working": working, "beat": self._beat, "folder": self._folder}
        self.remote.write(MARKER, content | {"host": socket.gethostname(), "pid": os.getpid()})

    def _live(self) -> None:
        """Give a sign of life; end the command when another run has taken the folder: what it makes is not copied any more."""
        try:
            self._check_ours()
            self._mark(working=True)
        finally:
            if self._lost.is_set() and not self._stop.is_set():
                self._stop.set()
                end_command()

    def _check_made_by_us(self) -> None:
        names = asked_all(self.remote, "listed", self.remote.files)
        # A stage is in the folder or one below; what is deeper is of other outputs, in folders of their own.
        stages = (name.rpartition("/") for name in names)
        made = OWNER_FILE in names or any(name == STARTED_FILE and "/" not in folder for folder, _, name in stages)
        if names and not made:
            raise UserError(
                f"the output at {self._name} is not empty and was not made by ual",
                got=sorted(names)[:5],
                fix=f"give another {self.remote.key}",
            )

    def _check_ours(self) -> None:
        seen = self.remote.read(MARKER)
        if seen is None or seen["session"] != self._session:
            self._lost.set()  # what is there now is another run's
            raise self._used(seen or {"host": "a machine", "pid": "unknown"})

    def _used(self, seen: dict[str, Any]) -> UserError:
        return UserError(
            f"another run is working in {self._name}",
            got=f"process {seen['pid']} on {seen['host']}",
            fix=f"wait for it, or give another {self.remote.key}",
        )

    # --- there and back -----------------------------------------------------------------------------------------------

    @property
    def _name(self) -> str:
        return redact_uri(self.remote.uri)

    @property
    def _state(self) -> Path:
        return self.root.parent / STATE_FILE

    def _kept(self) -> dict[str, Any]:
        try:
            return read_json(self._state) or {}
        except ValueError as error:  # the machine stopped before all of it was on the disk
            raise UserError(
                "the state of a working folder cannot be read",
                got=f"{self._state}: {error}",
                fix=f"remove it; {self.root} is then replaced by what is at the URI: copy from there what is not copied yet",
            ) from error

    def _save(self) -> None:
        write_json(self._state, {"session": self._session, "files": self._known})

    def _fetch(self, marker: dict[str, Any] | None, say: Say) -> None:
        kept = self._kept()
        known = {name: Version(*version) for name, version in kept.get("files", {}).items()}
        # Where all of them are gone, the working folder was cleared to make room, and not by a command.
        present = self.root.is_dir() and (not known or any((self.root / name).exists() for name in known))
        if marker is not None and kept.get("session") == self._session and present:
            self._known = known
            self._fetch_cleared(killed=marker["working"])
        else:
            self._state.unlink(missing_ok=True)
            shutil.rmtree(self.root, ignore_errors=True)
            self.root.mkdir(parents=True)
            if size := fetch(self.remote, self.root, lambda _: True):
                say(f"{size / 2**20:,.1f} MB fetched from {self._name}")
            self._set_times()
            self._known = scan(self.root)
            if self._folder != str(self.root):
                move_store(self.root, self._folder, str(self.root))
        self._save()
        if self._folder != str(self.root):
            self.copy()
            self._folder = str(self.root)
            self._mark(working=True)

    def _fetch_cleared(self, *, killed: bool) -> None:
        """Fetch what is missing here though no command removed it."""
        cleared = {name for name in self._known if not (self.root / name).exists() and not (killed and self._in_work(name))}
        if cleared:
            fetch(self.remote, self.root, cleared.__contains__)
            self._set_times(cleared)
            now = scan(self.root)
            self._known |= {name: now[name] for name in cleared & now.keys()}

    def _in_work(self, name: str) -> bool:
        """Whether a command may have removed a file before it was killed."""
        path = PurePosixPath(name)
        return SPOOL_FOLDER in path.parts or any(map(self._is_stage_in_work, path.parents))

    def _is_stage_in_work(self, folder: PurePosixPath) -> bool:
        """Whether a folder is a row store that was emptied, or of a stage that was not done at the last copy, or is not now."""
        if (self.root / folder / FORGOTTEN_FILE).exists():
            return True
        done = self.root / folder / DONE_FILE
        known = self._known.get(str(folder / DONE_FILE))
        found = done.stat() if done.exists() else None
        copied = found is not None and known == Version(found.st_size, found.st_mtime_ns)
        return (self.root / folder / STARTED_FILE).exists() and not copied

    def _set_times(self, names: Container[str] | None = None) -> None:
        for name, changed in (self.remote.read(TIMES) or {}).items():
            if (names is None or name in names) and (self.root / name).is_file():
                os.utime(self.root / name, ns=(changed, changed))

    def _finish(self) -> None:
        """Copy the rest, and name nobody as working at the URI."""

        def rest() -> None:
            self._check_ours()
            self.copy()
            self._mark(working=False)

        lost = "copy it from there before any other command, which would replace it by what the other run wrote"
        finish(self.remote, rest, lambda: f"what was made is kept in {self.root}: {lost if self._lost.is_set() else AGAIN}")

    def _put(self, name: str) -> None:
        file = self.root / name
        if file.name != STORE_FILE:
            self.remote.put(file, name)
            return
        # A copy of SQLite's own: one of the file may be from the middle of a transaction.
        whole = self.root.parent / STORE_FILE
        whole.unlink(missing_ok=True)
        with closing(sqlite3.connect(file)) as store, closing(sqlite3.connect(whole)) as copy:
            store.backup(copy)
        self.remote.put(whole, name)
        whole.unlink()


def _of_model(name: str) -> bool:
    return PurePosixPath(name).parent.name in (MODEL_FOLDER, ADAPTER_FOLDER)


def fetch(remote: Remote, root: Path, wanted: Callable[[str], bool]) -> int:
    """Copy the wanted files of a URI into a folder; return their bytes."""
    sizes = {name: size for name, size in remote.files().items() if name not in (MARKER, TIMES) and wanted(name)}
    each(lambda name: remote.get(name, root / name), sizes)
    return sum(sizes.values())
