"""The engine that asks a server: what goes well, and what goes wrong."""

from __future__ import annotations

import asyncio
import logging
import math
import socket
import threading
import time
from typing import Any

import pytest
from openai_server import (
    KEY,
    KEY_NAME,
    MODEL,
    PRIVATE,
    Action,
    Build,
    Server,
    ask,
    choose,
    completion,
    config_of,
    cut_short,
    drop,
    error,
    hang,
    ignoring_n,
    interrupt,
    our_lines,
    prompt_of,
    reply,
    slow,
    trickle,
    well,
)

from ual_ray.engines import EngineSpec
from ual_ray.engines import openai_engine as endpoint
from ual_ray.engines.openai_engine import OpenAIEngine
from ual_ray.engines.requests import ChoiceResult, Completion, CompletionResult, Failure, Likelihood, Overlong, Result, overlong
from ual_ray.errors import UserError


def patience(reason: str) -> float:
    """Wait a little where waiting is what is tested."""
    return 1 if reason == "timeout" else 20


# --- what goes well --------------------------------------------------------------------------------------------------


def test_a_choice_is_the_sum_of_its_tokens_and_what_is_not_returned_is_impossible(build: Build, server: Server) -> None:
    (result,) = build().run([choose("pick")])
    assert isinstance(result, ChoiceResult)
    assert result.log_probabilities == pytest.approx((math.log(0.75), math.log(0.125), -math.inf))
    assert (result.prompt_tokens, result.generated_tokens, result.calls) == (7, 2, 1)
    assert server.asked == [
        {
            "model": MODEL,
            "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "pick"}],
            "max_tokens": 1,
            "temperature": 0.0,
            "logprobs": True,
            "top_logprobs": 20,
        }
    ]


def test_replies_come_in_order_with_the_settings_asked_for(build: Build, server: Server) -> None:
    server.plans["first"] = [slow]
    first, second, third = build().run(
        [Completion(ask("first"), 9, 0.7, n=3, seed=5), choose("second"), Completion(ask("third"), 4)]
    )
    assert first == CompletionResult(("first 5 0", "first 5 1", "first 5 2"), 7, 6, finish_reasons=("stop",) * 3)
    assert isinstance(second, ChoiceResult)
    assert third == CompletionResult(("third None 0",), 7, 2, finish_reasons=("stop",))
    (sampled,) = (body for body in server.asked if prompt_of(body) == "first")
    assert (sampled["max_tokens"], sampled["temperature"], sampled["n"], sampled["seed"]) == (9, 0.7, 3, 5)
    (greedy,) = (body for body in server.asked if prompt_of(body) == "third")
    assert greedy["temperature"] == 0 and not {"seed", "n", "logprobs"} & set(greedy)


def test_a_server_that_ignores_n_is_asked_again_with_other_seeds(build: Build, server: Server) -> None:
    server.plans["many"] = [ignoring_n]
    (result,) = build().run([Completion(ask("many"), 9, 1.0, n=4, seed=3)])
    assert isinstance(result, CompletionResult)
    assert len(set(result.texts)) == 4 and result.texts[0] == "seed 3"
    assert (result.prompt_tokens, result.generated_tokens, result.calls) == (28, 8, 4)
    assert [body.get("n", 1) for body in server.asked] == [4, 3, 2, 1]
    assert all(0 <= body["seed"] < 2**31 for body in server.asked)


def test_replies_beyond_n_and_empty_ones_are_left_out(build: Build, server: Server) -> None:
    server.plans["two"] = [reply(completion(["a", None], usage=None)), reply(completion(["b", "c"]))]
    (result,) = build().run([Completion(ask("two"), 9, 1.0, n=2)])
    assert result == CompletionResult(("a", "b"), 7, 4, calls=2, finish_reasons=("stop",) * 2)


