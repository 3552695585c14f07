"""Damage to files, as a disk or a broken copy does it."""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TIMES = itertools.count(1)


def damages(content: bytes, flips: int = 20, seed: int = 0, end: int | None = None) -> list[bytes]:
    """Flip one bit, before `end`, in each of `flips` copies, and cut others at several positions."""
    draw, copies, end = random.Random(seed), [], len(content) if end is None else end
    for _ in range(flips):
        copy = bytearray(content)
        copy[draw.randrange(end)] ^= 1 << draw.randrange(8)
        copies.append(bytes(copy))
    cuts = {0, 1, len(content) // 3, len(content) // 2, len(content) - 8, len(content) - 1}
    return copies + [content[:cut] for cut in sorted(cuts) if 0 <= cut < len(content)]


@contextmanager
def damaged(file: Path, content: bytes) -> Iterator[None]:
    """Let a file have another content while the block runs."""
    before = file.read_bytes()
    try:
        write(file, content)
        yield
    finally:
        write(file, before)


def write(file: Path, content: bytes) -> None:
    """Replace a file's content, with another time: two writes within a tick of the clock have the same."""
    file.write_bytes(content)
    os.utime(file, ns=(0, next(TIMES)))


def each_damage(file: Path, flips: int = 20, seed: int = 0) -> Iterator[bytes]:
    """Let a file have each damage in turn; it is whole again at the end."""
    for content in damages(file.read_bytes(), flips, seed):
        with damaged(file, content):
            yield content
