"""One experiment of one store for the duration of a command: its runs, its spool, and the count of rejected operations.

`ual sync` sends what earlier commands on an output folder could not send. A thread sends spooled operations to the store
in order, and retries while the store is unreachable.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar
from uuid import uuid4

from mlflow import MlflowClient

from ual_ray.config import TrackingConfig
from ual_ray.config.environment import source_tags
from ual_ray.config.files import ARTIFACTS_FOLDER, SPOOL_FOLDER, STORE_FILE, read_json
from ual_ray.config.redact import MASK, redact_uri, redact_values
from ual_ray.errors import UserError
from ual_ray.formatting import plural
from ual_ray.tracking.journal import STORE, Operation, Spool
from ual_ray.tracking.run import Run
from ual_ray.tracking.run_file import RUN_FILE, read_run, write_run
from ual_ray.tracking.store import Store, is_away

# The longest pause between two attempts, in seconds.
LONGEST_PAUSE = 30.0
# An operation that fails this often on a reachable store counts as rejected.
MOST_ATTEMPTS = 5
# Seconds to send waiting operations after an interrupt.
INTERRUPTED_SECONDS = 5.0
# In the path of an address; any other `%` is one. MLflow makes folders by the path as it stands, SQLite by what it means.
READ_OTHERWISE = re.compile(r"%[0-9A-Fa-f]{2}|\?")
logger = logging.getLogger(__name__)
Answer = TypeVar("Answer")


class Courier:
    """Sends the operations of a spool from a daemon thread, which starts with the first spooled operation."""

    def __init__(
        self, spool: Spool, store: Store, retry_seconds: float, refused: Callable[[Operation, BaseException, str], None]
    ) -> None:
        """Create the sender; `refused(operation, error, name)` is called for each operation that the store rejects."""
        self._spool, self._store, self._refused = spool, store, refused
        self._retry_seconds = retry_seconds
        self._attempts: Counter[str] = Counter()
        self._wake, self._finishing, self._stopped = threading.Event(), threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self.sent = 0

    def start(self, at_once: bool = False) -> None:
        """Start sending if the thread is not running; `at_once`: without a pause first."""
        if at_once or (self._thread is not None and self._spool.waiting == 1):
            self._wake.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="mlflow-courier", daemon=True)
            self._thread.start()

    def finish(self, seconds: float) -> None:
        """Wait at most `seconds` for all operations to be sent, then stop the thread."""
        deadline = time.monotonic() + seconds
        self._finishing.set()
        if self._spool.waiting:
            self.start(at_once=True)
        while self._spool.waiting and time.monotonic() < deadline:
            time.sleep(0.05)
        self._stopped.set()
        self._wake.set()

    def _work(self) -> None:
        pause = self._retry_seconds
        while not self._stopped.is_set():
            self._wake.wait(pause if self._spool.waiting else None)
            self._wake.clear()
            before = self.sent
            try:
                with self._spool.held() as mine:
                    if mine:
                        self._send()
            except Exception:  # such as a full disk: logged and retried
                logger.exception("MLflow: cannot send the operations in %s now", self._spool.folder)
            if self.sent > before and not self._spool.waiting:
                logger.warning("MLflow: the store answers again; operations caught up: %d", self.sent)
            calm = self.sent > before or self._finishing.is_set()
            pause = self._retry_seconds if calm else min(2 * pause, max(LONGEST_PAUSE, self._retry_seconds))

    def _send(self) -> None:
        """Send until the spool is empty or the store is unreachable."""
        while not self._stopped.is_set() and (first := self._spool.first()) is not None:
            name, operation = first
            try:
                self._store.apply(operation, waited=True)
            except Exception as error:
                if self._may_pass(name, error):
                    return
                self._refused(operation, error, name)
            else:
                self._spool.remove(name, operation)
                self.sent += 1

    def _may_pass(self, name: str, error: Exception) -> bool:
        """Whether a retry can help: not for a rejection, nor when only this operation fails."""
        if not is_away(error):
            return False
        self._attempts[name] += 1
        return self._attempts[name] < MOST_ATTEMPTS or not self._store.answers()


def default_uri(output: Path) -> str:
    """The SQLite store in an output folder."""
    return f"sqlite:///{(output / STORE_FILE).resolve()}"


def _check_path(output: Path) -> None:
    """Raise UserError for a path that is another one in the address of a store."""
    if found := READ_OTHERWISE.search(str(output.resolve())):
        raise UserError(
            "MLflow cannot keep its store in a folder of this name",
            got=f"{output}: {found[0]!r} has a meaning of its own in the store's address",
            expected="a path without '?', and without '%' before two hexadecimal digits",
            fix="give another output, or set tracking.uri",
        )


def _make_store(file: Path) -> None:
    """Make the SQLite store whole or not at all: MLflow cannot open one whose tables were interrupted."""
    for left in file.parent.glob(f"{file.name}.*.part"):
        left.unlink(missing_ok=True)
    # MLflow makes the tables of an address once per process.
    part = file.with_name(f"{file.name}.{uuid4().hex}.part")
    MlflowClient(f"sqlite:///{part.resolve()}").search_experiments(max_results=1)
    try:
        file.hardlink_to(part)
    except OSError:  # another command has made it meanwhile, or the file system has no hard links
        if not file.exists():
            part.replace(file)
    part.unlink(missing_ok=True)


class Tracker:
    """A command's connection to MLflow: logs to the store, or to the spool in `output` while the store is unreachable.

    Use it as a context manager, or call `close`; operations still waiting stay on disk for the next command.
    """

    def __init__(self, config: TrackingConfig, output: Path, *, must_answer: bool = True) -> None:
        """Connect, create the experiment if it does not exist, and start sending operations left by earlier commands.

        Raises UserError when the store is unreachable, as its address may be wrong; not when operations have been spooled for
        it before, and not with must_answer=False.
        """
        if not config.uri:
            _check_path(output)
        self.uri, self.output = config.uri or default_uri(output), output
        self.failures = 0
        if not config.uri and output.is_dir() and not (output / STORE_FILE).exists():
            _make_store(output / STORE_FILE)
        self._catch_up_seconds = config.catch_up_seconds
        self._lock = threading.Lock()
        location = None if config.uri else (output / ARTIFACTS_FOLDER).resolve().as_uri()
        self._store = Store(self.uri, config.experiment, location)
        identity = {"uri": redact_uri(self.uri), "experiment": config.experiment, "location": location}
        self.spool = Spool(output, identity)
        self._courier = Courier(self.spool, self._store, config.retry_seconds, self._refuse)
        self._connect(must_answer)
        if self.spool.waiting:
            self._courier.start(at_once=True)

    @property
    def client(self) -> MlflowClient:
        """MLflow's own client, for reading."""
        return self._store.client

    @property
    def experiment_id(self) -> str:
        """The experiment's id. Raises MLflow's own errors while the store is unreachable."""
        return self._store.experiment_id

    @property
    def waiting(self) -> int:
        """Number of operations not sent yet."""
        return self.spool.waiting

    @property
    def caught_up(self) -> int:
        """Number of spooled operations that have been sent."""
        return self._courier.sent

    def known_id(self, local: str) -> str | None:
        """Return MLflow's id of a run by its local id; None until the store has created it."""
        return self._store.known_id(local)

    def close(self, seconds: float | None = None) -> int:
        """Wait at most `seconds` (None: catch_up_seconds) for the spool to empty; return the number still waiting."""
        self._courier.finish(self._catch_up_seconds if seconds is None else seconds)
        if self.waiting:
            logger.warning("MLflow: %s", self.complaint())
        return self.waiting

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        """Send waiting operations; after an interrupt for a few seconds only."""
        interrupted = kind is not None and issubclass(kind, KeyboardInterrupt | SystemExit)
        self.close(min(INTERRUPTED_SECONDS, self._catch_up_seconds) if interrupted else None)

    def complaint(self) -> str | None:
        """Describe the operations that have not reached the store, where they are, and the fix; None when all have."""
        parts = []
        if self.waiting:
            parts.append(
                f"{self.waiting} operations wait in {self.spool.folder}, as {redact_uri(self.uri)} was unreachable: "
                f"the next command on this folder sends them, or `ual sync {self.output}`"
            )
        if self.failures:
            parts.append(
                f"{plural(self.failures, 'operation')} failed; the reasons are in the log and in {self.spool.folder}/refused"
            )
        return "; ".join(parts) or None

    @contextmanager
    def run(self, name: str, folder: Path, tags: Mapping[str, str], parent: Run | None = None) -> Iterator[Run]:
        """Open the run of `folder`, creating it the first time; close it with its final status.

        FINISHED; FAILED after an exception; KILLED after an interrupt (SIGTERM counts as one).
        """
        known = read_run(folder, redact_uri(self.uri))
        run = Run(self, known.get("local_id") or known.get("run_id") or uuid4().hex, name, folder, parent)
        status = "FAILED"
        try:
            self._open(run, folder, tags, parent, known.get("run_id"), new=not known)
            yield run
            status = "FINISHED"
        except (KeyboardInterrupt, SystemExit):
            status = "KILLED"
            raise
        finally:
            self._end(run.local_id, status)

    def end_abandoned(self, run_id: str, holder: str) -> None:
        """Close a run as KILLED if it is still open and held by `holder`. run_id: MLflow's id or the local one."""
        self._end(run_id, "KILLED", holder)

    def submit(self, operation: Operation) -> Any:
        """Send an operation and return the result; while the store is unreachable, spool it and return None. Never raises."""
        with self._lock, self.tolerant(f"'{operation.kind}'"):
            # Operations are sent in order (a run is created before it is logged to), so this one queues behind those waiting.
            if not self.spool.waiting:
                try:
                    return self._store.apply(operation)
                except Exception as error:
                    if not is_away(error):
                        self._refuse(operation, error)
                        return None
                    logger.warning("MLflow unreachable; operations kept in %s: %s", self.spool.folder, redact_uri(str(error)))
            self.spool.append(operation)
            self._courier.start()
        return None

    def ask(self, question: Callable[[], Answer]) -> Answer | None:
        """Query the store; None when it is unreachable or rejects the query. Never raises."""
        if self.waiting:
            return None
        with self.tolerant("a query"):
            try:
                return question()
            except Exception as error:
                if not is_away(error):
                    raise
                logger.warning("MLflow is unreachable and cannot be queried: %s", redact_uri(str(error)))
        return None

    @contextmanager
    def tolerant(self, what: str) -> Iterator[None]:
        """Count and log an error in the block, and continue after it."""
        try:
            yield
        except Exception:
            self.failures += 1
            logger.exception("MLflow: %s failed; the job continues", what)

    def _connect(self, must_answer: bool) -> None:
        try:
            self._store.experiment_id  # noqa: B018 - asks the store
        except UserError:
            raise
        except Exception as error:
            if is_away(error) and (self.spool.known or not must_answer):
                logger.warning("MLflow unreachable; operations kept in %s: %s", self.spool.folder, redact_uri(str(error)))
                return
            raise UserError(
                "tracking.uri cannot be used",
                got=f"{redact_uri(self.uri)}: {redact_uri(str(error))}",
                expected="sqlite:///file.db, http://host:port, or null for a store in the output folder",
                fix="start the server (`ual ui`), or correct tracking.uri",
            ) from error

    def _open(
        self, run: Run, folder: Path, tags: Mapping[str, str], parent: Run | None, run_id: str | None, *, new: bool
    ) -> None:
        content = {
            "name": run.name,
            "tags": {**source_tags(), **redact_values(dict(tags))},
            "parent": parent.local_id if parent else None,
            "time": milliseconds(),
            "folder": str(folder.absolute()),
            "run_id": run_id,
            "new": new,
        }
        # Before the run is created, so that after a kill the same run is found again.
        with self.tolerant(f"writing {RUN_FILE}"):
            write_run(folder, redact_uri(self.uri), run.local_id, run_id)
        self.submit(Operation("open", run.local_id, content))

    def _end(self, run_id: str, status: str, holder: str | None = None) -> None:
        self.submit(Operation("end", run_id, {"status": status, "time": milliseconds(), "holder": holder}))

    def _refuse(self, operation: Operation, error: BaseException, name: str | None = None) -> None:
        self.failures += 1
        logger.error("MLflow rejects '%s'; the job continues", operation.kind, exc_info=error)
        with self.tolerant("keeping the rejected operation"):
            self.spool.refuse(operation, f"{type(error).__name__}: {error}", name)


