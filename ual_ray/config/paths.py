"""Names of what MLflow keeps in an output folder."""

from __future__ import annotations

STORE_FILE = "mlflow.db"
ARTIFACTS_FOLDER = "mlflow-artifacts"
SPOOL_FOLDER = "mlflow-spool"
