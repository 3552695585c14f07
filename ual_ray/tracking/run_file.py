"""The file that maps a folder to its MLflow run: the local id, and MLflow's id once the store has created the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ual_ray.config.files import read_object, write_record

RUN_FILE = "mlflow_run.json"


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
