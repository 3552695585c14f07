"""The terminal of a command: its console, its log file, and a crash explained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

from ual_ray.errors import UserError
from ual_ray.run.terminal import make_console, quiet, tail

if TYPE_CHECKING:
    pass


@contextmanager
def terminal(log_file: Path, verbose: bool) -> Iterator[Console]:
    """Give a console; keep other output in the log unless it is asked for; explain a crash by the log's last lines."""
    if verbose:
        yield make_console()
        return
    failure: BaseException | None = None
    with quiet(log_file) as console:
        console.print(f"log of Ray, vLLM and transformers: {short(log_file)}", highlight=False)
        try:
            yield console
        except (UserError, KeyboardInterrupt, SystemExit):
            raise
        except Exception as error:
            import logging

            logging.getLogger(__name__).exception("the command failed")
            failure = error
    if failure is not None:
        if (user_error := _user_error_in(failure)) is not None:
            raise user_error
        Console(stderr=True).print(
            f"[bold red]failed:[/bold red] {type(failure).__name__}: {escape(failure)[:500]}\n\n"
            f"[dim]{escape(tail(log_file))}[/dim]\n\nthe whole log: {log_file}",
            highlight=False,
        )
        raise typer.Exit(1) from failure


def _user_error_in(error: BaseException) -> UserError | None:
    """Find the user's mistake that a Ray worker reported, wrapped in Ray's own errors."""
    seen: Any = error
    while seen is not None:
        if isinstance(seen, UserError):
            return UserError(str(seen).rsplit("UserError: ", 1)[-1])
        workers = getattr(seen, "worker_failures", None) or {}
        seen = next(iter(workers.values()), None) or getattr(seen, "cause", None) or seen.__cause__
    return None


def absolute(path: Path) -> Path:
    """Name a path so that Ray's workers, which may have another working directory, find it too."""
    return path.expanduser().absolute()


def short(path: Path) -> Path:
    """Name a path from here, where it lies below."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def escape(text: object) -> str:
    """Keep rich from reading brackets of a text as its markup."""
    from rich.markup import escape

    return escape(str(text))
