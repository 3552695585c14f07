"""A sample of the elicitor's calls as traces: the rows' prompts are made again, and found with the replies that are stored."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute

from ual_ray import columns as col
from ual_ray.config import Config
from ual_ray.elicit.estimators import make_estimators
from ual_ray.elicit.replies import Kept, asked_with, index_key, request_key
from ual_ray.elicit.scoring import RETEST_ATTEMPT
from ual_ray.engines import EngineSpec, template_hash_of
from ual_ray.engines.requests import Completion, Request, turns, turns_of
from ual_ray.engines.row_store import RowStore
from ual_ray.engines.traces import FIRST_DIGIT, Span, Trace, call, chat, sample, sampled
from ual_ray.parquet import RowFiles

Row = dict[str, Any]


def sampled_traces(config: Config, scored: Path, store: Path, asked: str) -> list[Trace]:
    """Make a trace of each of `tracking.traces` scored rows, with a call per stored reply.

    asked: identifies the elicitor in the keys of its replies (`known.asked_of`). Holds the ids of the store.
    """
    rows = RowStore(store, col.measured_schema(config.elicit.estimators))
    count = config.tracking.traces
    ids = sample(_ids(scored, count), count)
    found = [row for table in rows.select(pa.chunked_array([ids], pa.string())) for row in table.to_pylist()]
    prompts = _Prompts(config, asked)
    return [_trace(config, row, prompts) for row in sorted(found, key=lambda row: ids.index(row[col.ID]))]


def _ids(scored: Path, count: int) -> Iterator[str]:
    """Yield the ids that may be sampled: as many of every batch, for data of any size."""
    for batch in RowFiles(scored).to_batches(columns=[col.ID]):
        order = pa.table({"key": pa.compute.utf8_slice_codeunits(batch[col.ID], FIRST_DIGIT)})
        yield from batch[col.ID].take(pa.compute.select_k_unstable(order, count, [("key", "ascending")])).to_pylist()


class _Prompts:
    """What rows ask in all attempts, by the key under which the reply is stored."""

    def __init__(self, config: Config, asked: str) -> None:
        elicit = config.elicit
        spec = EngineSpec(config.engine, elicit.model, elicit.adapter, config.trust_remote_code)
        self._whom = asked_with(asked, template_hash_of(spec))
        self._estimators = make_estimators(elicit, config.seed)
        self._attempts = range(elicit.retries + 1)

    def of(self, row: Row) -> dict[int, Request]:
        """Return the requests about a row; of a truncated one those that do not hold its text."""
        return {
            index_key(request_key(self._whom, request, retest=first > 0)): request
            for estimator in self._estimators.values()
            for first in (0, RETEST_ATTEMPT)
            for attempt in self._attempts
            for request in estimator.asked(row[col.MESSAGES], first + attempt)
        }


def _trace(config: Config, row: Row, prompts: _Prompts) -> Trace:
    requests, names = prompts.of(row), config.elicit.estimators
    scores = {name: row[col.uncertainty_column(name)] for name in names}
    root = {
        "name": "elicit",
        "type": "CHAIN",
        "inputs": chat(turns(row[col.MESSAGES])),
        "outputs": {"uncertainty": scores, "status": row[col.STATUS], "error": row[col.ERROR]},
        "attributes": {"model": row[col.ELICITOR], "split": row[col.SPLIT], "truncated": row[col.TRUNCATED]},
    }
    calls = [_call(entry, requests.get(entry["request"])) for entry in row[col.REPLIES] or ()]
    return {"id": row[col.ID], "name": "elicit", "spans": [root, *calls]}


def _call(entry: Kept, request: Request | None) -> Span:
    attributes: dict[str, Any] = {"estimators": [*entry["asked_by"]]}
    if isinstance(request, Completion):
        attributes |= {"temperature": request.temperature, "max_tokens": request.max_tokens, "seed": entry["seed"]}
    prompt = None if request is None else turns_of(request)
    return call(", ".join(entry["asked_by"]), prompt, _outputs(entry), attributes)


def _outputs(entry: Kept) -> dict[str, Any]:
    if entry["log_probabilities"] is not None:
        shares = map(math.exp, entry["log_probabilities"])
        return {"probabilities": dict(zip(entry["choices"], shares, strict=True))}
    if entry["nll_sum"] is not None:
        return {"nll_sum": entry["nll_sum"], "target_tokens": entry["target_tokens"]}
    return sampled(entry["texts"], entry["finish_reasons"])
