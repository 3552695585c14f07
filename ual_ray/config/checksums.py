"""SHA-256 of files, in a list next to them: a bit that a disk or a copy changed, and a cut file, are errors, not other data.

The list has the format of `sha256sum -c`. A folder without one, of an earlier version or of others, is taken as it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from ual_ray.config.files import write_text
from ual_ray.errors import UserError

SUMS_FILE = "checksums.sha256"
# Files that are read side by side: hashing takes a core per 2 GB/s, and a disk may be faster.
READERS = 8
DIGITS = 64

Sums = Mapping[str, str]


def sha256(file: Path) -> str:
    """Hash a file, once per process for as long as its size and times stay: 64 hexadecimal digits."""
    found = file.stat()
    return hash_once(str(file.resolve()), found.st_size, found.st_mtime_ns, found.st_ctime_ns)


@cache
def hash_once(path: str, *_state: int) -> str:
    """Hash a file in a state that the other arguments describe."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_sums(folder: Path, sums: Sums) -> None:
    """Write the list of a folder atomically; sums: name to SHA-256."""
    write_text(folder / SUMS_FILE, to_text(sums))


def read_sums(folder: Path) -> dict[str, str]:
    """Read the list of a folder; empty if there is none. Raises UserError for a damaged one."""
    file = folder / SUMS_FILE
    try:
        return from_text(file.read_bytes()) if file.is_file() else {}
    except ValueError as error:
        fix = "restore it from a copy, or remove it: the files next to it are then taken as they are"
        raise UserError(f"{file} is damaged", got=error, fix=fix) from error


def to_text(sums: Sums) -> str:
    """Write a list. The first line counts the files: half of a list is not taken for a list."""
    return "".join([f"# {len(sums)} files\n", *(f"{digest}  {name}\n" for name, digest in sorted(sums.items()))])


def from_text(content: bytes) -> dict[str, str]:
    """Read a list. Raises ValueError for a damaged one."""
    text = content.decode()
    sums = {line[DIGITS + 2 :]: line[:DIGITS] for line in text.split("\n")[1:-1]}
    if to_text(sums) != text:
        raise ValueError("it is not a list of checksums with all of its lines")
    return sums


def damage_in(folder: Path, digest: Callable[[Path], str] = sha256) -> list[str]:
    """Describe which files of a folder differ from its list, or are missing; empty where there is no list."""
    sums = read_sums(folder)
    with ThreadPoolExecutor(READERS) as pool:
        return [*filter(None, pool.map(lambda name: damage_of(name, sums[name], lambda: digest(folder / name)), sums))]


def damage_of(name: str, expected: str, digest: Callable[[], str]) -> str | None:
    """Describe what is wrong with a file; None = nothing. Raises OSError when it cannot be read now."""
    try:
        return None if digest() == expected else f"{name} does not match {SUMS_FILE}"
    except FileNotFoundError:
        return f"{name} of {SUMS_FILE} is missing"


def refuse_damage(what: str, folder: Path, fix: str, digest: Callable[[Path], str] = sha256) -> None:
    """Raise UserError where files of a folder differ from its list. what: is in the folder, such as "the model"."""
    try:
        damage = damage_in(folder, digest)
    except OSError as error:  # such as a sector that the disk cannot read
        raise UserError(f"{what} in {folder} cannot be read", got=error, fix=fix) from error
    if damage:
        raise UserError(f"{what} in {folder} is damaged: a disk or a copy changed it", got="; ".join(damage), fix=fix)


def sums_of(files: Iterable[Path]) -> dict[str, str]:
    """Hash files of one folder, by their names."""
    return {file.name: sha256(file) for file in files}
