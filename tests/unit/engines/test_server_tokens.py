"""The engine that asks a server: how servers write tokens, alternatives and log-probabilities."""

from __future__ import annotations

import math
from typing import Any

import pytest
from any_server import (
    DIGITS,
    RATE,
    RATE_THINKING,
    SAMPLE,
    SEVEN,
    Body,
    Reply,
    Serve,
    answer,
    one,
    probabilities,
    refusal,
    token,
)

from ual_ray.engines.openai_replies import MalformedReply, read_choices, read_choices_behind_thought, read_replies
from ual_ray.engines.openai_replies import Reply as ReadReply
from ual_ray.engines.reply_text import Unread
from ual_ray.engines.requests import CompletionResult, Failure


@pytest.mark.parametrize("alternatives", [
    {"7": -1.0, " 7": -2.0, "\n7": -3.0}, {"7": -1.0, "▁7": -2.0, "▁▁7": -3.0}, {"7": -1.0, "Ġ7": -2.0, "Ċ7": -3.0},
    {"<0x37>": -1.0, "▁7": -2.0, "7\n": -3.0}, {"bytes:\\x37": -1.0, "bytes:\\x20\\x37": -2.0, " 7": -3.0},
])  # fmt: skip
def test_spellings_of_a_digit_are_added_up(alternatives: dict[str, float], serve: Serve) -> None:
    engine, _ = serve(lambda _: answer("7", token("7", alternatives | {"70": -4.0})))
    total = sum(map(math.exp, (-1.0, -2.0, -3.0)))
    assert probabilities(one(engine, RATE)) == pytest.approx({"7": total})


def listed(*alternatives: tuple[str | None, Any], text: str = "7", own: float = -0.1) -> Body:
    return {
        "token": text,
        "logprob": own,
        "top_logprobs": [{"token": name, "logprob": value} for name, value in alternatives],
    }


@pytest.mark.parametrize(("tokens", "expected"), [
    ([listed(("7", -0.1), ("7", -0.1), ("8", -2.5))], SEVEN),  # one entry twice
    ([listed(("8", -2.5), ("9", -3.0))], SEVEN | {"9": -3.0}),  # the token itself is not among its alternatives
    ([listed(("\n", -0.1), ("1", -3.0), text="\n"), listed(("7", -0.1), ("8", -2.5))], SEVEN),  # white space comes first
    ([listed(("", 0.0), text="", own=0.0), listed(("7", -0.1), ("8", -2.5))], SEVEN),
    ([listed(("７", -0.1), ("8", -2.5), text="７")], SEVEN),
    ([listed(("7", "-0.1"), ("8", -2.5), ("9", "-inf"))], SEVEN),
    ([listed((None, -0.9), ("7", -1.0), ("8", -2.5))], {"7": -1.0, "8": -2.5}),
])  # fmt: skip
def test_lists_of_alternatives_as_servers_write_them(tokens: list[Body], expected: dict[str, float]) -> None:
    body = {"choices": [{"message": {"content": "7"}, "logprobs": {"content": tokens}}]}
    found = read_choices(body, DIGITS)
    assert not isinstance(found, Unread)
    read = {choice: value for choice, value in zip(DIGITS, found, strict=True) if value > -math.inf}
    assert read == pytest.approx(expected)


@pytest.mark.parametrize("alternatives", [[("7", 0.9), ("8", 0.1)], [("7", -0.01), ("8", -0.01)], [("7", 12.5)], [("7", None)]])
def test_numbers_that_cannot_be_log_probabilities_are_refused(alternatives: list[tuple[str, Any]]) -> None:
    body = {"choices": [{"message": {"content": "7"}, "logprobs": {"content": [listed(*alternatives)]}}]}
    with pytest.raises(MalformedReply, match="no log-probabilities"):
        read_choices(body, DIGITS)


def test_a_number_that_is_repeated_behind_the_rating_is_not_where_it_is_read(serve: Serve) -> None:
    tokens = [
        token("Rating"),
        token(":"),
        token(" 7", {" 7": -0.1, " 8": -2.5}),
        token(".\n\nIt has"),
        token(" 7", {" 7": 0.0}),
    ]
    engine, _ = serve(lambda _: answer("Rating: 7.\n\nIt has 7 flaws", *tokens, token(" flaws")))
    assert probabilities(one(engine, RATE_THINKING)) == pytest.approx({"7": math.exp(-0.1), "8": math.exp(-2.5)})


@pytest.mark.parametrize("behind", [("0", "%"), ("%",), (".", "5"), (" %",), ("th",)])
def test_a_number_that_goes_on_in_the_next_token_is_not_read(behind: tuple[str, ...], serve: Serve) -> None:
    """A server that demands 16 tokens returns more than the first one."""
    tokens = [token("7", SEVEN), *map(token, behind)]
    engine, _ = serve(lambda _: answer("7" + "".join(behind), *tokens))
    result = one(engine, RATE)
    assert isinstance(result, Failure) and "goes on behind the token" in result.reason


