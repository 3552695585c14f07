"""Serve the MLflow UI of an output folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from rich.console import Console

from ual_ray.errors import UserError


def serve(uri: str | None, output: Path, host: str, port: int, console: Console) -> int:
    """Run MLflow's own server until it is stopped; return its exit code. Raises UserError when there is no store."""
    from ual_ray.config.paths import STORE_FILE
    from ual_ray.tracking.tracker import default_uri

    if uri is None and not (output / STORE_FILE).is_file():
        raise UserError(f"{output} holds no MLflow store", fix="give the output folder of a finished command, or --uri")
    console.print(f"MLflow: http://{host}:{port} (Ctrl-C stops it)", highlight=False, markup=False)
    command = [sys.executable, "-m", "mlflow", "ui", "--host", host, "--port", str(port)]
    command += ["--backend-store-uri", uri or default_uri(output)]
    try:
        return subprocess.call(command)  # noqa: S603
    except KeyboardInterrupt:
        return 0
