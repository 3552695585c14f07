"""Score a batch of rows with one engine: gather the requests, send each different one once, reduce to scalars.

Pure glue: it runs inside an actor, so nothing token-sized ever leaves it, and inside a unit test as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ual_ray.elicit.engines import Engine
from ual_ray.elicit.estimators import REGISTRY
from ual_ray.elicit.prompts import prompt_hash
from ual_ray.elicit.requests import Failure, Request, Result
from ual_ray.records import (
    ELICITOR,
    ERROR,
    GENERATED_TOKENS,
    MESSAGES,
    PROMPT_HASH,
    PROMPT_TOKENS,
    STATUS,
    STATUS_OK,
    STATUS_QUARANTINED,
    UNCERTAINTY,
    raw_column,
    uncertainty_column,
)

Row = dict[str, Any]


@dataclass(frozen=True)
class ScoreRows:
    """Add the columns of `records.scored_schema` to rows.

    A row is quarantined, with its reason, when the estimator behind `uncertainty` failed on it.
    """

    estimators: tuple[str, ...]
    uncertainty: str
    elicitor: str

    def __call__(self, rows: Sequence[Row], engine: Engine) -> list[Row]:
        """Score the rows."""
        needs = [{name: list(REGISTRY[name].requests(row[MESSAGES])) for name in self.estimators} for row in rows]
        results = run_once(engine, [request for need in needs for requests in need.values() for request in requests])
        return [row | self._columns(need, results, engine.template_hash) for row, need in zip(rows, needs, strict=True)]

    def _columns(self, need: dict[str, list[Request]], results: dict[Request, Result], template_hash: str) -> Row:
        columns: Row = {}
        for name, requests in need.items():
            estimate = REGISTRY[name].reduce([results[request] for request in requests])
            columns[uncertainty_column(name)] = estimate.uncertainty
            columns[raw_column(name)] = estimate.raw
        mine = {request: results[request] for requests in need.values() for request in requests}
        failures = sorted({result.reason for result in mine.values() if isinstance(result, Failure)})
        score = columns[uncertainty_column(self.uncertainty)]
        return columns | {
            UNCERTAINTY: score,
            STATUS: STATUS_OK if score is not None else STATUS_QUARANTINED,
            ERROR: "; ".join(failures) or (None if score is not None else "unparsable: the reply is none of the choices"),
            ELICITOR: self.elicitor,
            PROMPT_HASH: prompt_hash(self.estimators, template_hash),
            PROMPT_TOKENS: sum(result.prompt_tokens for result in mine.values()),
            GENERATED_TOKENS: sum(result.generated_tokens for result in mine.values()),
        }


def run_once(engine: Engine, requests: Sequence[Request]) -> dict[Request, Result]:
    """Send each different request once; the engine's answers must be as many as the requests."""
    unique = list(dict.fromkeys(requests))
    results = engine.run(unique)
    assert len(results) == len(unique), f"the engine answered {len(results)} of {len(unique)} requests"
    return dict(zip(unique, results, strict=True))
