"""An OpenAI-compatible server that does everything a server can do wrong."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from ual_ray.config import EndpointConfig, EngineConfig
from ual_ray.engines.openai_engine import OpenAIEngine
from ual_ray.engines.requests import Choice, Turns

KEY = "sk-very-secret"
KEY_NAME = "UAL_TEST_KEY"
MODEL = "served-model"
PRIVATE = "the text of a private prompt"

Action = Callable[["Handler"], None]
Build = Callable[..., OpenAIEngine]


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


def config_of(server: Server, max_actors: int = 1, **options: Any) -> EngineConfig:
    given: dict[str, Any] = {"url": server.url, "api_key_env": KEY_NAME, "max_retries": 1, "timeout_seconds": 20} | options
    return EngineConfig(kind="openai", max_actors=max_actors, endpoint=EndpointConfig(**given))


def ask(text: str) -> Turns:
    return (("system", "Be brief."), ("user", text))


def choose(text: str) -> Choice:
    return Choice(ask(text), ("A", "B", "C"))


def our_lines(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(record.getMessage() for record in caplog.records)
