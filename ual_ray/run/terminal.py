"""Keep the chatter of Ray, vLLM and transformers off the terminal, and in a file.

Ray's workers, native code and progress bars write to the process's file descriptors, past any logging set-up. So the
descriptors themselves are turned to the log file, and our own console keeps a copy of the terminal.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from rich.console import Console

TAIL_LINES = 15
SIGTERM_EXIT_CODE = 128 + signal.SIGTERM
WIDTH = 120

_sigterm = threading.Event()


def make_console(file: TextIO | None = None) -> Console:
    """Make a console for standard output or `file`: as wide as the terminal, or as wide as tables need elsewhere."""
    file = file or sys.stdout
    return Console(file=file) if file.isatty() else Console(file=file, width=WIDTH, soft_wrap=True)


@contextmanager
def quiet(log_file: Path) -> Iterator[Console]:
    """Send everything but the yielded console to `log_file` while the block runs."""
    log_file.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    kept_out, kept_err = os.dup(1), os.dup(2)
    log = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    terminal = os.fdopen(os.dup(kept_out), "w", buffering=1, encoding="utf-8", errors="replace")
    os.environ.setdefault("TQDM_MININTERVAL", "10")
    try:
        os.dup2(log, 1)
        os.dup2(log, 2)
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        yield make_console(terminal)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(kept_out, 1)
        os.dup2(kept_err, 2)
        for descriptor in (kept_out, kept_err, log):
            os.close(descriptor)
        terminal.close()


def end_on_sigterm() -> None:
    """Make SIGTERM an orderly end, in which runs are closed as KILLED; Ray puts a handler of its own in its place."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _end)


def ended_by_sigterm() -> bool:
    """Tell whether SIGTERM has come: inside a call of Ray it surfaces as a KeyboardInterrupt."""
    return _sigterm.is_set()


def _end(*_: object) -> None:
    _sigterm.set()
    sys.exit(SIGTERM_EXIT_CODE)


def tail(log_file: Path) -> str:
    """Return the last lines of the log, for the message about a crash."""
    if not log_file.is_file():
        return ""
    with log_file.open("rb") as file:
        file.seek(max(0, log_file.stat().st_size - 20_000))
        return "\n".join(file.read().decode(errors="replace").splitlines()[-TAIL_LINES:])
