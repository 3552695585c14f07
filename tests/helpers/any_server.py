"""A server that answers as a function says, and replies in the form of the OpenAI API."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from ual_ray.engines.openai_engine import OpenAIEngine
from ual_ray.engines.requests import Choice, ChoiceResult, Completion, Result, Turns

Body = dict[str, Any]
Reply = tuple[int, Body]
PROMPT: Turns = (("user", "Rate the uncertainty from 0 to 9."),)
DIGITS = tuple("0123456789")
RATE = Choice(PROMPT, DIGITS)
RATE_THINKING = Choice(PROMPT, DIGITS, thinking=100)
SAMPLE = Completion(PROMPT, 8, 1.0, n=3, choices=DIGITS)
SEVEN = {"7": -0.1, "8": -2.5}


def refusal(words: str, param: str | None = None, code: str | None = None) -> Reply:
    return 400, {"error": {"message": words, "type": "invalid_request_error", "param": param, "code": code}}


def token(text: str, alternatives: dict[str, float] | None = None, raw: list[int] | None = None) -> Body:
    listed = [{"token": name, "logprob": value, "bytes": raw} for name, value in (alternatives or {text: -0.01}).items()]
    return {"token": text, "logprob": -0.01, "bytes": raw, "top_logprobs": listed}


def answer(text: str | None, *tokens: Body, finish: Any = "stop", n: int = 1, **message: Any) -> Reply:
    choice = {
        "message": {"role": "assistant", "content": text, **message},
        "finish_reason": finish,
        "logprobs": {"content": list(tokens)} if tokens else None,
    }
    return 200, {"choices": [choice] * n, "usage": {"prompt_tokens": 10, "completion_tokens": 1}}


class AnyServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, act: Callable[[Body], Reply]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.act, self.asked, self.sent_headers = act, [], []  # type: tuple[Callable[[Body], Reply], list[Body], list[Any]]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: AnyServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(body)
        self.server.sent_headers.append(self.headers)
        status, reply = self.server.act(body)
        content = reply.encode() if isinstance(reply, str) else json.dumps(reply).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Stay silent."""


Serve = Callable[..., tuple[OpenAIEngine, AnyServer]]


def one(engine: OpenAIEngine, request: Choice | Completion) -> Result:
    (result,) = engine.run([request])
    return result


def probabilities(result: Result) -> dict[str, float]:
    assert isinstance(result, ChoiceResult), result
    return {digit: math.exp(value) for digit, value in zip(DIGITS, result.log_probabilities, strict=True) if value > -math.inf}
