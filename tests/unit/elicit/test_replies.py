"""Kept replies: keys, entries, and the requests that are left of one that is partly known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ual_ray import columns as col
from ual_ray.elicit import replies
from ual_ray.elicit.replies import Kept, answer, index_key, is_reply_to, keep, no_replies, recalled, request_key
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
    overlong,
)

ASK = (("user", "Name a colour."),)
COMPLETION = Completion(ASK, 9, 1.0, n=8, seed=3)
CHOICE = Choice(ASK, ("1", "2"))
LIKELIHOOD = Likelihood(ASK, last_reply_only=True)


class Seeds:
    """Replies with its seed to every sampled reply, as an engine does, and notes what it was asked."""

    template_hash = "t"

    def __init__(self, fails: Failure | None = None) -> None:
        self.asked: list[Request] = []
        self.fails = fails

    def run(self, requests: Sequence[Request]) -> list[Result]:
        self.asked += requests
        return [self.fails or self.reply(request) for request in requests if isinstance(request, Completion)]

    @staticmethod
    def reply(request: Completion) -> CompletionResult:
        texts = tuple(f"reply {seed}" for seed in range(request.seed, request.seed + request.n))
        return CompletionResult(texts, 10, 5 * request.n, finish_reasons=("stop",) * request.n)


def stored(request: Request, result: Result) -> Kept:
    """Return the entry as it comes out of a file."""
    entry = keep(request_key("w", request), request, result, ["nll"])
    assert entry is not None
    (row,) = pa.Table.from_pylist([{"replies": [entry]}], pa.schema(col.fields("replies"))).to_pylist()
    (read,) = row["replies"]
    return dict(read)


def test_a_key_is_of_everything_but_the_seeds() -> None:
    key = request_key("w", COMPLETION)
    assert key == request_key("w", replace(COMPLETION, n=1, seed=99))
    changes: list[dict[str, Any]] = [
        {"prompt": (("user", "Name a color."),)},
        {"max_tokens": 10},
        {"temperature": 0.5},
        {"thinking": 5},
        {"choices": ("a",)},
        {"confidence": True},
    ]
    others = {request_key("w", replace(COMPLETION, **change)) for change in changes}
    others |= {request_key("v", COMPLETION), request_key("w", COMPLETION, retest=True)}
    others |= {request_key("w", CHOICE), request_key("w", LIKELIHOOD), request_key("w", replace(CHOICE, choices=("2", "1")))}
    assert len(others | {key}) == 12


def test_a_likelihood_is_asked_for_again_when_rows_are_rendered_in_another_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its labels are those that would be trained; replies in words depend on what was asked alone."""
    before = [request_key("w", request) for request in (LIKELIHOOD, CHOICE, COMPLETION)]
    monkeypatch.setattr(replies, "RENDERING_VERSION", replies.RENDERING_VERSION + 1)
    now = [request_key("w", request) for request in (LIKELIHOOD, CHOICE, COMPLETION)]
    assert [first == second for first, second in zip(before, now, strict=True)] == [False, True, True]


@pytest.mark.parametrize("request_", [CHOICE, LIKELIHOOD, COMPLETION])
def test_a_reply_to_another_request_with_the_same_first_half_of_its_key_is_not_taken(request_: Request) -> None:
    key, result = request_key("w", request_), LikelihoodResult(1.0, 2, 3)
    entry = keep(key, request_, result, ["nll"])
    assert entry is not None and is_reply_to(entry, key) and key.bit_length() > 100
    assert not is_reply_to(entry, key ^ 1) and not is_reply_to(entry, key ^ 1 << 127)
    without = {name: value for name, value in entry.items() if name != "check"}
    assert is_reply_to(without, key) and is_reply_to({**entry, "check": None}, key), "of a version before: half a key is known"


def test_keys_stay_what_they_are() -> None:
    # A changed key would ask every stored row again; RENDERING_VERSION is in that of a likelihood.
    keys = [index_key(request_key("w", request)) for request in (CHOICE, LIKELIHOOD, COMPLETION)]
    assert keys == [8946980764504798256, 3484130854044233134, 10896049354956162535]


@pytest.mark.parametrize(
    ("request_", "result"),
    [
        (CHOICE, ChoiceResult((-0.5, float("-inf")), 3, 2, 2)),
        (CHOICE, CompletionResult(("I think 1",), 3, 9, finish_reasons=(None,))),
        (LIKELIHOOD, LikelihoodResult(2.5, 3, prompt_tokens=4)),
        (COMPLETION, CompletionResult(("a", "", "[b]x[/b]"), 3, 9, finish_reasons=("stop", "length", None))),
    ],
)
def test_an_entry_gives_the_result_back_at_no_cost(request_: Request, result: Result) -> None:
    free = replace(result, prompt_tokens=0, generated_tokens=0, calls=0)
    assert recalled(stored(request_, result)) == free


@pytest.mark.parametrize(
    ("request_", "result"),
    [
        (CHOICE, ChoiceResult((-0.5, float("nan")), 3)),
        (LIKELIHOOD, LikelihoodResult(float("nan"), 3, prompt_tokens=4)),
        (COMPLETION, Failure("engine: down")),
        (COMPLETION, overlong(3, 2)),
        (replace(COMPLETION, confidence=True), CompletionResult(("a",), 3, 9, log_probability=-1.0, scored_tokens=2)),
    ],
)
def test_what_is_no_reply_is_not_kept(request_: Request, result: Result) -> None:
    assert keep(1, request_, result, ["x"]) is None


def test_a_lone_surrogate_of_a_server_is_kept_as_a_question_mark() -> None:
    assert stored(COMPLETION, CompletionResult(("a\ud800b",), 1, 1))["texts"] == ["a?b"]


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 6)), max_size=5), st.integers(0, 20), st.integers(1, 12))
def test_only_missing_seeds_are_asked_for(kept: list[tuple[int, int]], seed: int, n: int) -> None:
    request = replace(COMPLETION, seed=seed, n=n)
    entries = [stored(part, Seeds.reply(part)) for part in (replace(COMPLETION, seed=first, n=count) for first, count in kept)]
    engine, key = Seeds(), request_key("w", request)
    result = answer(engine, {request: key}, lambda keys: {key: entries})[request]
    assert isinstance(result, CompletionResult)
    assert (result.texts, result.finish_reasons) == (Seeds.reply(request).texts, ("stop",) * n)
    sent = [at for part in engine.asked if isinstance(part, Completion) for at in range(part.seed, part.seed + part.n)]
    known = {at for first, count in kept for at in range(first, first + count)}
    assert sorted(sent) == sorted(set(range(seed, seed + n)) - known)
    assert (result.generated_tokens, result.calls) == (5 * len(sent), len(engine.asked))


def test_a_failed_part_fails_the_whole() -> None:
    key = request_key("w", COMPLETION)
    entry = stored(COMPLETION, Seeds.reply(replace(COMPLETION, n=2)))
    down = Failure("engine: down", prompt_tokens=4, calls=1)
    assert answer(Seeds(down), {COMPLETION: key}, lambda keys: {key: [entry]}) == {COMPLETION: down}


def test_without_known_replies_the_engines_result_is_the_result() -> None:
    assert answer(Seeds(), {COMPLETION: 1}, no_replies) == {COMPLETION: Seeds.reply(COMPLETION)}