def milliseconds() -> int:
    """The current time in milliseconds since the epoch, MLflow's unit."""
    return int(time.time() * 1000)


@dataclass(frozen=True)
class CaughtUp:
    """Counts of an output folder's spooled operations: sent, rejected by the store, still waiting."""

    sent: int
    refused: int
    waiting: int


def catch_up(output: Path, uri: str | None = None, seconds: float | None = None) -> CaughtUp:
    """Send the operations spooled in an output folder, for at most `seconds` per store (None: tracking.catch_up_seconds).

    uri: the store's address, needed when it contains a password (passwords are not kept on disk). Raises UserError when it is
    missing, when a store refuses the connection, for an output folder that does not exist, and where operations wait only in
    a folder above or below.
    """
    if not output.is_dir():
        raise UserError("the output folder does not exist", got=output, fix="give the folder of the command that waits")
    stores = sorted((output / SPOOL_FOLDER).glob(f"*/{STORE}"))
    if not stores and (elsewhere := _waiting_near(output)):
        raise UserError(
            "operations wait in another folder, and none in this one",
            got=output,
            expected="the output folder of the command that waits",
            fix=" and ".join(f"`ual sync {folder}`" for folder in elsewhere),
        )
    sent = refused = waiting = 0
    for file in stores:
        meant = read_json(file)
        config = TrackingConfig(uri=_address(meant["uri"], uri, output), experiment=meant["experiment"], retry_seconds=1.0)
        tracker = Tracker(config, output)
        waiting += tracker.close(seconds)
        sent, refused = sent + tracker.caught_up, refused + tracker.failures
    return CaughtUp(sent, refused, waiting)


def _waiting_near(output: Path) -> list[Path]:
    """Find the output folders with waiting operations that a folder is in, such as a scenario's, or that are in it."""
    places = (*output.parents, *sorted(place for pattern in ("*", "*/*") for place in output.glob(pattern)))
    return [place for place in places if next((place / SPOOL_FOLDER).glob("*/[0-9]*.json"), None)]


def _address(kept: str, given: str | None, output: Path) -> str | None:
    """Return the address to use; null for the output folder's own store."""
    if kept == default_uri(output):
        return None
    if given is not None and redact_uri(given) == kept:
        return given
    if MASK in kept:
        raise UserError(
            "operations wait for a store whose address contains a password", got=kept, fix="pass the full address with --uri"
        )
    return kept
