"""Tags by which MLflow's UI shows runs, and that MLflow does not document.

When tests/unit/tracking/test_compat_mlflow.py fails with another MLflow: read `MlflowClient.log_table`
(mlflow/tracking/client.py) and mlflow/utils/mlflow_tags.py of that version, adapt this file, run
tests/integration/test_mlflow_ui.py, and move the bounds of mlflow in pyproject.toml.
"""

from __future__ import annotations

import json

from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT, MLFLOW_LOGGED_ARTIFACTS, MLFLOW_PARENT_RUN_ID

DATASET_CONTEXT, LOGGED_ARTIFACTS, PARENT_RUN_ID = MLFLOW_DATASET_CONTEXT, MLFLOW_LOGGED_ARTIFACTS, MLFLOW_PARENT_RUN_ID
# Without this tag the UI guesses the kind of experiment, and may show it as a chat application.
EXPERIMENT_KIND = {"mlflow.experimentKind": "custom_model_development"}


def with_table(listed: str | None, path: str) -> str | None:
    """Add a table to a run's tag LOGGED_ARTIFACTS, by which the UI finds tables; None when it is listed already."""
    entries, entry = json.loads(listed or "[]"), {"path": path, "type": "table"}
    return None if entry in entries else json.dumps([*entries, entry])
