"""The terminal of a command: its console, its log file, how it ends on SIGTERM, and how it reports a crash.

Ray's workers, native code and progress bars write to the process's file descriptors and bypass `logging`. So the descriptors
themselves are redirected to the log file, and the console writes to a duplicate of the terminal.
"""

import logging
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.markup import escape

from ual_ray.errors import UserError

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
LOG_TAIL_LINES = 15
LOG_TAIL_BYTES = 20_000
SIGTERM_EXIT_CODE = 128 + signal.SIGTERM
WIDTH = 120
# A path object has dropped the second slash.
MANGLED_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/+")
# In the words of the system, of pyarrow, of SQLite, and of Ray's object store, which spills to a disk.
WORDS = "No space left on device|Disk quota exceeded|disk is full|disk's utilization is over capacity"
DISK_FULL = re.compile(rf"[^\n]*\b(?:{WORDS})\b[^\n]*", re.IGNORECASE)
STORE_FULL = re.compile(r"[^\n]*\bobject store is full of objects\b[^\n]*")
AGAIN = "and run the same command again: what is finished is kept"
MAKE_ROOM = f"make room (`df -h` shows the disks; Ray writes to the one of /tmp too) {AGAIN}"
NO_ROOM = 1 << 20  # bytes

_sigterm = threading.Event()


class _RedactedRecord(logging.LogRecord):
    """Masks secrets in messages, whatever handler writes them: MLflow has one of its own."""

    def getMessage(self) -> str:  # noqa: N802
        from ual_ray.config.redact import redact_uri  # with pydantic, which `ual --help` does not wait for

        return redact_uri(super().getMessage())


class _RedactingFormatter(logging.Formatter):
    """Masks secrets in tracebacks too."""

    def format(self, record: logging.LogRecord) -> str:
        from ual_ray.config.redact import redact_uri

        return redact_uri(super().format(record))


def make_console(file: TextIO | None = None) -> Console:
    """Make a console for `file` (standard output by default): as wide as the terminal, WIDTH columns on a pipe."""
    file = file or sys.stdout
    return Console(file=file) if file.isatty() else Console(file=file, width=WIDTH, soft_wrap=True)


@contextmanager
def terminal(log_file: Path, verbose: bool) -> Iterator[Console]:
    """Yield the console of a command; unless `verbose`, all other output of the process goes to `log_file`.

    Raises a UserError that a Ray worker reported as one. Any other error is printed with the end of the log, and exits with 1.
    """
    if verbose:
        yield make_console()
        return
    failure: Exception | None = None
    with _redirected(log_file) as console:
        console.print(f"log of Ray, vLLM and transformers: {short(log_file)}", highlight=False, markup=False)
        try:
            yield console
        except UserError:
            raise
        except Exception as error:
            logging.getLogger(__name__).exception("the command failed")
            failure = error
    if failure is not None:
        from ual_ray.config.redact import redact_uri

        if (user_error := user_error_in(failure) or _no_room(failure, log_file.parent)) is not None:
            raise user_error
        Console(stderr=True).print(
            f"[bold red]failed:[/bold red] {type(failure).__name__}: {escape(redact_uri(str(failure))[:500])}\n\n"
            f"[dim]{escape(redact_uri(_tail(log_file)))}[/dim]\n\nfull log: {escape(str(log_file))}",
            highlight=False,
        )
        raise SystemExit(1) from failure


