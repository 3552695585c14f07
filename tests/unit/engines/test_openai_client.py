"""The engine that asks a server: its key, its rate, and the check before a run."""

from __future__ import annotations

import asyncio
import json
import logging
import pickle
import threading
import time

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
    config_of,
    drop,
    error,
    hang,
    our_lines,
    reply,
    trickle,
    well,
)

from ual_ray.config import EndpointConfig, EngineConfig
from ual_ray.engines import openai_client as client
from ual_ray.engines import openai_engine as endpoint
from ual_ray.engines.openai_engine import check_endpoint
from ual_ray.engines.requests import Completion
from ual_ray.errors import UserError

# --- secrets ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
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


@pytest.mark.slow
def test_an_actor_takes_its_share_of_the_rate_and_retries_wait_as_well(build: Build, server: Server) -> None:
    server.plans["q0"] = [reply(b"{"), well]
    started = time.monotonic()
    build(max_actors=4, requests_per_minute=2400).run([choose(f"q{number}") for number in range(8)])
    assert len(server.asked) == 9
    # 2400 / 4 a minute is one in 0.1 s.
    assert 0.7 <= time.monotonic() - started < 100


def test_tokens_that_are_sent_and_asked_for_keep_to_their_rate(
    build: Build, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An actor's share of the limit, over requests of different sizes, and a retry counts again."""
    clock = Clock()
    monkeypatch.setattr(endpoint, "Pace", lambda rate: client.Pace(rate, lambda: clock.now, clock.sleep))
    server.plans["q1"] = [reply(b"{"), well]
    sizes = (300, 20, 7)
    # 10 tokens a second for each of the four.
    build(max_actors=4, tokens_per_minute=2400, concurrency=1).run(
        [Completion(ask(f"q{number}"), size, n=2, temperature=1.0) for number, size in enumerate(sizes)]
    )
    assert [body["max_tokens"] * body["n"] for body in server.asked] == [600, 40, 14, 40]
    sent = [len(json.dumps(body["messages"])) / 4 + body["max_tokens"] * body["n"] for body in server.asked]
    # The last request waits for all before it, and nobody for the last.
    assert clock.now == pytest.approx(100.0 + sum(sent[:-1]) / 10)


MESSAGES = [{"role": "user", "content": "x" * 100}]


@pytest.mark.parametrize(
    ("body", "asked"),
    [
        ({"max_tokens": 50}, 50),
        ({"max_completion_tokens": 50, "n": 3}, 150),
        ({"max_tokens": 0}, 0),
        ({}, 0),
    ],
)
def test_a_request_counts_its_text_and_what_it_asks_for(body: dict[str, int], asked: int) -> None:
    content = json.dumps({"messages": MESSAGES, "model": MODEL} | body).encode()
    assert client.estimated_tokens(content) == len(json.dumps(MESSAGES)) / 4 + asked


@pytest.mark.parametrize("content", [b"", b"no json", b"[1, 2]", b'{"prompt": "text"}', b'{"messages": [], "max_tokens": "x"}'])
def test_a_request_of_another_form_counts_by_its_size(content: bytes) -> None:
    assert client.estimated_tokens(content) == len(content) / 4


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
    server.models = error(status, f"{KEY} may not use it")
    monkeypatch.setenv(KEY_NAME, KEY)
    with pytest.raises(UserError, match=rf"(?s){KEY_NAME} is refused.*status {status}: \*\*\* may not use it") as caught:
        check_endpoint(config_of(server), MODEL)
    assert KEY not in str(caught.value)
    monkeypatch.delenv(KEY_NAME)
    with pytest.raises(UserError, match=f"{KEY_NAME} is not set"):
        check_endpoint(config_of(server), MODEL)


@pytest.mark.parametrize("models", [drop, hang, trickle, error(502)])
@pytest.mark.slow
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


@pytest.mark.parametrize("status", [500, 503])
def test_a_server_that_fails_is_refused_in_its_own_words(status: int, server: Server) -> None:
    server.models = error(status, "Loading model")
    with pytest.raises(UserError, match=f"(?s)cannot be reached.*status {status}: Loading model"):
        check_endpoint(config_of(server), MODEL)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:9/v1", "http://user:pass-word@127.0.0.1:9/v1", "127.0.0.1", "http://[x", "x://"]
)
def test_an_address_where_nothing_is_is_refused(url: str) -> None:
    config = EngineConfig(kind="openai", endpoint=EndpointConfig(url=url))
    with pytest.raises(UserError, match="(?s)engine.endpoint.url cannot be reached.*expected: .*/v1") as caught:
        check_endpoint(config, MODEL)
    assert "pass-word" not in str(caught.value)
    assert not any(thread.name == "endpoint" for thread in threading.enumerate())
