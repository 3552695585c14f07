"""A working folder that was fetched to another place: the store and the records in it name its files there."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from ual_ray.config.files import STORE_FILE
from ual_ray.tracking.run_file import move_store, read_run, write_run


def test_what_names_files_by_their_paths_is_changed_and_can_be_read(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / STORE_FILE)) as store, store:
        store.execute("CREATE TABLE runs (artifact_uri VARCHAR(200), steps INTEGER)")
        store.execute("INSERT INTO runs VALUES ('/before/run/mlflow-artifacts/1', 7)")
    for folder in (tmp_path, tmp_path / "elicit" / "0123"):
        write_run(folder, "sqlite:////before/run/mlflow.db", "local", "1")
    move_store(tmp_path, "/before/run", "/now/run")
    with closing(sqlite3.connect(tmp_path / STORE_FILE)) as store:
        assert store.execute("SELECT * FROM runs").fetchall() == [("/now/run/mlflow-artifacts/1", 7)]
    for folder in (tmp_path, tmp_path / "elicit" / "0123"):
        found = read_run(folder, "sqlite:////now/run/mlflow.db")
        assert (found["local_id"], found["run_id"]) == ("local", "1")
