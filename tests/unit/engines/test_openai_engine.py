"""The engine that asks a server, against a server that does everything a server can do wrong."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import pickle
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from ual_ray.config import EndpointConfig, EngineConfig
from ual_ray.engines import EngineSpec, make_engine
from ual_ray.engines import openai_engine as endpoint
from ual_ray.engines.openai_engine import OpenAIEngine, check_endpoint
from ual_ray.engines.requests import (
    Choice,
    ChoiceResult,
    Completion,
    CompletionResult,
    Failure,
    Likelihood,
    Overlong,
    Result,
    Turns,
    overlong,
)
from ual_ray.errors import UserError

KEY = "sk-very-secret"
KEY_NAME = "UAL_TEST_KEY"
MODEL = "served-model"
PRIVATE = "the text of a private prompt"

Action = Callable[["Handler"], None]


# --- the server ------------------------------------------------------------------------------------------------------


class Server(ThreadingHTTPServer):
    """Does, for a prompt that holds a text, what is planned for it, the last of it for ever; answers all others well."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.plans: dict[str, list[Action]] = {}
        self.models: Action = reply({"object": "list", "data": [{"id": MODEL}, {"id": "other"}]})
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()
        self.over = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def count(self, text: str) -> int:
        return sum(text in prompt_of(body) for body in self.asked)

    def next_action(self, body: dict[str, Any]) -> Action:
        for text, plan in self.plans.items():
            if text in prompt_of(body):
                return plan.pop(0) if len(plan) > 1 else plan[0]
        return well

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up in mid-reply are part of the tests."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server
    body: dict[str, Any]

    def do_GET(self) -> None:
        self.server.headers.append({name.lower(): value for name, value in self.headers.items()})
        self.server.models(self)

    def do_POST(self) -> None:
        self.body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            server.asked.append(self.body)
            server.headers.append({name.lower(): value for name, value in self.headers.items()})
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
            action = server.next_action(self.body)
        try:
            action(self)
        finally:
            with server.lock:
                server.at_once -= 1

    def log_message(self, *_: Any) -> None:
        """Stay silent."""


def prompt_of(body: dict[str, Any]) -> str:
    return str(body["messages"][-1]["content"])


def reply(body: Any, status: int = 200, **headers: str) -> Action:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()

    def act(handler: Handler) -> None:
        handler.send_response(status)
        for name, value in ({"Content-Type": "application/json", "Content-Length": str(len(content))} | headers).items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(content)

    return act


def completion(texts: list[str | None], alternatives: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    listed = [{"token": token, "logprob": value, "bytes": None} for token, value in (alternatives or {}).items()]
    logprobs = {"content": [{"token": "?", "logprob": 0.0, "top_logprobs": listed}]} if listed else None
    return {
        "object": "chat.completion",
        "choices": [
            {"index": index, "message": {"role": "assistant", "content": text}, "logprobs": logprobs, "finish_reason": "stop"}
            for index, text in enumerate(texts)
        ],
        "usage": {"prompt_tokens": 7, "completion_tokens": 2 * len(texts), "total_tokens": 7 + 2 * len(texts)},
    } | more


def well(handler: Handler) -> None:
    body = handler.body
    alternatives = {"A": math.log(0.5), " A": math.log(0.25), "B": math.log(0.125)} if body.get("logprobs") else None
    texts: list[str | None] = [f"{prompt_of(body)} {body.get('seed')} {at}" for at in range(body.get("n", 1))]
    reply(completion(texts, alternatives))(handler)


def ignoring_n(handler: Handler) -> None:
    reply(completion([f"seed {handler.body.get('seed')}"]))(handler)


def drop(handler: Handler) -> None:
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RDWR)


