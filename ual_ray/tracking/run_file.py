"""The file that maps a folder to its MLflow run: the local id, and MLflow's id once the store has created the run.

The store names files by absolute paths, which differ between machines: `move_store` changes those of a working folder.
"""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from ual_ray.config.files import STORE_FILE, URI_FILE, WORKING_FOLDERS, read_json, read_object, write_record

RUN_FILE = "mlflow_run.json"


def place_of(path: Path | str, output: Path) -> str:
    """Name a file for others: by the URI of the output, where that has one and `output` is the working folder for it."""
    root, uri = output.absolute(), output.absolute().parent / URI_FILE
    if root.parent.parent.name != WORKING_FOLDERS or not uri.is_file() or not Path(path).is_relative_to(root):
        return str(path)
    place = uri.read_text(encoding="utf-8").partition("?")[0].rstrip("/")
    return "/".join([place, *Path(path).relative_to(root).parts])


def read_run(folder: Path, uri: str) -> dict[str, Any]:
    """Return `local_id` and `run_id` of a folder's run in the store `uri` (without secrets); empty when there is none."""
    found = read_object(folder / RUN_FILE, "uri", "local_id") or {}
    return found if found.get("uri") == uri else {}


def logged_model(model: str, name: str, digest: str, uri: str) -> dict[str, str]:
    """Identify MLflow's logged model of a model in the store `uri` (without secrets), for `Run.metrics`.

    That of the training that wrote the model directory; for a model that was not trained here, one without files, called
    `name` and identified by the digest.
    """
    folder = Path(model)
    trained = read_run(folder.parent, uri) if folder.is_dir() else {}
    return {"id": trained.get("local_id") or digest, "name": name}


def write_run(folder: Path, uri: str, local_id: str, run_id: str | None) -> None:
    """Record a folder's run; run_id: null until the store has created it."""
    folder.mkdir(parents=True, exist_ok=True)
    write_record(folder / RUN_FILE, {"uri": uri, "local_id": local_id, "run_id": run_id})


def resolve_run(folder: Path, local_id: str, run_id: str) -> None:
    """Add MLflow's id, unless the folder has been emptied or given to another run since."""
    found = read_object(folder / RUN_FILE, "uri", "local_id") or {}
    if found.get("local_id") == local_id:
        write_run(folder, found["uri"], local_id, run_id)


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
