"""Requests are values: equal questions are one question."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ual_ray.elicit.requests import Choice, Completion, Failure, Likelihood, Overlong, messages_of, overlong, turns
from ual_ray.records import Message

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
    ]
    assert len({*made, *again}) == 3
    assert len({*made, *again, *other}) == 10


@pytest.mark.parametrize(
    ("tokens", "limit", "reason"),
    [
        (1030, 1024, "overlong: 1030 tokens, engine.max_model_len is 1024"),
        (None, None, "overlong: None tokens, engine.max_model_len is None"),
    ],
)
def test_overlong_is_a_failure_that_cost_nothing(tokens: int | None, limit: int | None, reason: str) -> None:
    failure = overlong(tokens, limit)
    assert isinstance(failure, Failure)
    assert failure == Overlong(reason, 0, 0, 0, tokens, limit)


def test_requests_and_results_travel() -> None:
    for value in (Choice(turns(MESSAGES), ("A",)), Likelihood(()), Completion((), 1), overlong(2, 1), Failure("x")):
        assert pickle.loads(pickle.dumps(value)) == value  # noqa: S301
