"""One experiment of one store for the duration of a command: its runs, its spool, and the count of rejected operations."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar
from uuid import uuid4

from mlflow import MlflowClient

from ual_ray.config import TrackingConfig
from ual_ray.config.environment import source_tags
from ual_ray.config.paths import ARTIFACTS_FOLDER, STORE_FILE
from ual_ray.config.redact import redact_uri, redact_values
from ual_ray.errors import UserError
from ual_ray.formatting import plural
from ual_ray.tracking.journal import Operation, Spool
from ual_ray.tracking.run import Run
from ual_ray.tracking.run_file import RUN_FILE, read_run, write_run
from ual_ray.tracking.sender import Courier
from ual_ray.tracking.store import Store, is_away

# Seconds to send waiting operations after an interrupt.
INTERRUPTED_SECONDS = 5.0

logger = logging.getLogger(__name__)
Answer = TypeVar("Answer")


def default_uri(output: Path) -> str:
    """The SQLite store in an output folder."""
    return f"sqlite:///{(output / STORE_FILE).resolve()}"


class Tracker:
    """A command's connection to MLflow: logs to the store, or to the spool in `output` while the store is unreachable.

    Use it as a context manager, or call `close`; operations still waiting stay on disk for the next command.
    """

    def __init__(self, config: TrackingConfig, output: Path, *, must_answer: bool = True) -> None:
        """Connect, create the experiment if it does not exist, and start sending operations left by earlier commands.

        Raises UserError when the store is unreachable, as its address may be wrong; not when operations have been spooled for
        it before, and not with must_answer=False.
        """
        self.uri, self.output = config.uri or default_uri(output), output
        self.failures = 0
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
        """Return the tracker."""
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
