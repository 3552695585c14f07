"""Replies kept per request: what is computed from them can change without asking again. Pure.

A kept reply is an entry of the column `replies`. Its key is a hash of what the reply depends on: the request, and who was asked
under which settings. Sampled replies are kept with their seeds, so that more of them ask only for those that are missing.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from ual_ray.columns import canonical_json, digest
from ual_ray.engines import Engine, run_once
from ual_ray.engines.requests import (
    Choice,
    ChoiceResult,
    Completion,
    CompletionResult,
    Failure,
    Likelihood,
    LikelihoodResult,
    Request,
    Result,
)
from ual_ray.models.chat import RENDERING_VERSION

# An entry of the column `replies`.
Kept = Mapping[str, Any]
# Returns the kept replies with these keys; of several to the same request the first counts.
Known = Callable[[Collection[int]], Mapping[int, Sequence[Kept]]]
Seeded = dict[int, tuple[str, str | None]]
_OF_SEEDS = ("n", "seed")
HALF = 64


def asked_with(asked: str, template_hash: str) -> str:
    """Identify whom a request asks: the elicitor and its settings, and the chat template that the engine renders with."""
    return digest([asked, template_hash])


def request_key(whom: str, request: Request, *, retest: bool = False) -> int:
    """Hash a request, but for its seeds, with whom it asks: 128 bits.

    With 64 bits, one store of 1e9 requests in 37 would give a row the reply to another one.

    retest: the reply is for the second measurement, which must not repeat the first one's.
    """
    # Fields at their default are left out: a field that is added later leaves the keys as they are.
    own = ((field, getattr(request, field.name)) for field in fields(request) if field.name not in _OF_SEEDS)
    changed = {field.name: value for field, value in own if value != field.default}
    # The labels of a likelihood are those that would be trained.
    rendering = [RENDERING_VERSION] if isinstance(request, Likelihood) else []
    text = canonical_json([whom, retest, type(request).__name__, changed, *rendering])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big")


def index_key(key: int) -> int:
    """Return the half of a request's key that replies are looked up by: 64 bits."""
    return key >> HALF


def is_reply_to(entry: Kept, key: int) -> bool:
    """Whether an entry is of the request with this key; of one without a second half the first has to do."""
    check = entry.get("check")
    return entry["request"] == index_key(key) and check in (None, key & (1 << HALF) - 1)


def keep(key: int, request: Request, result: Result, asked_by: Sequence[str]) -> Kept | None:
    """Make the entry of a result; None for what is not kept: failures, NaN, and replies whose confidence was asked for."""
    entry: dict[str, Any] = {"request": index_key(key), "check": key & (1 << HALF) - 1, "asked_by": [*asked_by]}
    if isinstance(result, ChoiceResult):
        assert isinstance(request, Choice), "nothing else has choices"
        distribution = {"choices": [*request.choices], "log_probabilities": [*result.log_probabilities]}
        return None if math.isnan(result.mass) else entry | distribution
    if isinstance(result, LikelihoodResult):
        counted = {"nll_sum": result.nll_sum, "target_tokens": result.target_tokens}
        return None if math.isnan(result.nll_sum) else entry | counted
    if isinstance(result, Failure) or (isinstance(request, Completion) and request.confidence):
        return None
    seed = request.seed if isinstance(request, Completion) else None
    # Parquet has no lone surrogates, which JSON of a server may have.
    texts = [text.encode(errors="replace").decode() for text in result.texts]
    return entry | {"seed": seed, "n": len(texts), "texts": texts, "finish_reasons": [finish for _, finish in result.replies]}


def recalled(entry: Kept) -> Result:
    """Return the result that an entry holds. It costs nothing: no token is counted."""
    if entry["log_probabilities"] is not None:
        return ChoiceResult(tuple(entry["log_probabilities"]), 0, 0, 0)
    if entry["nll_sum"] is not None:
        return LikelihoodResult(entry["nll_sum"], entry["target_tokens"], 0, 0, 0)
    return CompletionResult(tuple(entry["texts"]), 0, 0, 0, finish_reasons=tuple(entry["finish_reasons"]))


def no_replies(keys: Collection[int]) -> dict[int, list[Kept]]:
    """Know nothing."""
    return {}


@dataclass(frozen=True)
class _Plan:
    """The kept part of a request's result, and the requests for the rest."""

    request: Request
    whole: Result | None
    seeded: Seeded
    missing: Sequence[Request]

    @classmethod
    def of(cls, request: Request, entries: Sequence[Kept]) -> _Plan:
        """Plan from the kept replies to a request."""
        if not isinstance(request, Completion):
            return cls(request, recalled(entries[0]), {}, []) if entries else cls(request, None, {}, [request])
        wanted = range(request.seed, request.seed + request.n)
        found = {seed: reply for entry in reversed(entries) for seed, reply in _seeded(entry["seed"], recalled(entry)).items()}
        found = {seed: found[seed] for seed in wanted if seed in found}
        runs = _runs([seed for seed in wanted if seed not in found])
        return cls(request, None, found, [replace(request, seed=run.start, n=len(run)) for run in runs])

    def result(self, answered: Sequence[Result]) -> Result:
        """Put the kept part and what was answered together; the cost is that of what was answered."""
        if self.whole is not None:
            return self.whole
        if not self.seeded and len(answered) == 1:
            return answered[0]
        cost = [sum(getattr(result, name) for result in answered) for name in ("prompt_tokens", "generated_tokens", "calls")]
        for result in answered:
            if isinstance(result, Failure):
                return replace(result, prompt_tokens=cost[0], generated_tokens=cost[1], calls=cost[2])
        seeded = dict(self.seeded)
        for request, result in zip(self.missing, answered, strict=True):
            assert isinstance(request, Completion)
            seeded |= _seeded(request.seed, result)
        ordered = sorted(seeded)
        texts = tuple(seeded[seed][0] for seed in ordered)
        return CompletionResult(texts, cost[0], cost[1], cost[2], finish_reasons=tuple(seeded[seed][1] for seed in ordered))


def _seeded(first: int, result: Result) -> Seeded:
    return dict(enumerate(result.replies, first)) if isinstance(result, CompletionResult) else {}


def _runs(seeds: Sequence[int]) -> list[range]:
    """Group increasing seeds into ranges without gaps."""
    starts = [at for at in range(len(seeds)) if not at or seeds[at] != seeds[at - 1] + 1]
    ends = [*starts[1:], len(seeds)]
    return [range(seeds[start], seeds[end - 1] + 1) for start, end in zip(starts, ends, strict=False)]


def missing_of(request: Request, entries: Sequence[Kept]) -> Sequence[Request]:
    """Return what has to be sent for a request of which these replies are kept."""
    return _Plan.of(request, entries).missing


def answer(engine: Engine, keys: Mapping[Request, int], known: Known) -> dict[Request, Result]:
    """Return the results of requests, given with their keys: kept ones, and the engine's for what is missing of them."""
    found = known(set(keys.values()))
    plans = {request: _Plan.of(request, found.get(key, ())) for request, key in keys.items()}
    new = run_once(engine, [part for plan in plans.values() for part in plan.missing])
    return {request: plan.result([new[part] for part in plan.missing]) for request, plan in plans.items()}
