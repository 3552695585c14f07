"""Apply operations to MLflow. All are idempotent: one whose response was lost can be sent again.

Sources of data sets are named and written as MLflow's own are, so that `mlflow.data.get_source` reads them. MLflow's own
functions to make traces export each span from a thread and swallow errors; here they are sent at once, and the same ones again
replace each other.
"""

import base64
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import mlflow
import requests
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag, Span, TraceInfo, TraceLocation, TraceState
from mlflow.entities.lifecycle_stage import LifecycleStage
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import DBAPIError

from ual_ray import __version__
from ual_ray.columns import STATUS, STATUS_QUARANTINED
from ual_ray.config import DEMO
from ual_ray.config.files import try_writing
from ual_ray.errors import UserError
from ual_ray.formatting import shorten
from ual_ray.tracking import HOLDER
from ual_ray.tracking.compat_mlflow import (
    DATASET_CONTEXT,
    EXPERIMENT_KIND,
    LOGGED_ARTIFACTS,
    PARENT_RUN_ID,
    TRACE_SCHEMA,
    SpanAttributeKey,
    TraceMetadataKey,
    TraceTagKey,
    TracingClient,
    with_table,
)
from ual_ray.tracking.database import check_database
from ual_ray.tracking.journal import Operation
from ual_ray.tracking.models import EXISTS, log_model, measured_model
from ual_ray.tracking.prompts import log_prompt
from ual_ray.tracking.run import CHANGED, STEPS_FILE
from ual_ray.tracking.run_file import resolve_run

# Of a trace's inputs and outputs in the list of traces, in characters.
PREVIEW = 1000
TRACE_BYTES, SPAN_BYTES = 16, 8
# Traces whose spans are in one request.
PART = 10
# Tag: a run's id before the store has created it; finds a run again whose creation was not confirmed.
LOCAL_ID = "ual_ray.local_id"
RUNNING = "RUNNING"
# The store's limit per request.
MOST_METRICS, MOST_OTHERS = 1000, 100
# MLflow also reports an unreachable server as INTERNAL_ERROR.
AWAY = {
    *("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED"),
    *("REQUEST_LIMIT_EXCEEDED", "RESOURCE_EXHAUSTED"),
}
PERMANENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)
logger = logging.getLogger(__name__)
Item = TypeVar("Item")


def log_traces(client: MlflowClient, run_id: str, traces: Sequence[Mapping[str, Any]]) -> None:
    """Log traces (the form of `engines/traces.py`) into the experiment of a run, linked to it. Raises MLflow's own errors.

    Times are those of logging: a stored reply does not tell when it came.
    """
    experiment_id = client.get_run(run_id).info.experiment_id
    tracing = TracingClient(client.tracking_uri)
    for start in range(0, len(traces), PART):
        made = [(trace, _spans(trace, run_id, time.time_ns())) for trace in traces[start : start + PART]]
        for trace, spans in made:
            tracing.start_trace(_info(trace, spans, run_id, experiment_id))
        tracing.log_spans(experiment_id, [span for _, spans in made for span in spans])


def _info(trace: Mapping[str, Any], spans: Sequence[Span], run_id: str, experiment_id: str) -> TraceInfo:
    root = trace["spans"][0]
    return TraceInfo(
        spans[0].trace_id,
        TraceLocation.from_experiment_id(experiment_id),
        spans[0].start_time_ns // 1_000_000,
        TraceState.ERROR if _failed(root) else TraceState.OK,
        request_preview=shorten(json.dumps(root["inputs"], ensure_ascii=False), PREVIEW),
        response_preview=shorten(json.dumps(root["outputs"], ensure_ascii=False), PREVIEW),
        client_request_id=trace["id"],
        execution_duration=0,
        trace_metadata={TraceMetadataKey.SOURCE_RUN: run_id, **TRACE_SCHEMA},
        tags={TraceTagKey.TRACE_NAME: trace["name"]},
    )