@contextmanager
def _redirected(log_file: Path) -> Iterator[Console]:
    """Redirect standard output and error to `log_file` while the block runs; the yielded console keeps the terminal."""
    try:
        log_file.parent.mkdir(parents=True, exist_ok=True)
        log = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError as error:
        raise UserError(f"output {log_file.parent} cannot be written", got=error, expected="a writable directory") from error
    sys.stdout.flush()
    sys.stderr.flush()
    kept_out, kept_err = os.dup(1), os.dup(2)
    console_file = os.fdopen(os.dup(kept_out), "w", buffering=1, encoding="utf-8", errors="replace")
    os.environ.setdefault("TQDM_MININTERVAL", "10")
    factory = logging.getLogRecordFactory()
    logging.setLogRecordFactory(_RedactedRecord)
    try:
        os.dup2(log, 1)
        os.dup2(log, 2)
        logging.basicConfig(level=logging.INFO)
        for handler in logging.getLogger().handlers:
            handler.setFormatter(_RedactingFormatter(LOG_FORMAT))
        yield make_console(console_file)
    finally:
        logging.setLogRecordFactory(factory)
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(kept_out, 1)
        os.dup2(kept_err, 2)
        for descriptor in (kept_out, kept_err, log):
            os.close(descriptor)
        console_file.close()


def user_error_in(error: BaseException) -> UserError | None:
    """Find a UserError that a Ray worker raised and Ray wrapped in errors of its own, or that a disk was full."""
    seen: Any = error
    while seen is not None:
        if isinstance(seen, UserError):
            return UserError(str(seen).rsplit("UserError: ", 1)[-1])
        if full := DISK_FULL.search(str(seen)):
            return UserError("a disk is full", got=full[0].strip(), fix=MAKE_ROOM)
        if full := STORE_FULL.search(str(seen)):
            fix = f"end other jobs of the cluster, or start it with a larger --object-store-memory, {AGAIN}"
            return UserError("Ray's object store is full", got=full[0].strip(), fix=fix)
        workers = getattr(seen, "worker_failures", None) or {}
        seen = next(iter(workers.values()), None) or getattr(seen, "cause", None) or seen.__cause__
    return None


def _no_room(error: Exception, output: Path) -> UserError | None:
    """Explain an error where a disk has no byte left: whoever met that could not write a word about it."""
    from ual_ray.config.redact import redact_uri

    for folder in filter(Path.is_dir, (output, Path(tempfile.gettempdir()))):
        if (free := shutil.disk_usage(folder).free) < NO_ROOM:
            got = f"{free} bytes are free at {folder}; {type(error).__name__}: {redact_uri(str(error))[:500]}"
            return UserError("a disk is full", got=got, fix=MAKE_ROOM)
    return None


def _tail(log_file: Path) -> str:
    with log_file.open("rb") as file:
        file.seek(max(0, log_file.stat().st_size - LOG_TAIL_BYTES))
        return "\n".join(file.read().decode(errors="replace").splitlines()[-LOG_TAIL_LINES:])


def end_on_sigterm() -> None:
    """Exit through the `finally` blocks on SIGTERM, so that MLflow runs end as KILLED. Ray replaces the handler: call again."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _end)


def ended_by_sigterm() -> bool:
    """Tell whether SIGTERM was received: inside a call of Ray it surfaces as a KeyboardInterrupt."""
    return _sigterm.is_set()


def end_command() -> None:
    """End the command of this process as SIGTERM does, from any thread. Does nothing where `end_on_sigterm` was not called."""
    if signal.getsignal(signal.SIGTERM) is _end:
        os.kill(os.getpid(), signal.SIGTERM)


def _end(*_: object) -> None:
    _sigterm.set()
    sys.exit(SIGTERM_EXIT_CODE)


def is_uri(place: Path | str) -> bool:
    """Whether a place is given by a URI, such as s3://bucket/run, and not by a path."""
    return "://" in str(place)


def absolute(path: Path) -> Path:
    """Return a path that is valid in Ray's workers too, which may have another working directory.

    Raises UserError for a URI: what takes one opens it before.
    """
    if found := MANGLED_URI.match(str(path)):
        raise UserError(
            "a URI is not possible here",
            got=f"{found[0].rstrip('/')}//...",
            expected="a local path",
            fix="copy it to a local folder",
        )
    return path.expanduser().absolute()


def short(path: Path) -> Path:
    """Return a path relative to the working directory if it is inside it; whole in the root folder, where jobs run."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) and here != here.parent else path
