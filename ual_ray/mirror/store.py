"""MLflow's store in a working folder names files by absolute paths, which differ between machines."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from ual_ray.config.files import read_json, write_record
from ual_ray.config.paths import STORE_FILE
from ual_ray.tracking.run_file import RUN_FILE


def move_store(root: Path, before: str, now: str) -> None:
    """Replace the folder `before` by `now` in all texts of the SQLite store in `root`, and in the files that name its runs."""
    if (root / STORE_FILE).is_file():
        with closing(sqlite3.connect(root / STORE_FILE)) as store, store:
            for (table,) in store.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
                for _, column, kind, *_ in store.execute(f'PRAGMA table_info("{table}")').fetchall():
                    if "CHAR" in kind.upper() or "TEXT" in kind.upper():
                        change = f'UPDATE "{table}" SET "{column}" = replace("{column}", ?, ?) WHERE instr("{column}", ?)'  # noqa: S608
                        store.execute(change, (before, now, before))
    for file in root.rglob(RUN_FILE):
        found = read_json(file)
        write_record(file, {**found, "uri": found["uri"].replace(before, now)})