def _spans(trace: Mapping[str, Any], run_id: str, now: int) -> list[Span]:
    """Make a trace's spans. Their numbers follow from run, id and place, so that a trace that is sent again is the same."""
    number = _number([run_id, trace["id"], trace["name"]], TRACE_BYTES)
    places = [_encoded(_number([number.hex(), place], SPAN_BYTES)) for place in range(len(trace["spans"]))]
    return [
        Span.from_dict(
            {
                "trace_id": _encoded(number),
                "span_id": own,
                "parent_span_id": places[0] if own != places[0] else "",
                "name": span["name"],
                "start_time_unix_nano": now,
                "end_time_unix_nano": now,
                "status": {"code": "STATUS_CODE_ERROR" if _failed(span) else "STATUS_CODE_OK"},
                "attributes": {key: json.dumps(value, ensure_ascii=False) for key, value in _attributes(span, number).items()},
            }
        )
        for own, span in zip(places, trace["spans"], strict=True)
    ]


def _failed(span: Mapping[str, Any]) -> bool:
    return bool(span["outputs"].get(STATUS) == STATUS_QUARANTINED)


def _attributes(span: Mapping[str, Any], number: bytes) -> dict[str, Any]:
    return {
        SpanAttributeKey.REQUEST_ID: f"tr-{number.hex()}",
        SpanAttributeKey.SPAN_TYPE: span["type"],
        SpanAttributeKey.INPUTS: span["inputs"],
        SpanAttributeKey.OUTPUTS: span["outputs"],
        **span["attributes"],
    }


def _number(parts: Sequence[Any], length: int) -> bytes:
    return hashlib.sha256(json.dumps(parts).encode()).digest()[:length]


def _encoded(number: bytes) -> str:
    return base64.b64encode(number).decode()


def dataset_source(path: str, hub: Mapping[str, str | None] | None = None) -> tuple[str, str]:
    """Return MLflow's type of a source, and its JSON; `hub`: what is read of a data set on the Hugging Face hub."""
    scheme = urlsplit(path).scheme if "://" in path else ""
    if hub is not None:
        return "hugging_face", json.dumps({"path": path, **hub})
    if path == DEMO:
        return "code", json.dumps({"tags": {"mlflow.source.name": "ual_ray.data.demo"}})
    if scheme in ("http", "https"):
        return "http", json.dumps({"url": path})
    return "local" if scheme in ("", "file") else scheme, json.dumps({"uri": path})


def is_away(error: BaseException) -> bool:
    """Whether an error means that the store is unreachable, overloaded or locked, as opposed to a rejected request."""
    if isinstance(error, MlflowException):
        return error.error_code in AWAY
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return error.response.status_code >= 500 or error.response.status_code in (408, 429)
    # Cloud artifact stores raise their own errors: EndpointConnectionError, ConnectTimeoutError.
    named = any(word in type(error).__name__ for word in ("Connect", "Timeout"))
    return named or (isinstance(error, OSError | DBAPIError) and not isinstance(error, PERMANENT))


