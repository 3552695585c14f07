"""A folder that the driver's machine alone has, for the tests of what runs on others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ual_ray.run.folder import FolderElsewhere

# Where nothing can be read or made: who uses such a path other than through the driver fails.
DRIVER = Path("/proc/driver_only")


def elsewhere(there: Path, copies: Path) -> FolderElsewhere:
    """Reach paths below DRIVER, which the driver has in the folder `there`."""

    def real(argument: Any) -> Any:
        below = isinstance(argument, Path) and argument.is_relative_to(DRIVER)
        return there / argument.relative_to(DRIVER) if below else argument

    def ask(function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*map(real, arguments))

    return FolderElsewhere(ask, DRIVER, copies)
