"""Requests are values: equal questions are one question."""

from __future__ import annotations

import math
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ual_ray.columns import Message, with_extra
from ual_ray.engines.requests import (
    Choice,
    Completion,
    CompletionResult,
    Failure,
    Likelihood,
    Overlong,
    chat_body,
    messages_of,
    overlong,
    turns,
)

MESSAGES = [Message(role="user", content="q"), Message(role="assistant", content="a")]


@given(pairs=st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), st.text())))
def test_freezing_and_thawing(pairs: list[tuple[str, str]]) -> None:
    assert turns(messages_of(tuple(pairs))) == tuple(pairs)
    assert hash(turns(messages_of(tuple(pairs)))) == hash(tuple(pairs))


def test_equal_requests_are_one() -> None:
    prompt = turns(MESSAGES[:1])
    made = [Choice(prompt, ("A", "B")), Likelihood(turns(MESSAGES)), Completion(prompt, 5)]
    again = [Choice(turns(MESSAGES[:1]), ("A", "B")), Likelihood(turns([*MESSAGES])), Completion(prompt, 5, 0.0, 1, 0)]
    other = [
        Choice(prompt, ("B", "A")),
        Likelihood(prompt),
        Likelihood(turns(MESSAGES), last_reply_only=True),
        Completion(prompt, 5, temperature=0.5),
        Completion(prompt, 5, n=2),
        Completion(prompt, 5, seed=1),
        Completion(prompt, 6),
        Completion(prompt, 5, confidence=True),
    ]
    assert len({*made, *again}) == 3
    assert len({*made, *again, *other}) == 11


@pytest.mark.parametrize(
    ("tokens", "limit", "reason"),
    [
        (1030, 1024, "overlong: 1030 tokens, engine.max_model_len is 1024"),
        (None, None, "overlong: the server takes fewer tokens"),
    ],
)
def test_overlong_is_a_failure_that_cost_nothing(tokens: int | None, limit: int | None, reason: str) -> None:
    failure = overlong(tokens, limit)
    assert isinstance(failure, Failure)
    assert failure == Overlong(reason, 0, 0, 0, tokens, limit)


@pytest.mark.parametrize(
    ("log_probability", "tokens", "expected"),
    [
        (2 * math.log(0.25), 2, 0.25),
        (0.0, 3, 1.0),
        (1e-9, 1, 1.0),
        (None, None, None),
        (0.0, 0, None),
        (math.nan, 2, None),
        (-math.inf, 2, 0.0),
    ],
)
def test_the_confidence_is_the_mean_token_probability(
    log_probability: float | None, tokens: int | None, expected: float | None
) -> None:
    result = CompletionResult(("t",), 1, 2, 1, log_probability, tokens)
    assert result.confidence == (None if expected is None else pytest.approx(expected))


def test_requests_and_results_travel() -> None:
    for value in (Choice(turns(MESSAGES), ("A",)), Likelihood(()), Completion((), 1), overlong(2, 1), Failure("x")):
        assert pickle.loads(pickle.dumps(value)) == value  # noqa: S301


def test_calls_are_sent_as_servers_take_them() -> None:
    def call(name: str, arguments: object, **own: str) -> dict[str, object]:
        return {**own, "type": "function", "function": {"name": name, "arguments": arguments}}

    def said(role: str, content: str, **extra: object) -> Message:
        return with_extra(Message(role=role, content=content), **extra)

    conversation = [
        said("user", "Weather?", tools=[{"type": "function", "function": {"name": "weather"}}]),
        said("assistant", "", tool_calls=[call("weather", {"city": "Rome"}), call("time", "{}", id="mine")]),
        said("tool", "noon", tool_call_id="mine"),
        said("tool", "21"),
        said("assistant", "", tool_calls=[call("weather", {"city": "Oslo"})]),
        said("tool", "7"),
        said("tool", "of no call"),
    ]
    body = chat_body(turns(conversation))
    assert [tool["function"]["name"] for tool in body["tools"]] == ["weather"]
    _, first, noon, rome, second, oslo, stray = body["messages"]
    assert [(one["id"], one["type"], one["function"]["arguments"]) for one in first["tool_calls"]] == [
        ("call_0", "function", '{"city":"Rome"}'),
        ("mine", "function", "{}"),
    ]
    assert (noon["tool_call_id"], rome["tool_call_id"]) == ("mine", "call_0")
    assert second["tool_calls"][0]["id"] == oslo["tool_call_id"] == "call_1"
    assert "tool_call_id" not in stray


@pytest.mark.parametrize("answered_by", [{}, {"tool_call_id": "call_0"}])
def test_made_ids_of_calls_differ_from_those_of_the_data(answered_by: dict[str, str]) -> None:
    def called(*ids: str | None) -> Message:
        calls = [
            {"type": "function", "function": {"name": "f", "arguments": {}}, **({"id": own} if own else {})} for own in ids
        ]
        return with_extra(Message(role="assistant", content=""), tool_calls=calls)

    replied = with_extra(Message(role="tool", content="7"), **answered_by)
    body = chat_body(turns([MESSAGES[0], called(None, "call_1", None), replied, called("call_2", None), called("call_0")]))
    ids = [call["id"] for message in body["messages"] for call in message.get("tool_calls", ())]
    assert len({*ids}) == len(ids) == 6 and ids[1:4:2] + ids[5:] == ["call_1", "call_2", "call_0"]


def test_a_call_without_an_id_gets_that_of_its_reply() -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    called = with_extra(Message(role="assistant", content=""), tool_calls=[call])
    replies = [with_extra(Message(role="tool", content="7"), tool_call_id=identity) for identity in ("call_0", "x")]
    body = chat_body(turns([MESSAGES[0], called, replies[0], called, replies[1], called]))
    ids = [call["id"] for message in body["messages"] for call in message.get("tool_calls", ())]
    assert ids == ["call_0", "x", "call_1"]
