"""Processes that tests wait for, look for and end."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import psutil

# Cores are shared with others, and nothing here waits for longer than it has to.
PATIENCE = 240.0


def free_port() -> int:
    """Find a port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(holds: Callable[[], Any], what: str, seconds: float = PATIENCE, interval: float = 0.05) -> Any:
    """Poll until something is true, and return it."""
    deadline = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < deadline, f"{seconds:.0f} s have passed without: {what}"
        time.sleep(interval)
    return found


def below(pid: int) -> list[psutil.Process]:
    """List all processes below one, as far as they are alive."""
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).children(recursive=True)
    return []


def title(process: psutil.Process) -> str:
    """Return what a process calls itself: Ray and vLLM write it there."""
    with suppress(psutil.Error):
        return " ".join(process.cmdline()).strip()
    return ""


def end(processes: Sequence[psutil.Process]) -> list[psutil.Process]:
    """Kill what is left of some processes; return what was left. psutil tells a process from a later one of its pid."""
    left = [process for process in processes if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=20)
    return left