@pytest.mark.parametrize(
    ("usage", "counted"),
    [
        ({"prompt_tokens": "12", "completion_tokens": "3"}, (12, 3)),
        ({"prompt_tokens": 12.0, "completion_tokens": " 3.0 "}, (12, 3)),
        ({"input_tokens": 12, "output_tokens": 3}, (12, 3)),
        ({"prompt_tokens": None, "input_tokens": "12", "completion_tokens": True, "output_tokens": 3}, (12, 3)),
        ({"prompt_tokens": -1, "completion_tokens": "3.5"}, (0, 0)),
        ({"prompt_tokens": float("nan"), "completion_tokens": [3]}, (0, 0)),
        ({"prompt_tokens": "many", "completion_tokens": float("inf")}, (0, 0)),
        ("12", (0, 0)),
    ],
)
def test_tokens_are_counted_however_a_server_writes_them(
    usage: Any, counted: tuple[int, int], build: Build, server: Server
) -> None:
    server.plans["one"] = [reply(completion(["a"], usage=usage))]
    (result,) = build().run([Completion(ask("one"), 9)])
    assert (result.prompt_tokens, result.generated_tokens) == counted


def test_confidence_is_read_off_the_tokens_where_a_server_gives_them(build: Build, server: Server) -> None:
    tokens = [{"token": "a", "logprob": math.log(0.5)}, {"token": "b", "logprob": math.log(0.125)}]
    answer = completion(["ab"])
    answer["choices"][0]["logprobs"] = {"content": tokens}
    bare, broken = completion(["ab"]), completion(["ab"])
    broken["choices"][0]["logprobs"] = {"content": [{"token": "a", "logprob": None}]}
    server.plans |= {"told": [reply(answer)], "bare": [reply(bare)], "broken": [reply(broken)]}
    asked = [Completion((("user", text),), 5, confidence=True) for text in ("told", "bare", "broken")]
    told, *others = build().run([*asked, Completion((("user", "plain"),), 5)])
    assert isinstance(told, CompletionResult) and told.confidence == pytest.approx(0.25)
    assert [isinstance(other, CompletionResult) and other.confidence is None for other in others] == [True] * 3
    assert [body.get("logprobs") for body in server.asked if prompt_of(body) == "plain"] == [None]
    assert [body.get("logprobs") for body in server.asked if prompt_of(body) == "told"] == [True]
    build(logprobs=False).run([Completion((("user", "unasked"),), 5, confidence=True)])
    assert [body.get("logprobs") for body in server.asked if prompt_of(body) == "unasked"] == [None]


def test_no_more_requests_than_allowed_are_under_way(build: Build, server: Server) -> None:
    server.plans["q"] = [slow]
    results = build(concurrency=3).run([choose(f"q{number}") for number in range(12)])
    assert len(results) == 12 and all(isinstance(result, ChoiceResult) for result in results)
    assert server.most_at_once == 3


def test_an_engine_runs_again_and_inside_a_running_loop(build: Build) -> None:
    engine = build()
    assert engine.run([]) == []

    async def inside() -> list[Result]:
        return engine.run([choose("again")])

    assert asyncio.run(inside()) == engine.run([choose("again")])


def test_the_likelihood_of_a_text_is_not_asked_for(build: Build, server: Server) -> None:
    assert build().run([Likelihood((*ask("q"), ("assistant", "a")))]) == [
        Failure("engine: a server does not give the likelihood of a text")
    ]
    (no_logprobs,) = build(logprobs=False).run([choose("q")])
    assert isinstance(no_logprobs, Failure) and "endpoint.logprobs" in no_logprobs.reason
    assert server.asked == []


def test_closing_leaves_no_thread(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_NAME, raising=False)
    with OpenAIEngine(EngineSpec(config_of(server), MODEL)) as engine:
        assert isinstance(engine.run([choose("q")])[0], ChoiceResult)
        assert any(thread.name == "endpoint" for thread in threading.enumerate())
    assert not any(thread.name == "endpoint" for thread in threading.enumerate())


# --- what goes wrong -------------------------------------------------------------------------------------------------

TROUBLES: dict[str, tuple[Action, str]] = {
    "drops the connection": (drop, "connection"),
    "breaks off": (cut_short, "connection"),
    "never answers": (hang, "timeout"),
    "sends blanks for ever": (trickle, "timeout"),
    "is busy": (reply({}, 429, Retry_After="0"), "rate limit 429"),
    "is broken": (error(500), "server error 500 SomeError"),
    "sends no JSON": (reply(b'{"choices": [{"mess'), "malformed reply, no JSON"),
    "sends no UTF-8": (reply(b'"\xff\xfe"'), "malformed reply, no JSON"),
    "sends a list": (reply([1]), "malformed reply, no JSON object"),
    "sends HTML": (reply(b"<html>", Content_Type="text/html"), "malformed reply, no JSON"),
    "sends no choices": (reply({"error": {"message": PRIVATE}}), "malformed reply, no choices"),
    "sends odd choices": (reply({"choices": [None, {"message": 3}]}), "malformed reply, no content"),
    "sends no content": (reply(completion([None], {"A": -1.0})), "malformed reply, no content"),
    "sends no log-probabilities": (reply(completion(["A"])), "malformed reply, no log-probabilities"),
    "sends no numbers": (reply(completion(["A"], {"A": math.nan})), "malformed reply, no log-probabilities"),
}


