"""The command `ual` as a process of its own, where the workers of its local Ray are forked.

python tests/helpers/forking_ual.py MODULE,... ARGUMENT...: the modules are what those workers import.
"""

import sys
from collections.abc import Sequence
from typing import Any
from unittest import mock

from worker_forks import forked_workers


def forking_ual(modules: Sequence[str]) -> list[str]:
    """Spell the command, without arguments."""
    return [sys.executable, __file__, ",".join(modules)]


def main(modules: str, *arguments: str) -> None:
    """Run it."""
    from ual_ray.cli import app

    run = app.app

    def forking(*given: Any, **options: Any) -> None:
        with forked_workers(*modules.split(",")):  # imports Ray, which reads variables that the command sets before
            run(*given, **options)

    with mock.patch.object(app, "app", forking), mock.patch.object(sys, "argv", ["ual"]):
        app.main(*arguments)


if __name__ == "__main__":
    main(*sys.argv[1:])
