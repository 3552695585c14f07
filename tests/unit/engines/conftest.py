"""A server that engines ask, engines that ask it, and engines around a stand-in for vLLM."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from functools import cache
from types import SimpleNamespace
from typing import Any
from unittest import mock

import httpcore2
import pytest
from any_server import AnyServer, Body, Reply, Serve
from engine_requests import Tokenizers, spec_of
from openai_server import KEY, KEY_NAME, MODEL, Build, Server, config_of
from pool_actors import ME
from vllm_stand_in import FINAL_ONLY, BuildVLLM, EngineDeadError, StandIn

from ual_ray.config import EndpointConfig, EngineConfig
from ual_ray.engines import EngineSpec, make_engine, pool
from ual_ray.engines import openai_engine as endpoint
from ual_ray.engines import vllm_engine as in_process
from ual_ray.engines.monitor import Limits, Monitor
from ual_ray.engines.openai_engine import OpenAIEngine
from ual_ray.engines.vllm_engine import VLLMEngine
from ual_ray.models.chat import ChatRenderer


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


@pytest.fixture
def build_vllm(monkeypatch: pytest.MonkeyPatch, chat_tokenizer: Tokenizers) -> BuildVLLM:
    """Make a VLLMEngine on a real tokenizer, with a stand-in for the package vllm."""

    def make(
        style: str = "chatml",
        cheap: bool = True,
        lora: str | None = None,
        by_token: Callable[[int], float] | None = None,
        **options: Any,
    ) -> tuple[VLLMEngine, StandIn, ChatRenderer]:
        tokenizer = chat_tokenizer(style)
        renderer = ChatRenderer(tokenizer)
        made: list[StandIn] = []

        def language_model(**arguments: Any) -> StandIn:
            made.append(StandIn(tokenizer, cheap, by_token, **arguments))
            return made[0]

        vllm = SimpleNamespace(LLM=language_model, SamplingParams=SimpleNamespace)
        monkeypatch.setitem(sys.modules, "vllm", vllm)
        monkeypatch.setitem(sys.modules, "vllm.lora.request", SimpleNamespace(LoRARequest=lambda *given: given))
        monkeypatch.setitem(sys.modules, "vllm.v1.engine.exceptions", SimpleNamespace(EngineDeadError=EngineDeadError))
        monkeypatch.setitem(sys.modules, "vllm.inputs", SimpleNamespace(tokens_input=lambda ids: {"prompt_token_ids": ids}))
        kinds = SimpleNamespace(RequestOutputKind=SimpleNamespace(FINAL_ONLY=FINAL_ONLY))
        monkeypatch.setitem(sys.modules, "vllm.sampling_params", kinds)
        monkeypatch.setattr(in_process.os, "environ", {})
        monkeypatch.setattr(in_process, "resolve_model", lambda name: f"/models/{name}")
        monkeypatch.setattr(in_process, "load_renderer", lambda *_: renderer)
        engine = make_engine(spec_of("tiny", lora, **options))
        assert isinstance(engine, VLLMEngine)
        return engine, made[0], renderer

    return make


@pytest.fixture
def monitor(monkeypatch: pytest.MonkeyPatch) -> Monitor:
    """Make a monitor, and do without Ray and without ending the process."""

    def leave(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(pool.ray, "get", lambda value, timeout=None: value)
    monkeypatch.setattr(pool.ray, "get_runtime_context", lambda: SimpleNamespace(current_actor=ME))
    monkeypatch.setattr(pool.os, "_exit", leave)
    monkeypatch.setattr(pool.logging, "shutdown", lambda: None)
    return Monitor(Limits(failed=0.5))


@pytest.fixture
def serve() -> Iterator[Serve]:
    made: list[tuple[OpenAIEngine, AnyServer]] = []

    def start(act: Callable[[Body], Reply], **options: Any) -> tuple[OpenAIEngine, AnyServer]:
        server = AnyServer(act)
        threading.Thread(target=lambda: server.serve_forever(poll_interval=0.01), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        endpoint = EndpointConfig(url=url, **({"max_retries": 1, "concurrency": 2} | options))
        made.append((OpenAIEngine(EngineSpec(EngineConfig(kind="openai", endpoint=endpoint), "m")), server))
        return made[-1]

    yield start
    for engine, server in made:
        engine.close()
        server.shutdown()
        server.server_close()