@pytest.mark.parametrize("behind", [(".",), ("\n", "Because"), ("/", "9"), (" ", "of", " 9"), ("<|im_end|>",), ("**",)])
def test_words_behind_a_number_change_nothing(behind: tuple[str, ...], serve: Serve) -> None:
    engine, _ = serve(lambda _: answer("7", token("7", SEVEN), *map(token, behind)))
    assert probabilities(one(engine, RATE)) == pytest.approx({digit: math.exp(value) for digit, value in SEVEN.items()})


def test_bytes_count_before_a_token_that_is_only_an_id(serve: Serve) -> None:
    engine, _ = serve(lambda _: answer("7", token("token_id:22", raw=[32, 55])))
    assert probabilities(one(engine, RATE)) == pytest.approx({"7": math.exp(-0.01)})


def test_content_in_parts_is_joined(serve: Serve) -> None:
    parts: Any = [{"type": "text", "text": "Rating: "}, {"type": "text", "text": "7"}]
    engine, _ = serve(lambda body: answer(parts, n=body.get("n", 1)))
    result = one(engine, SAMPLE)
    assert isinstance(result, CompletionResult) and result.texts == ("Rating: 7",) * 3


def test_llama_cpp_gives_one_choice_and_probabilities_in_its_own_order(serve: Serve) -> None:
    def act(body: Body) -> Reply:
        if body.get("n", 1) > 1:
            return refusal("Only one completion choice is allowed")
        return answer("7", token(" 7", {" 8": -2.5, " 7": -0.1, "The": -4.0}))

    engine, _ = serve(act)
    assert probabilities(one(engine, RATE)) == pytest.approx({"7": math.exp(-0.1), "8": math.exp(-2.5)})
    assert isinstance(one(engine, SAMPLE), CompletionResult)


def test_a_token_without_a_text_leaves_the_reply() -> None:
    seven = token("7", SEVEN)
    body = {"choices": [{"message": {"content": "7"}, "logprobs": {"content": [seven, {"logprob": 0}]}}]}
    assert read_choices_behind_thought(body, ("0", "7")) == ReadReply("7", None, -0.01, 2)


@pytest.mark.parametrize("content", [True, 1, {"a": 1}])
def test_a_refusal_with_a_content_that_is_not_text_is_an_empty_reply(content: object) -> None:
    body = {"choices": [{"message": {"content": content, "refusal": "no"}}]}
    assert read_replies(body) == [ReadReply("", "refusal")]
    assert isinstance(read_choices(body, ("0", "1")), Unread)


@pytest.mark.parametrize("numbers", [[10**400], [1e308, 1e308], [math.inf, -math.inf], [math.nan]])
def test_log_probabilities_that_are_no_numbers_are_none(numbers: list[float]) -> None:
    tokens = [{"token": "7", "logprob": value, "top_logprobs": [{"token": "7", "logprob": value}]} for value in numbers]
    body = {"choices": [{"message": {"content": "7"}, "logprobs": {"content": tokens}}]}
    assert read_replies(body) == [ReadReply("7", None)]


def test_an_alternative_beyond_every_float_is_malformed() -> None:
    tokens = [{"token": "7", "logprob": -1, "top_logprobs": [{"token": "7", "logprob": -(10**400)}]}]
    with pytest.raises(MalformedReply, match="no log-probabilities"):
        read_choices({"choices": [{"message": {"content": "7"}, "logprobs": {"content": tokens}}]}, ("0", "7"))


# What servers call a thought that they return apart from the reply.
THOUGHTS: list[Body] = [
    *({key: "3 things"} for key in ("reasoning_content", "reasoning", "reasoning_text", "thinking")),
    {"reasoning_details": [{"type": "reasoning.text", "text": "3 things"}]},
    {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "3 things"}]}]},
    *({"content": [{"type": kind, key: "3 things"}]} for kind in ("thinking", "reasoning") for key in ("thinking", "text")),
]


@pytest.mark.parametrize("message", THOUGHTS)
@pytest.mark.parametrize("finish", ["length", "stop"])
def test_a_thought_under_any_name_is_no_reply(finish: str, message: Body) -> None:
    logprobs = {"content": [token("3", {"3": -0.1})]}
    choice = {"message": {"content": None} | message, "finish_reason": finish, "logprobs": logprobs}
    found = read_choices({"choices": [choice]}, DIGITS)
    assert isinstance(found, Unread) and found.reason.startswith("unparsable: the reply is a thought")
    (reply,) = read_replies({"choices": [choice]})
    assert reply.text == "<think>3 things" and reply.finish_reason == finish


@pytest.mark.parametrize("message", THOUGHTS)
def test_a_reply_next_to_a_thought_is_read(message: Body) -> None:
    content = message.get("content")
    both = message | {"content": [*content, {"type": "text", "text": "7"}] if content else "7"}
    (reply,) = read_replies({"choices": [{"message": both, "finish_reason": "stop"}]})
    assert reply.text == "7"
