"""Deduplication across workers: one row per content, and one per id of the user's data."""

import sqlite3
from collections.abc import Sequence
from contextlib import closing


class Deduplicator:
    """Maps each id to the position in the data that claimed it first, in a temporary SQLite table that spills to disk.

    A shard that is read again after its worker died has the same positions, and so gets the same answers.
    """

    def __init__(self) -> None:
        self._table = sqlite3.connect("", check_same_thread=False)
        # The table is temporary: no journal, no waiting for the disk, and in memory while it is small.
        self._table.executescript("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -262144;")
        self._table.execute("CREATE TABLE claims (id TEXT PRIMARY KEY, position INTEGER NOT NULL) WITHOUT ROWID")
        self._table.execute("CREATE TABLE repeats (position INTEGER PRIMARY KEY)")

    def claim(self, ids: Sequence[str], positions: Sequence[int]) -> list[bool]:
        """Return, for each id, whether it belongs to this position, that is, whether this position claimed it first."""
        with self._table, closing(self._table.cursor()) as cursor:
            return [self._claim(cursor, identity, position) for identity, position in zip(ids, positions, strict=True)]

    def _claim(self, cursor: sqlite3.Cursor, identity: str, position: int) -> bool:
        cursor.execute("INSERT OR IGNORE INTO claims VALUES (?, ?)", (identity, position))
        if cursor.rowcount:
            return True
        (owner,) = cursor.execute("SELECT position FROM claims WHERE id = ?", (identity,)).fetchone()
        if owner != position:
            cursor.execute("INSERT OR IGNORE INTO repeats VALUES (?)", (position,))
        return owner == position

    def duplicates(self) -> int:
        """Count the positions whose content an other position claimed first, each once however often it was read."""
        return self._table.execute("SELECT COUNT(*) FROM repeats").fetchone()[0]