@pytest.mark.slow
@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_trouble_that_passes_costs_nothing(trouble: str, build: Build, server: Server) -> None:
    action, reason = TROUBLES[trouble]
    server.plans["hard"] = [action, well]
    results = build(timeout_seconds=patience(reason)).run([choose("easy"), choose("hard"), choose("easy too")])
    assert len({result.log_probabilities for result in results if isinstance(result, ChoiceResult)}) == 1
    assert [type(result) for result in results] == [ChoiceResult] * 3
    assert server.count("hard") == 2


@pytest.mark.parametrize("trouble", TROUBLES)
@pytest.mark.slow
def test_a_trouble_that_stays_costs_one_request(
    trouble: str, build: Build, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    action, reason = TROUBLES[trouble]
    server.plans[PRIVATE] = [action]
    started = time.monotonic()
    with caplog.at_level(logging.DEBUG):
        first, failed, last = build(timeout_seconds=patience(reason)).run(
            [Completion(ask("1"), 5), choose(PRIVATE), Completion(ask("3"), 5)]
        )
    assert time.monotonic() - started < 100
    assert isinstance(failed, Failure) and not isinstance(failed, Overlong)
    assert failed.reason.startswith(f"engine: {reason}") and len(failed.reason) <= 200
    assert isinstance(first, CompletionResult) and first.texts == ("1 None 0",)
    assert isinstance(last, CompletionResult) and last.texts == ("3 None 0",)
    assert server.count(PRIVATE) == 2
    assert [failed.reason in record.getMessage() for record in caplog.records if record.name == endpoint.__name__] == [True]
    for secret in (KEY, PRIVATE):
        assert secret not in failed.reason and secret not in our_lines(caplog)


def test_the_clients_attempts_and_ours_are_one_budget(build: Build, server: Server) -> None:
    server.plans["recovers"] = [error(500), reply(b"{"), well]
    server.plans["never"] = [error(500), reply(b"{"), drop]
    recovered, failed = build(max_retries=2).run([choose("recovers"), choose("never")])
    assert isinstance(recovered, ChoiceResult) and server.count("recovers") == 3
    assert isinstance(failed, Failure) and failed.reason.startswith("engine: connection") and server.count("never") == 3


def test_no_retries_means_one_attempt(build: Build, server: Server) -> None:
    server.plans["b"] = [reply(b"{")]
    server.plans["d"] = [drop]
    results = build(max_retries=0).run([choose("b"), choose("d")])
    assert all(isinstance(result, Failure) for result in results) and len(server.asked) == 2


def test_what_a_failed_request_cost_is_counted(build: Build, server: Server) -> None:
    server.plans["many"] = [ignoring_n, reply(completion([None]))]
    (failed,) = build(max_retries=0).run([Completion(ask("many"), 9, 1.0, n=4)])
    assert failed == Failure("engine: malformed reply, no content", prompt_tokens=14, generated_tokens=4, calls=2)


def test_a_server_that_is_gone_fails_every_request(build: Build, server: Server, caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
        results = build(url=url).run([choose(f"q{number}") for number in range(40)])
    assert {result.reason for result in results if isinstance(result, Failure)} == {
        "engine: connection lost or refused (ConnectError)"
    }
    lines = [record.getMessage() for record in caplog.records if record.name == endpoint.__name__]
    assert len(lines) == 4 and lines[-1].startswith("40 of 40 requests got no answer: 40 x engine: connection")


def test_a_prompt_that_no_request_can_carry_fails_alone(build: Build) -> None:
    broken, fine = build().run([choose("half a pair: \ud83d"), choose("fine")])
    assert isinstance(broken, Failure) and "characters" in broken.reason
    assert isinstance(fine, ChoiceResult)


@pytest.mark.parametrize(
    ("action", "reason"),
    [
        (
            error(400, code="content_filter", param="messages"),
            f"refused by the server 400 content_filter SomeError messages: {PRIVATE}***",
        ),
        (error(400, code=KEY, type=PRIVATE), f"refused by the server 400 ***: {PRIVATE}***"),
        (error(402, code=None), f"refused by the server 402 SomeError: {PRIVATE}***"),
        (reply(b"no", 422), "refused by the server 422: no"),
        (reply([], 429, x_should_retry="false"), "rate limit 429"),
    ],
)
def test_a_request_that_the_server_refuses_fails_at_once(action: Action, reason: str, build: Build, server: Server) -> None:
    server.plans["odd"] = [action]
    odd, fine = build().run([choose("odd"), choose("fine")])
    assert odd == Failure(f"engine: {reason}")
    assert isinstance(fine, ChoiceResult)
    assert server.count("odd") == 1


@pytest.mark.parametrize(
    ("message", "tokens", "limit"),
    [
        ("This model's maximum context length is 512 tokens. However, your prompt contains 600 input tokens.", 610, 512),
        ("This model's maximum context length is 512 tokens. However, your prompt has at least 503 input tokens", None, 512),
        ("maximum context length is 512 tokens. However, you requested 620 tokens (600 in the messages, 20 in ...)", 620, 512),
        ("maximum context length is 512 tokens. However, your messages resulted in 600 tokens.", 610, 512),
        ("'max_tokens' is too large: 10. This model's maximum context length is 512 tokens and your request has 509 input "
         "tokens (10 > 512 - 509).", 519, 512),
        ("Input length (600) exceeds model's maximum context length (512).", 610, 512),
        ("The decoder prompt (length 600) is longer than the maximum model length of 512.", 610, 512),
        ("the input exceeds the max_model_len 512", None, 512),
        ("request (600 tokens) exceeds the available context size (512 tokens), try increasing it", 610, 512),
        ("context_length_exceeded", None, None),
    ],
)  # fmt: skip
def test_a_prompt_too_long_is_overlong(
    message: str, tokens: int | None, limit: int | None, build: Build, server: Server
) -> None:
    server.plans["long"] = [error(400, message)]
    long, fine = build().run([Completion(ask("long"), max_tokens=10), choose("fine")])
    assert long == overlong(tokens, limit) and isinstance(long, Overlong)
    assert isinstance(fine, ChoiceResult)
    assert server.count("long") == 1


def test_a_length_may_stand_in_the_code_alone(build: Build, server: Server, caplog: pytest.LogCaptureFixture) -> None:
    server.plans["long"] = [error(400, "Too much.", code="context_length_exceeded")]
    assert build().run([choose("long")]) == [overlong(None, None)]
    assert not [record for record in caplog.records if record.name == endpoint.__name__]


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_stops_the_run(status: int, build: Build, server: Server) -> None:
    server.plans["q"] = [error(status, f"Incorrect API key provided: {KEY}")]
    with pytest.raises(UserError, match=f"(?s){KEY_NAME} is refused.*status {status}: Incorrect API key provided") as caught:
        build(concurrency=4).run([choose(f"q{number}") for number in range(50)])
    assert KEY not in str(caught.value) and caught.value.__suppress_context__
    # What was on its way arrives; the rest is never sent.
    time.sleep(0.2)
    assert len(server.asked) < 50


def test_an_unknown_model_stops_the_run(build: Build, server: Server) -> None:
    server.plans["q"] = [error(404, f"The model `{MODEL}` does not exist.")]
    with pytest.raises(UserError, match=f"(?s)does not know the model.*{MODEL}"):
        build().run([choose("fine"), choose("q")])


@pytest.mark.slow
def test_an_interrupted_run_stops_asking(build: Build, server: Server) -> None:
    server.plans["q4"] = [interrupt]
    server.plans["q"] = [slow]
    engine = build(concurrency=1)
    with pytest.raises(KeyboardInterrupt):
        engine.run([choose(f"q{number}") for number in range(100)])
    time.sleep(0.2)
    asked = len(server.asked)
    assert 5 <= asked < 50
    assert isinstance(engine.run([choose("fine")])[0], ChoiceResult)
    assert len(server.asked) == asked + 1
