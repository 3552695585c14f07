"""Atomic writes: a reader sees the old content of a file or the new, also when the writer is killed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ual_ray.errors import UserError


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


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one line of JSON per row atomically; values that JSON lacks as text."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows))


def read_json(path: Path) -> Any:
    """Read a JSON file; None if it does not exist. Raises UserError for one that is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except ValueError as error:  # the machine stopped before all of it was on the disk, or somebody changed it
        raise UserError("a file is not JSON", got=f"{path}: {error}", fix="restore it from a copy, or remove it") from error
