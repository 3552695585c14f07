"""What a command gets for an output or an input that may be a path or a URI: a local folder."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from pyarrow.fs import FileType, LocalFileSystem

from ual_ray.columns import ADAPTER_FOLDER, MODEL_FOLDER, digest
from ual_ray.config.files import ARTIFACTS_FOLDER, SPOOL_FOLDER, STORE_FILE, WORKING_FOLDERS
from ual_ray.config.redact import redact_uri
from ual_ray.mirror.remote import Remote, asked_all, open_remote
from ual_ray.models.resolve import cache_folder
from ual_ray.run.terminal import absolute, is_uri, make_console, short

# What no command reads that takes a finished stage as its input.
NO_INPUT = {MODEL_FOLDER, ADAPTER_FOLDER, ARTIFACTS_FOLDER, SPOOL_FOLDER, STORE_FILE, "checkpoints", "tokens"}

_fetched: list[tempfile.TemporaryDirectory[str]] = []


@dataclass(frozen=True)
class Output:
    """An output folder: `root` is where the command works; with a `remote`, a copy of it is kept there."""

    root: Path
    remote: Remote | None = None

    @contextmanager
    def held(self) -> Iterator[Path]:
        """Fetch what is at the URI, and copy there what is written to the working folder meanwhile. A path is left as it is."""
        if self.remote is None:
            yield self.root
            return
        from ual_ray.mirror.transfer import Mirror  # with Ray, which paths do without

        with Mirror(self.remote, self.root).held(_say):
            yield self.root

    def name(self, *parts: str) -> str:
        """Name a file of the output to the user."""
        if self.remote is None:
            return str(short(self.root.joinpath(*parts)))
        return redact_uri("/".join([self.remote.uri.partition("?")[0].rstrip("/"), *parts]))


def open_output(place: Path | str, key: str = "output") -> Output:
    """Find the folder to work in. Raises UserError within seconds for a URI that cannot be used. key: names it in errors."""
    if not is_uri(place):
        return Output(absolute(Path(place)))
    remote = open_remote(str(place), key)
    if isinstance(remote.filesystem, LocalFileSystem):
        return Output(Path(remote.root))
    remote.check()
    return Output(working_folder(remote), remote)


def working_folder(remote: Remote) -> Path:
    """Return the folder of this machine in which commands work for a URI."""
    name = remote.uri.partition("?")[0].rstrip("/")
    return (cache_folder() / WORKING_FOLDERS / digest(remote.uri.rstrip("/")) / PurePosixPath(name).name).absolute()


def local_input(place: Path | str, key: str, *, with_store: bool = False) -> Path:
    """Return a path as it is; of a URI, a copy that lasts until the process ends, without models, checkpoints and MLflow.

    with_store: MLflow's files alone. Raises UserError for a URI that cannot be read.
    """
    if not is_uri(place):
        return absolute(Path(place))
    from ual_ray.mirror.transfer import MARKER, fetch
    from ual_ray.tracking.run_file import move_store

    remote = open_remote(str(place), key)
    if isinstance(remote.filesystem, LocalFileSystem):
        return Path(remote.root)
    remote.check()
    _fetched.append(tempfile.TemporaryDirectory(prefix="ual-"))
    root = Path(_fetched[-1].name).resolve() / PurePosixPath(remote.root).name
    if remote.filesystem.get_file_info(remote.root).type == FileType.File:
        root.parent.mkdir(exist_ok=True)
        folder = replace(remote, root=str(PurePosixPath(remote.root).parent))
        asked_all(remote, "read", lambda: folder.get(root.name, root))
        return root

    def wanted(name: str) -> bool:
        parts = set(PurePosixPath(name).parts)
        return parts & {ARTIFACTS_FOLDER, STORE_FILE} != set() if with_store else not parts & NO_INPUT

    asked_all(remote, "read", lambda: fetch(remote, root, wanted))
    if with_store and (marker := remote.read(MARKER)) is not None:
        move_store(root, marker["folder"], str(root))
    return root


def _say(text: str) -> None:
    make_console().print(text, highlight=False, markup=False)
