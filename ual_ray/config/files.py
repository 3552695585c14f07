"""Atomic writes: a reader sees the old content of a file or the new, also when the writer is killed.

What stages record for one another has a checksum: a digit that a disk changed is an error, not another result. So have
files with a list of SHA-256 sums next to them, in the format of `sha256sum -c`. A folder without a list, of an earlier version
or of others, is taken as it is.
"""

import hashlib
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from itertools import chain
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from ual_ray.errors import UserError

STORE_FILE = "mlflow.db"
ARTIFACTS_FOLDER = "mlflow-artifacts"
SPOOL_FOLDER = "mlflow-spool"
PROGRESS_FILE = "progress.json"
# In MLflow, the version of a model: among the figures of its training, or in a file where it was registered after that.
REGISTERED, REGISTERED_FILE = "registered_version", "registered.json"
# In the cache of this machine: where commands work whose output is a URI.
WORKING_FOLDERS = "outputs"
# Next to a working folder: its URI.
URI_FILE = "uri"
# In the cache of another machine of the cluster: what it reads of such a folder.
COPIES_FOLDER = "copies"


# A record's last entry; both are looked for, as a bit of either may have changed.
CHECKSUM, KIND = "checksum", "crc32:"
RESTORE = "restore it from a copy, or remove it with done.json next to it, and run the same command again"
SUMS_FILE = "checksums.sha256"
# Files that are read side by side: hashing takes a core per 2 GB/s, and a disk may be faster.
READERS = 8
DIGITS = 64
# Values within each other, of rows, replies and files: functions go through them by recursion.
DEEPEST_JSON = 100
Sums = Mapping[str, str]


def try_writing(folder: Path) -> None:
    """Make a folder, and in it a file that is gone at once. Raises OSError where either cannot be made."""
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryFile(dir=folder):
        pass


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give the path of a file next to `path` to write to; rename it to `path` when the block ends without an error."""
    part = path.with_name(f"{path.name}.part")
    yield part
    part.replace(path)


def write_text(path: Path, text: str) -> None:
    """Write a text atomically, in UTF-8; lone surrogates are written as escapes."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, content: Any, *, allow_nan: bool = True) -> None:
    """Write JSON atomically; values that JSON lacks, such as paths, as text. Raises ValueError for NaN if not allowed."""
    write_text(path, json.dumps(content, indent=2, default=str, allow_nan=allow_nan))


def write_record(path: Path, content: Mapping[str, Any], *, allow_nan: bool = True) -> None:
    """Write JSON as `write_json` does, with a checksum that `read_json` compares and leaves out."""
    write_json(path, summed(content), allow_nan=allow_nan)


def summed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Add a checksum to what JSON is made of; `fits` compares it."""
    plain = json.loads(json.dumps(content, default=str))
    return {**plain, CHECKSUM: _checksum(plain)}


def fits(content: dict[str, Any]) -> bool:
    """Remove the checksum of `summed`; return whether the rest is what was written, as it is taken for without one."""
    marks = [key for key, value in content.items() if key == CHECKSUM or (isinstance(value, str) and value.startswith(KIND))]
    sums = {key: content.pop(key) for key in marks}
    return not sums or sums == {CHECKSUM: _checksum(content)}


def _checksum(content: Mapping[str, Any]) -> str:
    return f"{KIND}{zlib.crc32(json.dumps(content).encode()):08x}"


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one line of JSON per row atomically; values that JSON lacks as text."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows))


def read_object(path: Path, *keys: str, fix: str = RESTORE) -> dict[str, Any] | None:
    """Read a JSON file of an object with these keys as `read_json` does. Raises UserError for another value, too."""
    content = read_json(path, fix)
    if content is None or isinstance(content, dict) and content.keys() >= {*keys}:
        return content
    raise UserError("a file is damaged", got=path, expected=f"an object with {', '.join(keys) or 'keys'}", fix=fix)


def parse_json(text: str, parse: Callable[[str], Any] = json.loads) -> Any:
    """Parse JSON. Raises ValueError, also for more than DEEPEST_JSON values within each other."""
    too_deep = ValueError(f"more than {DEEPEST_JSON} values are within each other")
    try:
        value = parse(text)
    except RecursionError:
        raise too_deep from None
    if text.count("[") + text.count("{") > DEEPEST_JSON and is_deep(value):
        raise too_deep
    return value


def is_deep(value: Any) -> bool:
    """Whether more than DEEPEST_JSON values are within each other."""
    level = [value]
    for _ in range(DEEPEST_JSON):
        parts = chain.from_iterable(
            one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list)
        )
        if not (level := [part for part in parts if isinstance(part, dict | list)]):
            return False
    return True


def read_json(path: Path, fix: str = RESTORE) -> Any:
    """Read a JSON file; None if it does not exist. Raises UserError for one that is damaged; fix: what to do then."""
    try:
        content = parse_json(path.read_text(encoding="utf-8")) if path.is_file() else None
    # The machine stopped before all of it was on the disk, or somebody changed it.
    except ValueError as error:
        raise UserError("a file is not JSON", got=f"{path}: {error}", fix=fix) from error
    if isinstance(content, dict) and not fits(content):
        raise UserError(
            "a file is not what was written: a disk or somebody changed it",
            got=path,
            fix=f'{fix}; if you changed it yourself, remove its line "{CHECKSUM}"',
        )
    return content


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
