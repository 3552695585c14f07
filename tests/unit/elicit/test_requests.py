"""Requests are values: equal questions are one question."""

from __future__ import annotations

from ual_ray.elicit.requests import Choice, Completion, Likelihood, messages_of, turns
from ual_ray.records import Message

MESSAGES = [Message(role="user", content="q"), Message(role="assistant", content="a")]


def test_freezing_and_thawing() -> None:
    assert turns(MESSAGES) == (("user", "q"), ("assistant", "a"))
    assert messages_of(turns(MESSAGES)) == MESSAGES


def test_equal_requests_are_one() -> None:
    prompt = turns(MESSAGES[:1])
    made = [Choice(prompt, ("A", "B")), Likelihood(turns(MESSAGES)), Completion(prompt, 5)]
    again = [Choice(turns(MESSAGES[:1]), ("A", "B")), Likelihood(turns([*MESSAGES])), Completion(prompt, 5, 0.0, 1, 0)]
    other = [
        Choice(prompt, ("B", "A")),
        Likelihood(prompt),
        Completion(prompt, 5, temperature=0.5),
        Completion(prompt, 5, n=2),
    ]
    assert len({*made, *again}) == 3
    assert len({*made, *again, *other}) == 7
