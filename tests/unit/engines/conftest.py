"""A server that engines ask, and engines that ask it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import cache
from typing import Any
from unittest import mock

import httpcore2
import pytest
from openai_server import KEY, KEY_NAME, MODEL, Build, Server, config_of

from ual_ray.engines import EngineSpec, make_engine
from ual_ray.engines import openai_engine as endpoint
from ual_ray.engines.openai_engine import OpenAIEngine


@pytest.fixture(scope="session", autouse=True)
def one_tls_context() -> Iterator[None]:
    """Make one TLS context for all clients, as each takes long and the servers here speak plain HTTP."""
    with mock.patch("httpcore2.default_ssl_context", cache(httpcore2.default_ssl_context)):
        yield


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
