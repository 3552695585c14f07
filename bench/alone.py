"""Each contestant in a process of its own, so that no one's memory or threads are counted as another's."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any


def run_alone(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """Call a function of the benchmark's module in a new process, and return what it returns."""
    names = [argument for argument in arguments if isinstance(argument, str | int)]
    print(function.__name__, *names, file=sys.stderr, flush=True)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def run_side(script: str, side: str, log: Path, **options: Any) -> float:
    """Run `script --side SIDE --key value ...` in a new process, what it says in `log`; return its seconds, start-up included.

    Raises SystemExit, with the end of the log, when it fails.
    """
    command = [sys.executable, script, "--side", side]
    for key, value in options.items():
        command += [f"--{key.replace('_', '-')}", str(value)]
    started = time.monotonic()
    with log.open("w") as stream:
        done = subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT)
    seconds = time.monotonic() - started
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{log.read_text()[-4000:]}")
    return seconds


def best_seconds(run: Callable[[], Any], repeats: int) -> float:
    """Time a call several times and return the shortest; the first, which warms up, is not counted."""
    run()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def reset_peak() -> int:
    """Forget the high-water mark of the resident set; return the resident bytes of now."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak_bytes() -> int:
    """Return the high-water mark of this process's resident set since `reset_peak`, or since its start."""
    return _status("VmHWM")


def anonymous_bytes() -> int:
    """Return the resident bytes of now that are no pages of files."""
    return _status("RssAnon")


def _status(name: str) -> int:
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)]
    return 1024 * int(line.split()[1])
