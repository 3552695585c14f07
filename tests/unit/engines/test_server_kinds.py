"""The engine that asks a server, against each kind of reply that servers and models give."""

from __future__ import annotations

import math

import pytest
from any_server import (
    DIGITS,
    RATE,
    RATE_THINKING,
    SAMPLE,
    SEVEN,
    Body,
    Serve,
    answer,
    one,
    probabilities,
    token,
)

from ual_ray.columns import Message, spoken, with_extra
from ual_ray.engines.openai_replies import MalformedReply, parse_body
from ual_ray.engines.reading import choice_probabilities
from ual_ray.engines.reply_text import Unread, answered
from ual_ray.engines.requests import Choice, ChoiceResult, Completion, CompletionResult, Failure
from ual_ray.errors import UserError

# --- models that think ------------------------------------------------------------------------------------------------

THOUGHT = [token("<think>"), token("\n"), token("2", {"2": -0.1}), token(" things"), token("</think>"), token("\n\n")]


def test_a_thinking_model_that_is_asked_for_one_token_has_no_mass(serve: Serve) -> None:
    engine, _ = serve(lambda _: answer("<think>", token("<think>", {"<think>": -0.0001, "7": -12.0}), finish="length"))
    result = one(engine, RATE)
    assert isinstance(result, ChoiceResult) and result.mass == pytest.approx(math.exp(-12))


@pytest.mark.parametrize("text", ["<think>\n2 things</think>\n\n7", "7"])  # without and with a reasoning parser
def test_the_score_is_read_behind_the_end_of_the_thought(text: str, serve: Serve) -> None:
    message = {} if "think" in text else {"reasoning_content": "2 things"}
    engine, server = serve(lambda _: answer(text, *THOUGHT, token("7", SEVEN), **message))
    assert probabilities(one(engine, RATE_THINKING)) == pytest.approx({"7": math.exp(-0.1), "8": math.exp(-2.5)})
    assert server.asked[0]["max_tokens"] == 132 and server.asked[0]["top_logprobs"] == 20


def test_the_score_is_read_where_the_reply_gives_it(serve: Serve) -> None:
    tokens = [
        token("2", {"2": -0.1}),
        token("</think>"),
        token("Rating"),
        token(":"),
        token(" 7", {" 7": -0.1, " 8": -2.5}),
        token("/"),
    ]
    engine, _ = serve(lambda _: answer("2</think>Rating: 7/9", *tokens, token("9", {"9": 0.0})))
    assert probabilities(one(engine, RATE_THINKING)) == pytest.approx({"7": math.exp(-0.1), "8": math.exp(-2.5)})


def test_without_log_probabilities_the_reply_behind_the_thought_counts(serve: Serve) -> None:
    engine, _ = serve(lambda _: answer("<think>2</think>Rating: 7"))
    result = one(engine, RATE_THINKING)
    assert isinstance(result, CompletionResult) and result.texts == ("<think>2</think>Rating: 7",)


@pytest.mark.parametrize("request_", [RATE, RATE_THINKING, SAMPLE])
def test_a_reasoning_parser_that_leaves_no_content_is_not_asked_again(request_: Choice | Completion, serve: Serve) -> None:
    engine, server = serve(lambda body: answer(None, n=body.get("n", 1), finish="length", reasoning_content="Let me think"))
    result = one(engine, request_)
    assert len(server.asked) == 1
    if isinstance(result, Failure):
        assert result.reason.startswith("unparsable: the reply is a thought")
    else:
        assert isinstance(result, CompletionResult)
        assert set(result.texts) == {"<think>Let me think"} and set(result.finish_reasons) == {"length"}


@pytest.mark.parametrize("finish", ["content_filter", "tool_calls", "function_call"])
def test_a_reply_without_text_is_not_asked_for_again(finish: str, serve: Serve) -> None:
    engine, server = serve(lambda body: answer(None, n=body.get("n", 1), finish=finish))
    result = one(engine, SAMPLE)
    assert isinstance(result, CompletionResult) and result.replies == [("", finish)] * 3
    choice = one(engine, RATE)
    assert isinstance(choice, Failure) and choice.reason == f"unparsable: the reply is empty (finish_reason '{finish}')"
    assert len(server.asked) == 2


WEATHER = {"name": "weather", "arguments": '{"city": "Rome", "rating": 7}'}


@pytest.mark.parametrize("message", [
    {"tool_calls": [{"id": "x", "type": "function", "function": WEATHER}]}, {"function_call": WEATHER},
    {"tool_calls": [{"id": "x", "type": "function", "function": WEATHER}], "reasoning_content": "I need to look"},
])  # fmt: skip
@pytest.mark.parametrize(("content", "finish"), [(None, "tool_calls"), ("", "stop"), ("3", "tool_calls")])
def test_a_call_of_a_tool_is_read_as_the_datas_are_and_is_no_rating(
    content: str | None, finish: str, message: Body, serve: Serve
) -> None:
    engine, server = serve(lambda body: answer(content, n=body.get("n", 1), finish=finish, **message))
    result = one(engine, SAMPLE)
    given = with_extra(Message(role="assistant", content=content or ""), tool_calls=[{"function": WEATHER}])
    assert isinstance(result, CompletionResult) and result.replies == [(spoken(given), finish)] * 3
    assert answered(*result.replies[0]) == spoken(given)
    assert isinstance(choice_probabilities(result, DIGITS, 0.01), Unread)
    choice = one(engine, RATE)
    assert isinstance(choice, Failure)
    assert choice.reason == f"unparsable: the reply is a call of a tool (finish_reason '{finish}')"
    assert len(server.asked) == 2


