"""What a command for a single stage sets up before the stage runs, and how it finds its input."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ual_ray.errors import UserError
from ual_ray.run.terminal import absolute, is_uri, terminal

if TYPE_CHECKING:
    from ual_ray.config import Config
    from ual_ray.mirror.output import Output
    from ual_ray.run import StageName
    from ual_ray.run.step import Session


@contextmanager
def session(config: Config, output: Output, stage: StageName, *, force: bool, verbose: bool) -> Iterator[Session]:
    """Lock the output folder, open its log file and its MLflow store, and yield the session of a single stage."""
    from ual_ray.run.output import Workspace
    from ual_ray.run.stage_cache import LOG_FILE

    with output.held() as out, Workspace(out).held(), terminal(out / LOG_FILE, verbose) as console:
        from ual_ray.run.step import Session
        from ual_ray.tracking.tracker import Tracker

        only = frozenset({stage})
        with Tracker(config.tracking, out) as tracker:
            session = Session(config, console, tracker, only if force else frozenset(), only)
            with session.cluster:
                yield session
        session.say_failures()


def find(place: str, inside: str, made_by: str) -> Path:
    """Return `place`/`inside`, or that of the newest result in the folder `place`, or else `place` itself; of a URI, a copy.

    Raises UserError when it does not exist, or holds no Parquet file; `made_by` is the command that writes it.
    """
    from ual_ray.run.stage_cache import newest

    path = local(place)
    places = (path, newest(path), *map(newest, (path / "elicit", path / "evaluate")))
    found = next((place / inside for place in places if (place / inside).exists()), path)
    expected = f"output of `{made_by}`"
    if not found.exists():
        raise UserError(
            "the input does not exist", got=path, expected=expected, fix=f"check the path, or run `{made_by}` first"
        )
    if found.is_dir() and not _holds_rows(found):
        raise UserError(
            f"there is no '{inside}' in the folder",
            got=path,
            expected=expected,
            fix=f"give another folder, or run `{made_by}` to its end",
        )
    if not found.is_dir() and found.suffix != ".parquet":
        raise UserError("the input is not a Parquet file", got=path, expected=expected)
    return found


def _holds_rows(folder: Path) -> bool:
    """Whether a folder holds Parquet files and no others, as a reader of all its files needs; hidden ones are not read."""
    parts = (file.relative_to(folder) for file in folder.rglob("*") if file.is_file())
    return {part.suffix for part in parts if not any(name.startswith((".", "_")) for name in part.parts)} == {".parquet"}


def local(place: Path | str, *, with_store: bool = False) -> Path:
    """Return a path as it is; of a URI, a copy that lasts until the command ends."""
    if not is_uri(place):
        return absolute(Path(place))
    from ual_ray.mirror.output import local_input

    return local_input(place, "the input", with_store=with_store)
