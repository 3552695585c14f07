"""The file that maps a folder to its MLflow run: the local id, and MLflow's id once the store has created the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RUN_FILE = "mlflow_run.json"


def read_run(folder: Path, uri: str) -> dict[str, Any]:
    """Return `local_id` and `run_id` of a folder's run in the store `uri` (without secrets); empty when there is none."""
    file = folder / RUN_FILE
    found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return found if found.get("uri") == uri else {}


def write_run(folder: Path, uri: str, local_id: str, run_id: str | None) -> None:
    """Record a folder's run; run_id: null until the store has created it."""
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / (RUN_FILE + ".part")
    part.write_text(json.dumps({"uri": uri, "local_id": local_id, "run_id": run_id}), encoding="utf-8")
    part.replace(folder / RUN_FILE)


def resolve_run(folder: Path, local_id: str, run_id: str) -> None:
    """Add MLflow's id, unless the folder has been emptied or given to another run since."""
    file = folder / RUN_FILE
    found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if found.get("local_id") == local_id:
        write_run(folder, found["uri"], local_id, run_id)


# Tag: the process that holds a run open. A run that another process has reopened must not be closed by this one.
HOLDER = "ual_ray.process"
