"""Tags by which MLflow's UI shows runs, models and prompts, and a client's step, that MLflow does not document.

When tests/unit/tracking/test_compat_mlflow.py fails with another MLflow: read `MlflowClient.log_table`
(mlflow/tracking/client.py) and mlflow/utils/mlflow_tags.py of that version, adapt this file, run
tests/integration/test_mlflow_ui.py, and move the bounds of mlflow in pyproject.toml.
"""

import json
from typing import Any

from mlflow import MlflowClient
from mlflow.prompt.constants import PROMPT_EXPERIMENT_IDS_TAG_KEY
from mlflow.tracing.client import TracingClient
from mlflow.tracing.constant import (
    TRACE_SCHEMA_VERSION,
    TRACE_SCHEMA_VERSION_KEY,
    SpanAttributeKey,
    TraceMetadataKey,
    TraceTagKey,
)
from mlflow.utils.mlflow_tags import (
    MLFLOW_DATASET_CONTEXT,
    MLFLOW_LOGGED_ARTIFACTS,
    MLFLOW_MODEL_IS_EXTERNAL,
    MLFLOW_MODEL_VERSIONS,
    MLFLOW_PARENT_RUN_ID,
)

__all__ = ["SpanAttributeKey", "TraceMetadataKey", "TraceTagKey", "TracingClient"]
TRACE_SCHEMA = {TRACE_SCHEMA_VERSION_KEY: str(TRACE_SCHEMA_VERSION)}
PROMPT_EXPERIMENTS = PROMPT_EXPERIMENT_IDS_TAG_KEY
# Of a logged model: its registered versions. MLflow's servers set it, its clients of a database do not.
MODEL_VERSIONS = MLFLOW_MODEL_VERSIONS
DATASET_CONTEXT, LOGGED_ARTIFACTS, PARENT_RUN_ID = MLFLOW_DATASET_CONTEXT, MLFLOW_LOGGED_ARTIFACTS, MLFLOW_PARENT_RUN_ID
# Of a logged model whose files are not in the store.
WITHOUT_FILES = {MLFLOW_MODEL_IS_EXTERNAL: "true"}
# Without this tag the UI guesses the kind of experiment, and may show it as a chat application.
EXPERIMENT_KIND = {"mlflow.experimentKind": "custom_model_development"}


def with_table(listed: str | None, path: str) -> str | None:
    """Add a table to a run's tag LOGGED_ARTIFACTS, by which the UI finds tables; None when it is listed already."""
    entries, entry = json.loads(listed or "[]"), {"path": path, "type": "table"}
    return None if entry in entries else json.dumps([*entries, entry])


def with_version(listed: str | None, name: str, version: str) -> str | None:
    """Add a registered version to a logged model's tag MODEL_VERSIONS; None when it is listed already."""
    entries, entry = json.loads(listed or "[]"), {"name": name, "version": version}
    return None if entry in entries else json.dumps([*entries, entry])


class PromptClient(MlflowClient):
    """Registers prompts without a thread that links them to the experiment that is active in this process."""

    def _link_prompt_to_experiment(self, prompt_version: Any, experiment_id: str) -> None:
        """Leave it to `with_experiment`: the experiment would be MLflow's default one."""


def with_experiment(listed: str | None, experiment_id: str) -> str | None:
    """Add an experiment to a prompt's tag PROMPT_EXPERIMENTS, by which its UI finds prompts; None when it is listed already."""
    ids = [part for part in (listed or "").split(",") if part]
    return None if experiment_id in ids else f",{','.join([*ids, experiment_id])},"
