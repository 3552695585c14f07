"""The output folder as an actor or a rank sees it: a path of its own machine, or a folder of the driver's machine alone."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock

from ual_ray.columns import digest

Answer = TypeVar("Answer")
Call = Callable[..., Any]

# Bytes that travel at a time.
CHUNK = 16 * 2**20
PART = ".part"


class Folder:
    """A folder that this machine sees, under the path that the driver gives."""

    def call(self, function: Callable[..., Answer], *arguments: Any) -> Answer:
        """Call a function of a module where the folder is."""
        return function(*arguments)

    @contextmanager
    def writing(self, path: Path) -> Iterator[Path]:
        """Give a path to write a file or a folder to; what is there when the block ends is at `path` of the folder."""
        yield path

    def fetched(self, path: Path) -> Path:
        """Return where a file or a folder that the driver sees can be read here."""
        return path

    def fetched_model(self, name: str) -> str:
        """Return where a model can be read here that is in the output; other names and paths are those of every machine."""
        return name


HERE = Folder()


@dataclass(frozen=True)
class FolderElsewhere(Folder):
    """A folder `root` of another machine. `ask` calls functions there; what is read is copied below `copies`."""

    ask: Call
    root: Path
    copies: Path

    def call(self, function: Callable[..., Answer], *arguments: Any) -> Answer:
        """Call a function of a module where the folder is."""
        return self.ask(function, *arguments)

    @contextmanager
    def writing(self, path: Path) -> Iterator[Path]:
        """Give a path of this machine; what is written there is sent when the block ends without an error, and removed here."""
        self.copies.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.copies, prefix="written-") as temporary:
            local = Path(temporary) / path.name
            yield local
            for name, (size, _) in versions(local).items():
                self._send(local / name, path / name, size)

    def fetched(self, path: Path) -> Path:
        """Copy what changed since the last time; processes of one machine share the copy, and fetch one after another."""
        copy = self.copies / path.relative_to(path.anchor)
        copy.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.copies / f"{digest(str(path))}.lock"):
            wanted, here = self.call(versions, path), versions(copy)
            for name in here.keys() - wanted.keys():
                (copy / name).unlink()
            for name, version in wanted.items():
                if here.get(name) != version:
                    self._fetch(path / name, copy / name, *version)
        return copy

    def fetched_model(self, name: str) -> str:
        """Return the path of a copy of a model that is in the output."""
        return str(self.fetched(Path(name))) if Path(name).is_relative_to(self.root) else name

    def _fetch(self, path: Path, copy: Path, size: int, changed: int) -> None:
        copy.parent.mkdir(parents=True, exist_ok=True)
        part = copy.with_name(f"{copy.name}{PART}")
        with part.open("wb") as file:
            for start in range(0, size, CHUNK):
                file.write(self.call(read_chunk, path, start))
        _check_size(part, size)
        os.utime(part, ns=(changed, changed))
        part.replace(copy)

    def _send(self, local: Path, path: Path, size: int) -> None:
        self.call(write_chunk, path, 0, b"")
        with local.open("rb") as file:
            for start in range(0, size, CHUNK):
                self.call(write_chunk, path, start, file.read(CHUNK))
        self.call(end_file, path, size)


def versions(path: Path) -> dict[str, tuple[int, int]]:
    """Return bytes and nanoseconds of the last change: of a file ("."), or of all whole files of a folder by name."""
    files = path.rglob("*") if path.is_dir() else [path]
    found = {str(file.relative_to(path)): file.stat() for file in files if file.is_file() and file.suffix != PART}
    return {name: (state.st_size, state.st_mtime_ns) for name, state in found.items()}


def read_chunk(path: Path, start: int) -> bytes:
    """Read CHUNK bytes, or what is left."""
    with path.open("rb") as file:
        file.seek(start)
        return file.read(CHUNK)


def write_chunk(path: Path, start: int, content: bytes) -> None:
    """Write a part of a file that is not there until `end_file`; the first part, at 0, begins it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f"{path.name}{PART}").open("r+b" if start else "wb") as file:
        file.seek(start)
        file.write(content)


def end_file(path: Path, size: int) -> None:
    """Give a file that is written its name. Raises OSError where it is not whole."""
    part = path.with_name(f"{path.name}{PART}")
    _check_size(part, size)
    part.replace(path)


def append(path: Path, text: str) -> None:
    """Add a text to a file."""
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


def _check_size(file: Path, size: int) -> None:
    if (found := file.stat().st_size) != size:
        raise OSError(f"{file} has {found} bytes in place of {size}: it changed while it was copied")
