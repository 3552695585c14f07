"""Scripts of bench/ as modules."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

BENCH = Path(__file__).parents[2] / "bench"


def script(name: str) -> ModuleType:
    """Load bench/NAME.py; what it imports from bench/ it must import in a function that no test calls."""
    return module(BENCH / f"{name}.py", f"bench_{name}")


def module(path: Path, name: str) -> ModuleType:
    """Load a file as a module of a name."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = loaded
    spec.loader.exec_module(loaded)
    return loaded
