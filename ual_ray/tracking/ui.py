"""Serve the MLflow UI of an output folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from rich.console import Console

from ual_ray.config.redact import redact_uri
from ual_ray.errors import UserError

STORES = ("sqlite", "postgresql", "mysql", "mssql", "file")


def serve(uri: str | None, output: Path, host: str, port: int, console: Console) -> int:
    """Run MLflow's own server until it is stopped; return its exit code. Raises UserError where it has no store to serve."""
    from ual_ray.config.paths import STORE_FILE
    from ual_ray.tracking.tracker import default_uri

    if uri is None and not (output / STORE_FILE).is_file():
        raise UserError(
            "there is no MLflow store in the folder", got=output, fix="give the output folder of a finished command, or --uri"
        )
    if uri is not None and "://" in uri and not uri.startswith(STORES):
        raise UserError(
            "--uri: MLflow serves no store at such an address",
            got=redact_uri(uri),
            expected=", ".join(f"{scheme}://..." for scheme in STORES),
            fix="open the address of a running server in a browser",
        )
    console.print(f"MLflow: http://{host}:{port} (Ctrl-C stops it)", highlight=False, markup=False)
    command = [sys.executable, "-m", "mlflow", "ui", "--host", host, "--port", str(port)]
    command += ["--backend-store-uri", uri or default_uri(output)]
    try:
        return subprocess.call(command)  # noqa: S603
    except KeyboardInterrupt:
        return 0
