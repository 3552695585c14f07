"""MLflow: the only import of it. Runs with parents and children, lineage tags, data sets, figures, registered models.

The driver owns every run. Logging never takes the job down: a call that fails is counted, logged, and reported at the end.
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import mlflow.transformers
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_ARTIFACTS, MLFLOW_PARENT_RUN_ID

from ual_ray import __version__
from ual_ray.config import TrackingConfig
from ual_ray.errors import UserError
from ual_ray.settings import redact_uri
from ual_ray.workspace import ARTIFACTS_FOLDER, STORE_FILE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RUN_FILE = "mlflow_run.json"
LONGEST_PARAM = 500
# Without it the UI guesses what an experiment is, and may open it among chat applications.
KIND = {"mlflow.experimentKind": "custom_model_development"}

logger = logging.getLogger(__name__)


def default_uri(output: Path) -> str:
    """The SQLite store in an output folder."""
    return f"sqlite:///{(output / STORE_FILE).resolve()}"


class Tracker:
    """One MLflow experiment, and the count of what could not be logged to it."""

    def __init__(self, config: TrackingConfig, output: Path) -> None:
        """Connect, and create the experiment if it is new. Raises UserError when the store cannot be reached."""
        self.uri = config.uri or default_uri(output)
        self.failures = 0
        # A store that is away is noticed in seconds here, and not after MLflow's default of minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        mlflow.set_tracking_uri(self.uri)
        self.client = MlflowClient(self.uri)
        try:
            found = self.client.get_experiment_by_name(config.experiment)
            location = None if config.uri else (output / ARTIFACTS_FOLDER).resolve().as_uri()
            self.experiment_id = (
                found.experiment_id if found else self.client.create_experiment(config.experiment, location, tags=KIND)
            )
        except (MlflowException, OSError) as error:
            raise UserError(
                "tracking.uri cannot be used",
                value=f"{redact_uri(self.uri)}: {error}",
                legal="sqlite:///file.db, http://host:port, or null for a store in the output folder",
                fix="start the server (`ual ui`), or correct tracking.uri",
            ) from error

    @contextmanager
    def run(self, name: str, folder: Path, tags: Mapping[str, str], parent: Run | None = None) -> Iterator[Run]:
        """Open the run that belongs to `folder`, a new one the first time; close it with the status it earned.

        FINISHED; FAILED after an exception; KILLED after an interrupt (SIGTERM counts as one).
        """
        run = self._open(name, folder, tags, parent)
        status = "FAILED"
        try:
            yield run
            status = "FINISHED"
        except (KeyboardInterrupt, SystemExit):
            status = "KILLED"
            raise
        finally:
            run.safely(lambda: self.client.set_terminated(run.id, status))

    def _open(self, name: str, folder: Path, tags: Mapping[str, str], parent: Run | None) -> Run:
        path = folder / RUN_FILE
        if path.is_file():
            known = json.loads(path.read_text())
            if known["uri"] == redact_uri(self.uri):
                try:
                    self.client.update_run(known["run_id"], status="RUNNING")
                    return Run(self, known["run_id"], name)
                except MlflowException:
                    logger.warning("run %s is no longer in %s; opening a new one", known["run_id"], self.uri)
        all_tags = {"ual_ray.version": __version__, **tags, **({MLFLOW_PARENT_RUN_ID: parent.id} if parent else {})}
        run = Run(self, "", name)
        created = run.safely(lambda: self.client.create_run(self.experiment_id, run_name=name, tags=all_tags))
        if created is None:
            return run
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"uri": redact_uri(self.uri), "run_id": created.info.run_id}))
        return Run(self, created.info.run_id, name)


class Run:
    """One MLflow run. Its methods never raise for the store's sake; every failure is counted."""

    def __init__(self, tracker: Tracker, run_id: str, name: str) -> None:
        """Hold an open run."""
        self._tracker = tracker
        self._client = tracker.client
        self.id = run_id
        self.name = name

    def safely(self, call: Callable[[], Any]) -> Any:
        """Make a call to the store; a failure is counted and logged, and gives None."""
        try:
            return call()
        except Exception:
            self._tracker.failures += 1
            logger.exception("MLflow: a call for run '%s' failed; the job goes on", self.name)
            return None

    def params(self, values: Mapping[str, Any]) -> None:
        """Log parameters, nested ones with dotted names."""
        wanted = {key: str(value)[:LONGEST_PARAM] for key, value in flatten(values).items()}
        logged = self.safely(lambda: self._client.get_run(self.id).data.params) or {}
        new = [Param(key, value) for key, value in wanted.items() if key not in logged]
        self.safely(lambda: self._client.log_batch(self.id, params=new))
        # MLflow never changes a parameter: a reopened run says in a tag what it goes on with.
        self.tags({f"now.{key}": value for key, value in wanted.items() if logged.get(key, value) != value})

    def tags(self, values: Mapping[str, Any]) -> None:
        """Set tags."""
        tags = [RunTag(key, str(value)) for key, value in values.items()]
        self.safely(lambda: self._client.log_batch(self.id, tags=tags))

    def metrics(self, values: Mapping[str, Any], step: int = 0) -> None:
        """Log the numbers among the values."""
        now = int(time.time() * 1000)
        numbers = {key: value for key, value in flatten(values).items() if _is_number(value)}
        metrics = [Metric(re.sub(r"[^\w.\- /]", "_", key), float(value), now, step) for key, value in numbers.items()]
        self.safely(lambda: self._client.log_batch(self.id, metrics=metrics))

    def last_step(self, metric: str) -> int:
        """Return the last step that a metric was logged at, or -1."""
        history = self.safely(lambda: self._client.get_metric_history(self.id, metric)) or []
        return max((entry.step for entry in history), default=-1)

    def dataset(self, name: str, path: Path, digest: str, rows: int, context: str) -> None:
        """Log an input data set with its digest; `context` says what it is used for."""
        entry = Dataset(
            name=name,
            digest=digest,
            source_type="local",
            source=json.dumps({"uri": str(path)}),
            profile=json.dumps({"num_rows": rows}),
        )
        inputs = [DatasetInput(entry, [InputTag("mlflow.data.context", context)])]
        self.safely(lambda: self._client.log_inputs(self.id, datasets=inputs))

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Log a file."""
        self.safely(lambda: self._client.log_artifact(self.id, str(path), folder))

    def figure(self, figure: Figure, name: str) -> None:
        """Log a plot."""
        self.safely(lambda: self._client.log_figure(self.id, figure, name))

    def table(self, columns: Mapping[str, list[Any]], name: str) -> None:
        """Log a table that the MLflow UI can show and compare."""
        content = {"columns": list(columns), "data": [list(row) for row in zip(*columns.values(), strict=True)]}
        # Not log_table, which appends to what an earlier run of the report left.
        self.safely(lambda: self._client.log_dict(self.id, content, name))
        self.tags({MLFLOW_LOGGED_ARTIFACTS: json.dumps([{"path": name, "type": "table"}])})

    def model(self, folder: Path, registered_name: str, tags: Mapping[str, str]) -> str | None:
        """Log a model directory as it is, without loading it, and register it; return the version's number."""
        return self.safely(lambda: self._log_model(folder, registered_name, tags))

    def _log_model(self, folder: Path, registered_name: str, tags: Mapping[str, str]) -> str:
        with mlflow.start_run(run_id=self.id, nested=True):
            info = mlflow.transformers.log_model(
                transformers_model=str(folder),
                name="model",
                task="llm/v1/chat",
                # Without a list of its own MLflow loads the model in a second process to guess one.
                pip_requirements=["transformers", "torch"],
                registered_model_name=registered_name,
            )
        version = str(info.registered_model_version)
        for key, value in tags.items():
            self._client.set_model_version_tag(registered_name, version, key, str(value))
        return version


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn nested mappings into one with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