def cut_short(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')
    drop(handler)


def hang(handler: Handler) -> None:
    handler.server.over.wait(600)
    handler.close_connection = True


def trickle(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    while not handler.server.over.wait(0.05):
        handler.wfile.write(b" ")
        handler.wfile.flush()


def slow(handler: Handler) -> None:
    time.sleep(0.05)
    well(handler)


def interrupt(handler: Handler) -> None:
    os.kill(os.getpid(), signal.SIGINT)
    slow(handler)


def error(status: int, message: str = PRIVATE + KEY, **more: Any) -> Action:
    return reply({"error": {"message": message, "type": "SomeError", "param": None, "code": status} | more}, status)


@pytest.fixture
def server() -> Iterator[Server]:
    serving = Server()
    thread = threading.Thread(target=lambda: serving.serve_forever(poll_interval=0.01))
    thread.start()
    yield serving
    serving.over.set()
    serving.shutdown()
    serving.server_close()
    thread.join()


Build = Callable[..., OpenAIEngine]


@pytest.fixture
def build(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Build]:
    monkeypatch.setenv(KEY_NAME, KEY)
    monkeypatch.setattr(endpoint, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    built: list[OpenAIEngine] = []

    def make(max_actors: int = 1, **options: Any) -> OpenAIEngine:
        engine = make_engine(EngineSpec(config_of(server, max_actors, **options), MODEL))
        assert isinstance(engine, OpenAIEngine)
        built.append(engine)
        return engine

    yield make
    for engine in built:
        engine.close()


def config_of(server: Server, max_actors: int = 1, **options: Any) -> EngineConfig:
    given: dict[str, Any] = {"url": server.url, "api_key_env": KEY_NAME, "max_retries": 1, "timeout_seconds": 20} | options
    return EngineConfig(kind="openai", max_actors=max_actors, endpoint=EndpointConfig(**given))


def patience(reason: str) -> float:
    """Wait a little where waiting is what is tested."""
    return 1 if reason == "timeout" else 20


def ask(text: str) -> Turns:
    return (("system", "Be brief."), ("user", text))


def choose(text: str) -> Choice:
    return Choice(ask(text), ("A", "B", "C"))


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


@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_trouble_that_passes_costs_nothing(trouble: str, build: Build, server: Server) -> None:
    action, reason = TROUBLES[trouble]
    server.plans["hard"] = [action, well]
    results = build(timeout_seconds=patience(reason)).run([choose("easy"), choose("hard"), choose("easy too")])
    assert len({result.log_probabilities for result in results if isinstance(result, ChoiceResult)}) == 1
    assert [type(result) for result in results] == [ChoiceResult] * 3
    assert server.count("hard") == 2


@pytest.mark.parametrize("trouble", TROUBLES)
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


def our_lines(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(record.getMessage() for record in caplog.records)


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
    with pytest.raises(UserError, match=f"(?s){KEY_NAME} is refused.*status {status}") as caught:
        build(concurrency=4).run([choose(f"q{number}") for number in range(50)])
    assert KEY not in str(caught.value) and caught.value.__suppress_context__
    # What was on its way arrives; the rest is never sent.
    time.sleep(0.2)
    assert len(server.asked) < 50


def test_an_unknown_model_stops_the_run(build: Build, server: Server) -> None:
    server.plans["q"] = [error(404, f"The model `{MODEL}` does not exist.")]
    with pytest.raises(UserError, match=f"(?s)does not know the model.*{MODEL}"):
        build().run([choose("fine"), choose("q")])


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


# --- secrets ---------------------------------------------------------------------------------------------------------


def test_the_key_is_in_one_header_and_nowhere_else(build: Build, server: Server, caplog: pytest.LogCaptureFixture) -> None:
    server.plans["bad"] = [error(500), well]
    with caplog.at_level(logging.DEBUG):
        engine = build(url=server.url.replace("//", "//user:pass-word@"))
        engine = build()
        engine.run([choose("bad"), choose("good"), Completion(ask(PRIVATE), 5)])
    assert server.headers and all(headers["authorization"] == f"Bearer {KEY}" for headers in server.headers)
    others = [headers | {"authorization": ""} for headers in server.headers]
    assert KEY not in json.dumps([others, server.asked])
    assert KEY not in repr(engine) + str(vars(engine)) and KEY not in our_lines(caplog)
    with pytest.raises(TypeError):
        pickle.dumps(engine)


def test_an_address_with_a_password_is_not_logged(build: Build, server: Server, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        build(url=server.url.replace("//", "//user:pass-word@")).run([choose("q")])
    assert server.asked and "pass-word" not in our_lines(caplog)


def test_without_a_key_a_placeholder_is_sent(build: Build, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_NAME)
    build().run([choose("q")])
    assert server.headers[0]["authorization"] == "Bearer EMPTY"


def test_a_key_is_stripped_and_checked(build: Build, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_NAME, f" {KEY}\n")
    build().run([choose("q")])
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"
    monkeypatch.setenv(KEY_NAME, f"{KEY}\nü")
    with pytest.raises(UserError, match=KEY_NAME) as caught:
        build()
    assert KEY not in str(caught.value)


# --- the rate --------------------------------------------------------------------------------------------------------


class Clock:
    """Time that passes by sleeping alone."""

    def __init__(self) -> None:
        self.now = 100.0

    async def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds


def test_turns_come_at_a_steady_rate_and_none_is_saved_up() -> None:
    clock = Clock()
    pace = endpoint.Pace(120, lambda: clock.now, clock.sleep)

    async def take(count: int) -> list[float]:
        times = []
        for _ in range(count):
            await pace.turn()
            times.append(clock.now)
        return times

    assert asyncio.run(take(3)) == [100.0, 100.5, 101.0]
    clock.now = 200.0
    assert asyncio.run(take(3)) == [200.0, 200.5, 201.0]


def test_turns_asked_for_at_once_are_all_different() -> None:
    clock = Clock()
    waits: list[float] = []

    async def note(seconds: float) -> None:
        waits.append(seconds)

    async def take() -> None:
        pace = endpoint.Pace(60, lambda: clock.now, note)
        await asyncio.gather(*(pace.turn() for _ in range(4)))

    asyncio.run(take())
    assert waits == [1.0, 2.0, 3.0]


def test_no_bound_is_no_wait() -> None:
    async def fail(_: float) -> None:
        raise AssertionError("slept")

    async def take() -> None:
        pace = endpoint.Pace(None, sleep=fail)
        await pace.turn()
        await pace.turn()

    asyncio.run(take())


def test_an_actor_takes_its_share_of_the_rate_and_retries_wait_as_well(build: Build, server: Server) -> None:
    server.plans["q0"] = [reply(b"{"), well]
    started = time.monotonic()
    build(max_actors=4, requests_per_minute=2400).run([choose(f"q{number}") for number in range(8)])
    assert len(server.asked) == 9
    # 2400 / 4 a minute is one in 0.1 s.
    assert 0.7 <= time.monotonic() - started < 100


# --- before a run ----------------------------------------------------------------------------------------------------


def test_a_server_that_lists_the_model_passes(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_NAME, KEY)
    check_endpoint(config_of(server), MODEL)
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"
    server.models = reply({"data": [{"id": f"{MODEL}:latest"}]})
    check_endpoint(config_of(server), MODEL)


def test_a_server_without_the_model_is_refused_with_what_it_serves(server: Server) -> None:
    server.models = reply({"data": [{"id": f"m{number}"} for number in range(12)]})
    with pytest.raises(UserError, match=f"(?s)'{MODEL}'.*m0, m1, .*m9, and 2 more") as caught:
        check_endpoint(config_of(server), MODEL)
    assert "m10" not in str(caught.value)


@pytest.mark.parametrize(
    "models",
    [error(404), error(405), error(501), error(429), reply(b"<html>"), reply([]), reply({"data": 3}), reply({"data": ["x"]})],
)
def test_a_server_that_lists_nothing_passes(models: Action, server: Server) -> None:
    server.models = models
    check_endpoint(config_of(server), MODEL)


@pytest.mark.parametrize("status", [401, 403])
def test_a_key_is_refused_before_the_run(status: int, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.models = error(status, KEY)
    monkeypatch.setenv(KEY_NAME, KEY)
    with pytest.raises(UserError, match=f"{KEY_NAME} is refused") as caught:
        check_endpoint(config_of(server), MODEL)
    assert KEY not in str(caught.value)
    monkeypatch.delenv(KEY_NAME)
    with pytest.raises(UserError, match=f"{KEY_NAME} is not set"):
        check_endpoint(config_of(server), MODEL)


@pytest.mark.parametrize("models", [drop, hang, trickle, error(502)])
def test_a_server_that_does_not_answer_is_refused_in_time(
    models: Action, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "PREFLIGHT_SECONDS", 1.0)
    server.models = models
    started = time.monotonic()
    with pytest.raises(UserError, match="engine.endpoint.url cannot be reached"):
        check_endpoint(config_of(server), MODEL)
    assert time.monotonic() - started < 100
    assert len(server.headers) == 1


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:9/v1", "http://user:pass-word@127.0.0.1:9/v1", "127.0.0.1", "http://[x", "x://"]
)
def test_an_address_where_nothing_is_is_refused(url: str) -> None:
    config = EngineConfig(kind="openai", endpoint=EndpointConfig(url=url))
    with pytest.raises(UserError, match="(?s)engine.endpoint.url cannot be reached.*expected: .*/v1") as caught:
        check_endpoint(config, MODEL)
    assert "pass-word" not in str(caught.value)
    assert not any(thread.name == "endpoint" for thread in threading.enumerate())
