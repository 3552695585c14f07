"""What servers refuse, and in which words: what the engine leaves out, renames or splits then."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from any_server import (
    DIGITS,
    PROMPT,
    RATE,
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

from ual_ray.engines.reply_text import read_choice
from ual_ray.engines.requests import ChoiceResult, Completion, CompletionResult, Failure, overlong


def gpt5(body: Body) -> Reply:
    if "max_tokens" in body:
        words = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
        return refusal(words, "max_tokens", "unsupported_parameter")
    if body.get("temperature", 1) != 1:
        words = "Unsupported value: 'temperature' does not support 0.5 with this model. Only the default (1) is supported."
        return refusal(words, "temperature", "unsupported_value")
    if "logprobs" in body:
        return refusal("Unsupported parameter: 'logprobs' is not supported with this model.", "logprobs")
    return answer("7", n=body.get("n", 1))


def test_gpt5_and_o_series_take_their_own_fields_and_each_is_refused_once(serve: Serve) -> None:
    engine, server = serve(gpt5)
    result = one(engine, Completion(PROMPT, 8, 0.5, n=3))
    assert isinstance(result, CompletionResult)
    assert (result.texts, result.finish_reasons) == (("7", "7", "7"), ("stop", "stop", "stop"))
    assert len(server.asked) == 3
    assert "max_tokens" not in server.asked[-1] and server.asked[-1]["max_completion_tokens"] == 8
    assert "temperature" not in server.asked[-1]
    one(engine, SAMPLE)
    assert len(server.asked) == 4
    assert engine.adaptations == [
        "max_completion_tokens in place of max_tokens",
        "temperature left out: the server's default is used",
    ]


def test_what_cannot_be_adapted_is_told_in_the_servers_words(serve: Serve) -> None:
    engine, _ = serve(gpt5)
    result = one(engine, RATE)
    assert isinstance(result, Failure)
    assert "Unsupported parameter: 'logprobs' is not supported with this model." in result.reason


def test_fields_by_configuration_are_sent_from_the_start(serve: Serve) -> None:
    engine, server = serve(
        gpt5, max_tokens_field="max_completion_tokens", temperature=None, reasoning_effort="low",
        extra_body={"service_tier": "flex"},
        chat_template_kwargs={"enable_thinking": False}, extra_headers={"X-Team": "blue"}, structured="json_schema",
    )  # fmt: skip
    one(engine, SAMPLE)
    (asked,) = server.asked
    assert asked["reasoning_effort"] == "low" and asked["service_tier"] == "flex"
    assert asked["chat_template_kwargs"] == {"enable_thinking": False}
    assert asked["response_format"]["json_schema"]["schema"]["properties"]["answer"]["enum"] == list(range(10))
    assert server.sent_headers[0]["X-Team"] == "blue" and engine.adaptations == []


@pytest.mark.parametrize("choices", [DIGITS, tuple(map(str, range(101))), ("A", "B"), ("m", "M")])
def test_a_reply_in_the_schema_that_was_asked_for_is_read(choices: tuple[str, ...], serve: Serve) -> None:
    def obey(body: dict[str, Any]) -> dict[str, Any]:
        properties = body["response_format"]["json_schema"]["schema"]["properties"]
        return answer(json.dumps({key: rule["enum"][-1] for key, rule in properties.items()}))

    engine, _ = serve(obey, structured="json_schema")
    result = one(engine, Completion((("user", "Choose."),), 8, 1.0, choices=choices))
    assert isinstance(result, CompletionResult)
    assert read_choice(result.texts[0], choices) == choices[-1]


def test_a_fixed_temperature_and_choices_of_vllm(serve: Serve) -> None:
    engine, server = serve(lambda body: answer("7", n=body.get("n", 1)), temperature=0.6, structured="choice")
    one(engine, SAMPLE)
    assert server.asked[0]["temperature"] == 0.6
    assert server.asked[0]["structured_outputs"] == {"choice": list(DIGITS)}


@pytest.mark.parametrize("words", [
    "'n': number must be at most 1", "Only one completion choice is allowed", "n must be 1",
    "Multiple candidates is not enabled", "Only n=1 is supported", "n: Extra inputs are not permitted",
    "candidateCount must be 1",
    "Argument not supported on this model: n", "n should be 1", "num_return_sequences must be 1",
    "Number of generations must be 1", "Generating multiple responses is not supported", "Only a single output is supported",
    "Sampling more than one sequence is not supported", "参数 n 不支持大于1的值", "n参数必须为1",
])  # fmt: skip
def test_n_is_split_where_it_is_refused(words: str, serve: Serve) -> None:
    engine, server = serve(lambda body: refusal(words) if body.get("n", 1) > 1 else answer("7"))
    result = one(engine, SAMPLE)
    assert isinstance(result, CompletionResult) and (result.texts, result.calls) == (("7",) * 3, 3)
    assert len({body["seed"] for body in server.asked[1:]}) == 3
    one(engine, SAMPLE)
    assert [body.get("n", 1) for body in server.asked] == [3] + [1] * 6


@pytest.mark.parametrize("words", [
    "max_output_tokens must be >= 16",
    "Invalid 'max_output_tokens': integer below minimum value. Expected a value >= 16, but got 1 instead.",
    "max_tokens must be at least 16, got 1.", "max_tokens: Input should be greater than or equal to 16",
    "max_tokens should be greater than 15", "`max_tokens` cannot be less than 16", "max_tokens must not be smaller than 16",
    "The minimum value of max_tokens is 16", "max_tokens is too low: the minimum is 16",
    "You must ask for at least 16 output tokens",
    "Range of max_tokens should be [16, 8192]", "max_tokens must be between 16 and 4096", "max_tokens 不能小于16",
    "max_tokens > 15",
    "max_completion_tokens (1) must be ≥ 16",
])  # fmt: skip
def test_a_server_that_demands_tokens_is_asked_for_as_many(words: str, serve: Serve) -> None:
    def act(body: Body) -> Reply:
        return refusal(words) if body["max_tokens"] < 16 else answer("7", token("7", SEVEN), n=body.get("n", 1))

    engine, server = serve(act, max_retries=0)
    assert probabilities(one(engine, RATE)) == pytest.approx({digit: math.exp(value) for digit, value in SEVEN.items()})
    assert isinstance(one(engine, SAMPLE), CompletionResult)
    one(engine, Completion(PROMPT, 40, 1.0))
    assert [body["max_tokens"] for body in server.asked] == [1, 16, 16, 40]
    assert engine.adaptations == ["at least 16 tokens asked for, as the server demands"]


def test_the_parameter_of_a_demand_may_be_named_apart(serve: Serve) -> None:
    words = "Integer below minimum value. Expected a value >= 16, but got 1 instead."
    act = lambda body: refusal(words, "max_output_tokens") if body["max_tokens"] < 16 else answer("7", token("7", SEVEN))  # noqa: E731
    engine, _ = serve(act)
    assert probabilities(one(engine, RATE))


@pytest.mark.parametrize("words", [
    "max_tokens must be less than 512", "max_tokens must be between 1 and 2048", "thinking.budget_tokens must be >= 16",
    "max_tokens is 1, which is bad", "max_tokens must be >= 100000", "max_tokens must be <= 8",
])  # fmt: skip
def test_other_words_about_tokens_ask_for_no_more(words: str, serve: Serve) -> None:
    engine, server = serve(lambda _: refusal(words), max_retries=0)
    result = one(engine, RATE)
    assert isinstance(result, Failure) and words in result.reason and len(server.asked) == 1


@pytest.mark.parametrize("body", [
    {"detail": [{"type": "extra_forbidden", "loc": ["body", "n"], "msg": "Extra inputs are not permitted"}]},
    {"errors": [{"message": "n is not supported"}]}, {"error": {"errors": ["n is not supported"]}},
])  # fmt: skip
def test_n_is_split_where_the_place_of_an_error_names_it(body: Body, serve: Serve) -> None:
    engine, server = serve(lambda asked: (422, body) if asked.get("n", 1) > 1 else answer("7"))
    assert isinstance(one(engine, SAMPLE), CompletionResult)
    assert len(server.asked) == 4


def test_n_is_split_where_it_is_not_implemented(serve: Serve) -> None:
    act = lambda body: (501, {"message": "n > 1 is not implemented"}) if body.get("n", 1) > 1 else answer("7")  # noqa: E731
    engine, server = serve(act, max_retries=0)
    assert isinstance(one(engine, SAMPLE), CompletionResult) and len(server.asked) == 4


@pytest.mark.parametrize("words", [
    "max_tokens: Extra inputs are not permitted", "Unrecognized request argument supplied: max_tokens",
    "Unsupported parameter: 'max_tokens'", "max_tokens is deprecated",
])  # fmt: skip
def test_max_tokens_is_renamed_where_it_is_not_known(words: str, serve: Serve) -> None:
    engine, server = serve(lambda body: refusal(words) if "max_tokens" in body else answer("7", token("7", SEVEN)))
    assert isinstance(one(engine, RATE), ChoiceResult)
    assert [("max_tokens" in body, "max_completion_tokens" in body) for body in server.asked] == [(True, False), (False, True)]


@pytest.mark.parametrize("words", [
    "Requested sample logprobs of 20, which is greater than max allowed: 5", "top_logprobs must be between 0 and 5",
    "Input should be less than or equal to 5: top_logprobs",
])  # fmt: skip
def test_top_logprobs_are_lowered_to_what_is_allowed(words: str, serve: Serve) -> None:
    engine, server = serve(lambda body: refusal(words) if body["top_logprobs"] > 5 else answer("7", token("7", SEVEN)))
    assert probabilities(one(engine, RATE)) == pytest.approx({"7": math.exp(-0.1), "8": math.exp(-2.5)})
    assert [body["top_logprobs"] for body in server.asked] == [20, 5]


@pytest.mark.parametrize("words", [
    "greater than max allowed: 5 logprobs", "max_completion_tokens, please", "temperature unsupported",
    "only one completion choice", "seed is not supported", "no",
])  # fmt: skip
def test_a_server_that_refuses_everything_is_given_up_with_its_words(words: str, serve: Serve) -> None:
    engine, server = serve(lambda body: refusal(words))
    for request in (RATE, SAMPLE):
        result = one(engine, request)
        assert (
            isinstance(result, Failure)
            and words in result.reason
            and result.reason.startswith("engine: refused by the server 400")
        )
    assert len(server.asked) <= 6


@pytest.mark.parametrize(
    "body", [{"detail": "too odd"}, {"message": "too odd"}, {"error": "too odd"}, {"detail": [{"msg": "too odd"}]}]
)
def test_the_words_are_found_in_every_form_of_an_error(body: Body, serve: Serve) -> None:
    engine, _ = serve(lambda _: (422, body))
    result = one(engine, RATE)
    assert isinstance(result, Failure) and "too odd" in result.reason


def test_the_words_of_an_error_repeat_neither_prompt_nor_secret(serve: Serve) -> None:
    words = "Cannot read 'Rate the uncertainty from 0 to 9.' for the bearer of blue-secret"
    engine, _ = serve(lambda _: refusal(words), extra_headers={"X-Team": "blue-secret"})
    result = one(engine, RATE)
    assert isinstance(result, Failure)
    assert result.reason.endswith("Cannot read '[prompt]' for the bearer of ***")


def test_a_header_that_is_no_secret_leaves_the_words_as_they_are(serve: Serve) -> None:
    engine, _ = serve(lambda _: refusal("max is 1"), extra_headers={"X-Version": "1", "X-Empty": "", "X-Kind": "max"})
    result = one(engine, RATE)
    assert isinstance(result, Failure) and result.reason.endswith("max is 1")


def test_an_error_with_status_200_keeps_its_words(serve: Serve) -> None:
    engine, _ = serve(lambda _: (200, {"error": {"message": "upstream overloaded", "code": 502}}), max_retries=0)
    result = one(engine, RATE)
    assert isinstance(result, Failure) and result.reason == "engine: malformed reply, no choices: upstream overloaded"


@pytest.mark.parametrize("words", [
    "{} is not supported", "This model does not accept the {} parameter", "{} cannot be set for this model",
    "{}: Input should be less than or equal to 1", "{}: Extra inputs are not permitted",
    "Argument not supported on this model: {}",
    "`{}` is deprecated for this model.", "Unrecognized request argument supplied: {}",
    "Unknown name \"{}\": Cannot find field.",
])  # fmt: skip
@pytest.mark.parametrize("name", ["temperature", "seed"])
def test_a_parameter_is_left_out_in_whatever_words_it_is_refused(name: str, words: str, serve: Serve) -> None:
    refused = words.format(name)
    engine, server = serve(lambda body: refusal(refused[0].upper() + refused[1:]) if name in body else answer("7", n=body["n"]))
    assert isinstance(one(engine, SAMPLE), CompletionResult)
    assert len(server.asked) == 2 and name not in server.asked[1]


@pytest.mark.parametrize("words", [
    "The prompt about temperature is too long: it must be shorter",
    "Your seed funding request was rejected by the content filter",
    "The response was filtered", "You exceeded your current quota", "max_tokens is too large: 5000",
    "max_tokens must not exceed 4096", "\\n is not allowed here",
])  # fmt: skip
def test_other_refusals_change_nothing(words: str, serve: Serve) -> None:
    engine, server = serve(lambda _: refusal(words))
    assert isinstance(one(engine, SAMPLE), Failure)
    assert len(server.asked) == 1 and engine.adaptations == []


@pytest.mark.parametrize(("words", "tokens", "limit"), [
    ("prompt is too long: 210000 tokens > 200000 maximum", 210001, 200000),
    ("The input token count (40000) exceeds the maximum number of tokens allowed (32768).", 40001, 32768),
    ("Prompt tokens (9000) exceed model limit of 8192", 9001, 8192), ("Too many tokens: 5000 > 4096", 5001, 4096),
    ("Please reduce the length of the messages or completion.", None, None),
    ("Input is too long for requested model.", None, None),
    ("`inputs` tokens + `max_new_tokens` must be <= 4096. Given: 4990 `inputs` tokens and 10 `max_new_tokens`", None, None),
    ("string too long. Expected a string with maximum length 1048576", None, None), ("Context window exceeded", None, None),
])  # fmt: skip
def test_a_prompt_is_too_long_in_every_servers_words(words: str, tokens: int | None, limit: int | None, serve: Serve) -> None:
    engine, server = serve(lambda _: refusal(words))
    assert one(engine, RATE) == overlong(tokens, limit)
    assert len(server.asked) == 1


@pytest.mark.parametrize(("body", "words"), [
    ({"error": {"message": "Provider returned error", "metadata": {"raw": '{"error": {"message": "no such region"}}'}}},
     "Provider returned error: no such region"),
    ({"error": {"message": "Provider returned error", "metadata": {"raw": "no region"}}}, "Provider returned error: no region"),
    ({"title": "One or more errors.", "errors": {"Messages": ["The field is required."]}}, "Messages: The field is required."),
    ({"type": "about:blank", "title": "Out of memory", "status": 422}, "title: Out of memory"),
    ({"id": "x", "base_resp": {"status_code": 1008, "status_msg": "no balance"}}, "base_resp: status_msg: no balance"),
    ({"error_code": 336003, "error_msg": "the input is odd"}, "error_msg: the input is odd"),
    ({"header": {"code": 11200, "message": "licence limit", "sid": "cht"}}, "header: licence limit"),
    ({"Message": "no access to the endpoint"}, "Message: no access to the endpoint"),
])  # fmt: skip
@pytest.mark.parametrize("status", [200, 422])
def test_the_words_are_found_under_the_names_of_every_provider(status: int, body: Body, words: str, serve: Serve) -> None:
    engine, _ = serve(lambda _: (status, body), max_retries=0)
    result = one(engine, RATE)
    assert isinstance(result, Failure) and result.reason.endswith(f": {words}")


def test_what_a_gateway_quotes_of_a_provider_is_adapted_to(serve: Serve) -> None:
    raw = json.dumps({"error": {"message": "n must be 1"}})
    refused = 400, {"error": {"message": "Provider returned error", "code": 400, "metadata": {"raw": raw}}}
    engine, server = serve(lambda body: refused if body.get("n", 1) > 1 else answer("7"))
    assert isinstance(one(engine, SAMPLE), CompletionResult) and len(server.asked) == 4


@pytest.mark.slow
def test_an_error_in_place_of_a_reply_is_the_engines_in_the_servers_words(serve: Serve) -> None:
    failed = {
        "finish_reason": "error",
        "error": {"code": 502, "message": "lost"},
        "message": {"role": "assistant", "content": ""},
    }
    engine, server = serve(lambda _: (200, {"choices": [failed]}), max_retries=1)
    for request in (RATE, SAMPLE):
        result = one(engine, request)
        assert isinstance(result, Failure)
        assert result.reason == "engine: malformed reply, an error in its place: lost"
    assert len(server.asked) == 4


@pytest.mark.parametrize("words", ["Only one completion choice is allowed", "proxy: 'n' must be 1"])
def test_a_refusal_with_status_500_is_adapted_to(words: str, serve: Serve) -> None:
    act = lambda body: (500, {"error": {"message": words}}) if body.get("n", 1) > 1 else answer("7")  # noqa: E731
    engine, server = serve(act, max_retries=0)
    assert isinstance(one(engine, SAMPLE), CompletionResult) and len(server.asked) == 4


def test_top_logprobs_are_found_in_any_case_of_letters(serve: Serve) -> None:
    words = "The requested Logprobs value of 20 is outside of the supported range (0, 5]"
    engine, server = serve(lambda body: refusal(words) if body["top_logprobs"] > 5 else answer("7", token("7", SEVEN)))
    assert isinstance(one(engine, RATE), ChoiceResult)
    assert [body["top_logprobs"] for body in server.asked] == [20, 5]


def test_a_limit_of_the_prompt_alone_is_read(serve: Serve) -> None:
    words = "Input validation error: `inputs` must have less than 1024 tokens. Given: 5000"
    engine, _ = serve(lambda _: (422, {"error": words, "error_type": "validation"}))
    assert one(engine, RATE) == overlong(5001, 1024)
