"""Scoring of rows that are too long: what is cut, and what is asked again."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scoring_engines import ALL, HALVES, THREE, answering, by_kind, config, fake, row

from ual_ray.columns import Message
from ual_ray.elicit.scoring import ScoreRows
from ual_ray.engines.requests import (
    Choice,
    Completion,
    CompletionResult,
    Likelihood,
    LikelihoodResult,
    Request,
    Result,
    overlong,
)
from ual_ray.models.truncate import MOST_CUTS, shorten


def words_of(request: Request) -> int:
    turns = request.conversation if isinstance(request, Likelihood) else request.prompt
    return sum(len(content.split()) for _, content in turns)


@pytest.mark.slow
@pytest.mark.parametrize("words", [150, 1000, 20_000])
@pytest.mark.parametrize("side", ["question", "answer"])
def test_truncation_makes_a_long_row_fit_and_keeps_most_of_it(side: str, words: int) -> None:
    text = "word " * words
    one = row("a0", text, "Hi.") if side == "question" else row("a0", "Say hi.", text)
    engine = fake(150)
    (scored,) = ScoreRows(config(*ALL), "truncate")([one], engine)
    assert (scored["status"], scored["error"], scored["truncated"]) == ("ok", None, True)
    assert scored["messages"] == one["messages"]
    assert scored["response_length"] == len(one["messages"][-1]["content"])
    answered = [words_of(request) for request in engine.runs[-1]]
    assert max(answered) <= 150
    assert max(answered) > 0.7 * 150
    assert len(engine.runs) <= 1 + MOST_CUTS


def test_truncation_leaves_short_rows_alone() -> None:
    rows = [row("a0"), row("b0", "word " * 500), row("c0", "Why?")]
    scored = ScoreRows(config(*THREE), "truncate")(rows, fake(150))
    assert [one["truncated"] for one in scored] == [False, True, False]
    assert [scored[0], scored[2]] == ScoreRows(config(*THREE), "truncate")([rows[0], rows[2]], fake(140))


def test_all_estimators_see_the_same_shortened_pair() -> None:
    """The likelihood alone would have fitted: an ensemble must not mix a pair with a part of it."""
    engine = fake(140)
    (scored,) = ScoreRows(config(*THREE), "truncate")([row("a0", "Say hi.", "word " * 100)], engine)
    asked = [request.conversation[-1][1] for request in engine.seen if isinstance(request, Likelihood)]
    assert len(asked) > 1
    rating = next(request for request in engine.runs[-1] if isinstance(request, Choice))
    assert f"[Response]\n{asked[-1]}\n" in rating.prompt[0][1]
    assert scored["truncated"]


def test_what_a_shorter_response_does_not_change_is_not_asked_again() -> None:
    engine = fake(140)
    ScoreRows(config(*ALL), "truncate")([row("a0", "Say hi.", "word " * 1000)], engine)
    assert len(engine.runs) > 1
    assert sum(isinstance(request, Completion) for request in engine.seen) == 1
    assert len(set(engine.seen)) == len(engine.seen)


def test_a_limit_that_is_not_known_is_guessed_towards() -> None:
    limit = 600  # characters

    def answer(request: Request) -> Result:
        assert isinstance(request, Likelihood)
        length = sum(len(content) for _, content in request.conversation)
        return overlong(None, None) if length > limit else LikelihoodResult(1.0, 1, 1)

    (scored,) = ScoreRows(config("nll"), "truncate")([row("a0", answer="x" * 1500)], answering(answer))
    assert (scored["status"], scored["truncated"]) == ("ok", True)


def test_what_no_cut_helps_is_quarantined() -> None:
    engine = by_kind(HALVES, overlong(2000, 1000))
    (scored,) = ScoreRows(config("nll"), "truncate")([row()], engine)
    assert (scored["status"], scored["truncated"]) == ("quarantined", True)
    assert scored["error"].startswith("overlong: 2000 tokens")
    assert len(engine.runs) <= 1 + MOST_CUTS


def test_a_retest_sees_the_pair_as_shortened() -> None:
    (scored,) = ScoreRows(config("nll", retest_share=1), "truncate")([row("a0", "word " * 500)], fake(150))
    assert scored["retest_nll"] == scored["uncertainty_nll"] is not None


@given(
    contents=st.lists(st.text(min_size=1, max_size=300), min_size=1, max_size=5),
    limit=st.integers(16, 1000),
    over=st.integers(1, 5000),
    known=st.booleans(),
)
def test_shortening_cuts_the_end_of_the_longest_alone(contents: list[str], limit: int, over: int, known: bool) -> None:
    messages = [Message(role="user", content=content) for content in contents]
    short = shorten(messages, limit + over if known else None, limit if known else None)
    longest = max(range(len(contents)), key=lambda index: len(contents[index]))
    for index, (before, after) in enumerate(zip(contents, short, strict=True)):
        assert after["role"] == "user"
        if index != longest:
            assert after["content"] == before
    cut = short[longest]["content"]
    assert cut and contents[longest].startswith(cut)
    assert len(cut) < len(contents[longest]) or len(cut) == 1
    assert [message["content"] for message in messages] == contents


@given(length=st.integers(100, 5000), limit=st.integers(100, 1000), over=st.integers(1, 4000))
def test_shortening_leaves_about_what_fits(length: int, limit: int, over: int) -> None:
    tokens = limit + over
    messages = [Message(role="user", content="x" * length), Message(role="assistant", content="y")]
    left = sum(len(message["content"]) for message in shorten(messages, tokens, limit))
    wanted = (length + 1) * limit / tokens
    assume(wanted > 20)
    assert left <= wanted  # if every character is as many tokens, it fits now
    assert left >= 0.95 * wanted - 10


def test_an_empty_conversation_cannot_be_shortened() -> None:
    messages = [Message(role="user", content="")]
    assert shorten(messages, 20, 10) == messages


@pytest.mark.parametrize("retest", [False, True])
def test_sampled_answers_are_compared_with_the_whole_response_not_with_what_is_left_of_it(retest: bool) -> None:
    """Its final answer is at its end: without it, answers that agree with it count as others."""

    def answer(request: Request) -> Result:
        if isinstance(request, Completion):
            return CompletionResult(("So it is 18.",) * request.n, 1, 1)
        assert isinstance(request, Likelihood)
        length = sum(len(content) for _, content in request.conversation)
        return overlong(length, 600) if length > 600 else LikelihoodResult(1.0, 1, 1)

    one = row("a0", "How many?", f"{'word ' * 500}\n#### 18")
    settings = config("nll", "self_consistency", retest_share=float(retest))
    (scored,) = ScoreRows(settings, "truncate")([one], answering(answer))
    assert (scored["status"], scored["truncated"]) == ("ok", True)
    assert scored["uncertainty_self_consistency"] == 0
    assert scored["retest_self_consistency"] == (0 if retest else None)