class Store:
    """One experiment of one MLflow store."""

    def __init__(self, uri: str, experiment: str, location: str | None) -> None:
        """Set the address without connecting. location: artifact location of a new experiment."""
        self.uri, self._experiment, self._location = uri, experiment, location
        self._ids: dict[str, str] = {}
        # Fail within seconds instead of MLflow's default of minutes: the sender does the retries.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")

    @cached_property
    def client(self) -> MlflowClient:
        """MLflow's own client. Raises at once for a database that cannot be opened."""
        check_database(self.uri)
        return MlflowClient(self.uri)

    @cached_property
    def experiment_id(self) -> str:
        """The experiment's id; the experiment is created if it does not exist."""
        found = self.client.get_experiment_by_name(self._experiment) or self._new_experiment()
        if found.lifecycle_stage == LifecycleStage.DELETED:
            raise UserError(
                "tracking.experiment was deleted in MLflow",
                got=self._experiment,
                fix="restore it (`mlflow experiments restore`), or give another tracking.experiment",
            )
        self._check_artifacts(found.artifact_location)
        return str(found.experiment_id)

    def _check_artifacts(self, location: str) -> None:
        """Raise UserError where a server has its clients write artifacts into a folder that cannot be written here."""
        place = urlsplit(location)
        if not self.uri.startswith("http") or place.scheme not in ("", "file"):
            return
        try:
            try_writing(Path(unquote(place.path)))
        except OSError as error:
            raise UserError(
                "MLflow's artifacts cannot be written: its server has clients write them into a folder of their own machine",
                got=f"{location}: {error}",
                fix="start the server with --artifacts-destination and without --no-serve-artifacts, and give a new "
                "tracking.experiment",
            ) from error

    def _new_experiment(self) -> Any:
        try:
            return self.client.get_experiment(self.client.create_experiment(self._experiment, self._location, EXPERIMENT_KIND))
        except MlflowException as error:  # another pipeline may have created it meanwhile
            found = self.client.get_experiment_by_name(self._experiment) if error.error_code in EXISTS else None
            if found is None:
                raise
            return found

    def answers(self) -> bool:
        """Whether the store, including its database, answers a query."""
        try:
            self.client.get_experiment_by_name(self._experiment)
        except Exception as error:
            logger.info("MLflow: no answer: %s", error)
            return False
        return True

    def known_id(self, local: str) -> str | None:
        """Return MLflow's id of a run, if this process knows it."""
        return self._ids.get(local)

    def apply(self, operation: Operation, waited: bool = False) -> Any:
        """Apply an operation; `waited`: it was spooled, and may have been applied before. Raises MLflow's own errors."""
        act: dict[str, Callable[[Operation, bool], Any]] = {
            "open": self._open,
            "params": self._params,
            "tags": self._tags,
            "metrics": self._metrics,
            "dataset": self._dataset,
            "artifact": self._artifact,
            "table": self._table,
            "model": self._model,
            "prompt": self._prompt,
            "traces": self._traces,
            "end": self._end,
        }
        return act[operation.kind](operation, waited)

    def real_id(self, local: str) -> str:
        """Return MLflow's id of a run; a run without a local id is already identified by MLflow's."""
        if local not in self._ids and (found := self._find(local)):
            self._ids[local] = found
        return self._ids.get(local, local)

    def _find(self, local: str) -> str | None:
        def search(experiments: list[str]) -> list[Any]:
            return self.client.search_runs(experiments, f"tags.`{LOCAL_ID}` = '{local}'", max_results=1)

        # Its experiment may have had the configured name when it was created.
        found = search([self.experiment_id]) or search([one.experiment_id for one in self.client.search_experiments()])
        return str(found[0].info.run_id) if found else None

    def _open(self, operation: Operation, waited: bool) -> str:
        content, local = operation.content, operation.run
        known = content["run_id"] or self._ids.get(local)
        if known is None and (waited or not content["new"]):
            known = self._find(local)
        if known is None or not self._reopened(known):
            if known and not waited:
                (Path(content["folder"]) / STEPS_FILE).unlink(missing_ok=True)  # they were in the deleted run
            tags, experiment = {"ual_ray.version": __version__, LOCAL_ID: local, **content["tags"]}, self.experiment_id
            if content["parent"]:
                tags[PARENT_RUN_ID] = self.real_id(content["parent"])
                experiment = self._experiment_of(tags[PARENT_RUN_ID])
            created = self.client.create_run(experiment, content["time"], tags, content["name"])
            known = str(created.info.run_id)
        self._ids[local] = known
        resolve_run(Path(content["folder"]), local, known)
        return known

    def _experiment_of(self, run_id: str) -> str:
        """Return the own experiment of a run, which may have another name now: MLflow shows steps below a run of it alone."""
        try:
            return str(self.client.get_run(run_id).info.experiment_id)
        except MlflowException as error:
            if is_away(error):
                raise
            return self.experiment_id  # the run was deleted for good

    def _reopened(self, run_id: str) -> bool:
        try:
            self.client.update_run(run_id, status=RUNNING)
        except MlflowException as error:
            if is_away(error):
                raise
            logger.warning("run %s is no longer in the store; opening a new one: %s", run_id, error)
            return False
        return True

    def _params(self, operation: Operation, _: bool) -> None:
        run_id, wanted = self.real_id(operation.run), operation.content
        logged = self.client.get_run(run_id).data.params
        for part in _parts([Param(key, value) for key, value in wanted.items() if key not in logged], MOST_OTHERS):
            self.client.log_batch(run_id, params=part)
        # MLflow parameters are immutable: a reopened run stores its new values as tags.
        self._set_tags(run_id, {f"{CHANGED}{key}": value for key, value in wanted.items() if logged.get(key, value) != value})

    def _tags(self, operation: Operation, _: bool) -> None:
        self._set_tags(self.real_id(operation.run), operation.content)

    def _set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        for part in _parts([RunTag(key, value) for key, value in tags.items()], MOST_OTHERS):
            self.client.log_batch(run_id, tags=part)

    def _metrics(self, operation: Operation, _: bool) -> None:
        content, run_id = operation.content, self.real_id(operation.run)
        model_id = measured_model(self.client, run_id, content["model"]) if content.get("model") else None
        measured = (model_id, *(content.get("dataset") or (None, None)))
        metrics = [Metric(key, value, content["time"], content["step"], *measured) for key, value in content["values"].items()]
        for part in _parts(metrics, MOST_METRICS):
            self.client.log_batch(run_id, metrics=part)

    def _dataset(self, operation: Operation, _: bool) -> None:
        content = operation.content
        source_type, source = dataset_source(content["path"], content.get("hub"))
        entry = Dataset(
            name=content["name"],
            digest=content["digest"],
            source_type=source_type,
            source=source,
            profile=json.dumps({"num_rows": content["rows"]}),
        )
        inputs = [DatasetInput(entry, [InputTag(DATASET_CONTEXT, content["context"])])]
        self.client.log_inputs(self.real_id(operation.run), datasets=inputs)

    def _artifact(self, operation: Operation, _: bool) -> None:
        assert operation.file is not None
        self.client.log_artifact(self.real_id(operation.run), operation.file, operation.content["folder"])

    def _table(self, operation: Operation, waited: bool) -> None:
        self._artifact(operation, waited)
        assert operation.file is not None
        run_id = self.real_id(operation.run)
        name = str(Path(operation.content["folder"] or "", Path(operation.file).name))
        listed = self.client.get_run(run_id).data.tags.get(LOGGED_ARTIFACTS)
        if (more := with_table(listed, name)) is not None:
            self._set_tags(run_id, {LOGGED_ARTIFACTS: more})

    def _model(self, operation: Operation, _: bool) -> str:
        mlflow.set_tracking_uri(self.uri)  # MLflow's model functions take no client
        content = {**operation.content, "parents": [self.real_id(local) for local in operation.content.get("parents", [])]}
        return log_model(self.client, self.real_id(operation.run), **content)

    def _prompt(self, operation: Operation, _: bool) -> str:
        mlflow.set_tracking_uri(self.uri)  # where MLflow's registry looks for the run
        return log_prompt(self.client, self.real_id(operation.run), **operation.content)

    def _traces(self, operation: Operation, _: bool) -> None:
        assert operation.file is not None
        traces = json.loads(Path(operation.file).read_text(encoding="utf-8"))["traces"]
        log_traces(self.client, self.real_id(operation.run), traces)

    def _end(self, operation: Operation, _: bool) -> None:
        content, run_id = operation.content, self.real_id(operation.run)
        if content["holder"] is not None:
            run = self.client.get_run(run_id)
            if run.info.status != RUNNING or run.data.tags.get(HOLDER) != content["holder"]:
                return
        self.client.set_terminated(run_id, content["status"], content["time"])


def _parts(items: Sequence[Item], most: int) -> Iterator[Sequence[Item]]:
    for start in range(0, len(items), most):
        yield items[start : start + most]
