"""What the parts of gpu_check.py share: the device, its clock and memory, and a report that no failing case can lose."""

from __future__ import annotations

import gc
import json
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda", 0) if CUDA else torch.device("cpu")
GB = 1e9


def device_name() -> str:
    """Name the card, or the lack of one."""
    return torch.cuda.get_device_name(DEVICE) if CUDA else "cpu"


class Report:
    """Results by part and case, written to a JSON file after each case."""

    def __init__(self, path: Path, machine: dict[str, Any], seconds: float) -> None:
        """Take the file and the facts that come first in it; cases that would start after so many seconds are skipped."""
        self._path, self._end = path, time.perf_counter() + seconds
        command = " ".join(["bench/gpu_check.py", *(word for word in sys.argv[1:] if "/" not in word)])
        self.content: dict[str, Any] = {"name": path.stem, "command": command, "machine": machine, "seconds": {}}

    def case(self, part: str, name: str, work: Callable[..., Any], *arguments: Any) -> Any:
        """Record what the work returns, or the error that it raises; return it too."""
        started = time.perf_counter()
        found = attempt(work, *arguments) if started < self._end else {"error": "skipped: the time is over"}
        self.content.setdefault(part, {})[name] = found
        self.content["seconds"][part] = self.content["seconds"].get(part, 0.0) + time.perf_counter() - started
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(json.dumps(self.content, indent=1) + "\n")
        print(f"{part}, {name} ({time.perf_counter() - started:.1f} s): {json.dumps(found)[:400]}", flush=True)
        free()
        return found


def attempt(work: Callable[..., Any], *arguments: Any) -> Any:
    """Return what the work returns; of an error, its text and where it came from."""
    try:
        return work(*arguments)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # torch's CheckpointException is not an Exception
        last = traceback.extract_tb(error.__traceback__)[-1]
        return {"error": f"{type(error).__name__}: {str(error)[:600]}", "at": f"{Path(last.filename).name}:{last.lineno}"}


def free() -> None:
    """Give back what an earlier case held, an out-of-memory error's tensors among it."""
    gc.collect()
    if CUDA:
        torch.cuda.empty_cache()


def sync() -> None:
    """Wait for the device."""
    if CUDA:
        torch.cuda.synchronize()


def best_ms(work: Callable[[], Any], times: int = 3) -> float:
    """Time the work, in milliseconds: the best of several, after one that warms up."""
    work()
    best = float("inf")
    for _ in range(times):
        sync()
        started = time.perf_counter()
        work()
        sync()
        best = min(best, time.perf_counter() - started)
    return 1e3 * best


def reset_peak() -> int:
    """Start to watch the device's memory; return what is allocated now, in bytes, and 0 on a CPU."""
    if not CUDA:
        return 0
    free()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def peak_gb(before: int = 0) -> float | None:
    """Return the most memory allocated since `reset_peak`, in GB over `before`; None on a CPU."""
    return (torch.cuda.max_memory_allocated() - before) / GB if CUDA else None