@pytest.mark.parametrize("request_", [RATE, RATE_THINKING, SAMPLE])
@pytest.mark.parametrize(("finish", "refusal"), [("content_filter", None), ("error", None), ("stop", "I cannot help.")])
def test_a_reply_that_something_else_ended_gives_no_score(
    finish: str, refusal: str | None, request_: Choice | Completion, serve: Serve
) -> None:
    engine, _ = serve(lambda body: answer("7", token("7", SEVEN), n=body.get("n", 1), finish=finish, refusal=refusal))
    read = choice_probabilities(one(engine, request_), DIGITS, 0.01)
    named = "refusal" if refusal else finish
    assert read == Unread(f"unparsable: the model did not end the reply (finish_reason '{named}')")


@pytest.mark.parametrize(("content", "reason"), [
    (b'data: {"choices": []}\n\ndata: [DONE]\n', r"a stream of events \(engine.endpoint.extra_body={stream: false}"),
    (b'{"choices": [{"mess', "no JSON"),
])  # fmt: skip
def test_a_body_that_is_no_json_is_shown(content: bytes, reason: str) -> None:
    with pytest.raises(MalformedReply, match=reason) as error:
        parse_body(content)
    assert error.value.words in ("", content.decode())


PART = b'data: {"choices": [{"delta": {"content": "7"}, "finish_reason": "stop"}]}\n\n'


@pytest.mark.parametrize("status", [200, 502])
@pytest.mark.parametrize("content", [
    b'data: {"error": {"message": "upstream overloaded", "code": 502}}\n\n',
    b'data: {"error": {"message": "upstream overloaded"}}\ndata: [DONE]\n',
    b'\r\n: PROCESSING\r\n\r\ndata: {"error": "upstream overloaded"}\r\n\r\ndata: [DONE]\r\n\r\n',
    PART + b'data: {"choices": [], "error": {"message": "upstream overloaded"}}\n\ndata: [DONE]\n\n',
    PART + b'event: error\ndata: {"type": "error",\ndata:  "error": {"message": "upstream overloaded"}}\n\n',
    b"id: 1\nevent: error\nretry: 10\ndata: upstream overloaded\n\n",
    b'data:{"status_code": 1002, "status_msg": "upstream overloaded"}',
    PART + b'data: {"choices": [{"del\n\ndata: {"detail": "upstream overloaded"}',
])  # fmt: skip
def test_an_error_that_comes_as_an_event_keeps_its_words(content: bytes, status: int, serve: Serve) -> None:
    engine, _ = serve(lambda _: (status, content.decode()), max_retries=0)
    result = one(engine, RATE)
    assert isinstance(result, Failure)
    assert result.reason.endswith("upstream overloaded") and "data:" not in result.reason and '"' not in result.reason
    assert status != 200 or result.reason.startswith("engine: malformed reply, an error, as an event: ")


def test_a_stream_without_an_error_has_no_words_of_one() -> None:
    with pytest.raises(MalformedReply, match="a stream of events") as error:
        parse_body(PART + b'data: {"choices": [], "usage": {"total_tokens": 7}}\n\ndata: [DONE]\n\n')
    assert error.value.words == ""


def test_an_error_without_an_error_object_keeps_its_words(serve: Serve) -> None:
    engine, _ = serve(lambda _: (200, {"object": "error", "message": "out of memory", "code": 50001}), max_retries=0)
    result = one(engine, RATE)
    assert isinstance(result, Failure) and result.reason == "engine: malformed reply, no choices: out of memory"


@pytest.mark.parametrize(("given", "read"), [({"type": "length", "length": 8}, "length"), ({"type": "stop"}, "stop"), (2, "2")])
def test_a_finish_reason_of_another_form_is_read(given: object, read: str, serve: Serve) -> None:
    engine, _ = serve(lambda body: answer("7", n=body.get("n", 1), finish=given))
    result = one(engine, SAMPLE)
    assert isinstance(result, CompletionResult) and result.finish_reasons == (read,) * 3


@pytest.mark.parametrize(("text", "finish"), [("", "length"), (None, "length")])
def test_a_budget_spent_on_a_hidden_thought_is_a_cut_reply(text: str | None, finish: str, serve: Serve) -> None:
    engine, server = serve(lambda body: answer(text, n=body.get("n", 1), finish=finish))
    result = one(engine, SAMPLE)
    assert isinstance(result, CompletionResult) and result.replies == [("", "length")] * 3
    assert len(server.asked) == 1


PAGE = (
    "<!DOCTYPE html>\n<html><head><title>No &amp; more</title><style>n{temperature: unknown}%s</style></head>"
    "<body><h1>Sign in</h1>%s"
)


@pytest.mark.parametrize("status", [200, 400, 404, 413, 502])
def test_of_a_page_of_a_proxy_its_words_are_told(status: int, serve: Serve) -> None:
    engine, server = serve(lambda _: (status, PAGE % ("b{color:red}" * 2000, "<p>again</p>" * 2000)), max_retries=0)
    try:
        result = engine.run([SAMPLE])[0]
        assert isinstance(result, Failure) and status != 404
        told = result.reason
    except UserError as error:
        assert status == 404
        told = str(error)
    assert "No & more Sign in again" in told and "color" not in told and "<" not in told and len(told) < 700
    assert len(server.asked) == 1 and engine.adaptations == []
