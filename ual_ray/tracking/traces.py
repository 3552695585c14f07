"""Traces that were recorded elsewhere, in MLflow: the same ones again replace each other.

MLflow's own functions to make traces export each span from a thread and swallow errors; here they are sent at once.
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Span, TraceInfo, TraceLocation, TraceState

from ual_ray.formatting import shorten
from ual_ray.tracking.compat_mlflow import TRACE_SCHEMA, SpanAttributeKey, TraceMetadataKey, TraceTagKey, TracingClient

# Of a trace's inputs and outputs in the list of traces, in characters.
PREVIEW = 1000
TRACE_BYTES, SPAN_BYTES = 16, 8
# Traces whose spans are in one request.
PART = 10


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
        TraceState.OK,
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
                "status": {"code": "STATUS_CODE_OK"},
                "attributes": {key: json.dumps(value, ensure_ascii=False) for key, value in _attributes(span, number).items()},
            }
        )
        for own, span in zip(places, trace["spans"], strict=True)
    ]


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
