"""Who was first? One row per content and per given id, however many workers read at a time."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing


class Claims:
    """Remembers which position of the data each id belongs to; the memory is a temporary SQLite table, on disk if need be.

    A piece of the data that is read again, because its worker died, has the same positions and gets the same answers.
    """

    def __init__(self) -> None:
        """Start with nothing claimed."""
        self._table = sqlite3.connect("", check_same_thread=False)
        # Nothing is to outlive this process: no journal, no waiting for the disk, and the table in memory while it is small.
        self._table.executescript("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -262144;")
        self._table.execute("CREATE TABLE claims (id TEXT PRIMARY KEY, position INTEGER NOT NULL) WITHOUT ROWID")

    def claim(self, ids: Sequence[str], positions: Sequence[int]) -> list[bool]:
        """Tell, for each id, whether it belongs to this position: the first that asked for it."""
        with self._table, closing(self._table.cursor()) as cursor:
            return [self._claim(cursor, identity, position) for identity, position in zip(ids, positions, strict=True)]

    def _claim(self, cursor: sqlite3.Cursor, identity: str, position: int) -> bool:
        cursor.execute("INSERT OR IGNORE INTO claims VALUES (?, ?)", (identity, position))
        if cursor.rowcount:
            return True
        (owner,) = cursor.execute("SELECT position FROM claims WHERE id = ?", (identity,)).fetchone()
        return owner == position
