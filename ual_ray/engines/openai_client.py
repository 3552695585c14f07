"""The HTTP side of the OpenAI engine: client, rate limit, timeout per request, an event loop in a thread, and errors.

A reason of a failure quotes the server's own words without the key and without what they repeat of the prompt.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import re
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import httpx2
import openai

from ual_ray.config import EndpointConfig
from ual_ray.config.redact import redact_uri
from ual_ray.engines.openai_dialect import TOO_LONG, server_words
from ual_ray.engines.openai_replies import MalformedReply
from ual_ray.engines.requests import Choice, Completion, Failure, overlong
from ual_ray.errors import UserError

NO_KEY = "EMPTY"
BYTES_PER_TOKEN = 4

Answer = TypeVar("Answer")
_TOO_LONG_STATUS = frozenset({400, 413, 422})
_LENGTH_LIMIT = re.compile(
    r"(?:max_model_len|maximum (?:context|model) length|context size)(?: is| of|=)? ?\(?(\d{1,15})", re.IGNORECASE
)
_TOTAL_TOKENS = re.compile(r"requested (\d{1,15}) tokens", re.IGNORECASE)
# 'contains at least 513 input tokens' is left out on purpose: vLLM stops counting there.
_PROMPT_TOKENS = re.compile(
    r"(?:contains|has|resulted in) (\d{1,15}) (?:input )?tokens|input length \(?(\d{1,15})|request \((\d{1,15}) tokens"
    r"|length (\d{1,15})\)",
    re.IGNORECASE,
)
_IDENTIFIER = re.compile(r"[A-Za-z_][\w.-]{0,39}")


def connect(endpoint: EndpointConfig, pace: Pace, tokens: Pace | None = None) -> openai.AsyncOpenAI:
    """Make a client that keeps to a pace of requests and one of tokens.

    Raises UserError for a key that is not valid in an HTTP header.
    """
    key = os.environ.get(endpoint.api_key_env, "").strip() or NO_KEY
    if not (key.isascii() and key.isprintable()):
        raise UserError(
            f"the environment variable {endpoint.api_key_env} is not a valid key",
            expected="one line of printable ASCII",
            fix=f"export {endpoint.api_key_env}=... again",
        )
    # httpx logs the URL of every request, which may contain a password.
    for name in ("httpx", "httpx2"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return openai.AsyncOpenAI(
        api_key=key,
        base_url=endpoint.url,
        timeout=endpoint.timeout_seconds,
        max_retries=endpoint.max_retries,
        default_headers=endpoint.extra_headers,
        http_client=_HttpClient(pace, tokens or Pace(None), endpoint),
    )


class _HttpClient(openai.DefaultAsyncHttpxClient):
    """Sends every attempt, retries of the client included, at the pace and with a timeout for the whole of it.

    httpx limits only the time between two bytes: a server that sends blanks while it computes would never time out.
    """

    def __init__(self, pace: Pace, tokens: Pace, endpoint: EndpointConfig) -> None:
        super().__init__(limits=httpx2.Limits(max_connections=endpoint.concurrency), timeout=endpoint.timeout_seconds)
        self._pace, self._tokens = pace, tokens
        self._seconds = endpoint.timeout_seconds

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        await self._pace.turn()
        if self._tokens.limited:
            await self._tokens.turn(estimated_tokens(request.content))
        try:
            async with asyncio.timeout(self._seconds):
                return await super().send(request, **options)
        except TimeoutError as error:
            raise httpx2.ReadTimeout("no whole reply in time", request=request) from error


class Pace:
    """Rate limit without bursts; `per_minute` None = unlimited."""

    def __init__(
        self,
        per_minute: float | None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Set the rate; clock (seconds) and sleep are for tests."""
        self._interval = 60 / per_minute if per_minute else 0.0
        self._clock = clock
        self._sleep = sleep
        self._next = -math.inf

    @property
    def limited(self) -> bool:
        """Whether there is a limit."""
        return self._interval > 0

    async def turn(self, weight: float = 1.0) -> None:
        """Wait until the next request may be sent; the one after it waits for `weight` units."""
        if not self._interval:
            return
        now = self._clock()
        slot = max(now, self._next)
        self._next = slot + self._interval * weight
        if slot > now:
            await self._sleep(slot - now)


def estimated_tokens(content: bytes) -> float:
    """Estimate what a request counts: a token per four bytes of its messages, and the tokens it asks for."""
    try:
        body = json.loads(content)
        asked = body.get("max_completion_tokens") or body.get("max_tokens") or 0
        return len(json.dumps(body["messages"])) / BYTES_PER_TOKEN + asked * body.get("n", 1)
    except (ValueError, KeyError, TypeError, AttributeError):
        return len(content) / BYTES_PER_TOKEN


class BackgroundLoop:
    """An event loop in its own thread, for callers that may have a running loop and for several callers at a time."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="endpoint", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, Answer]) -> Answer:
        """Run a coroutine and return its result; an interrupt cancels it."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        """Cancel all tasks and end the thread."""
        self.run(_cancel_others())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


def read_overlong(error: openai.APIStatusError, request: Choice | Completion) -> Failure | None:
    """Return an overlong failure if that is what the server reports; its numbers may be unknown (None)."""
    words = server_words(error.body)
    text = f"{error.message} {words}"  # the message lacks the words where the error is a text
    if error.status_code not in _TOO_LONG_STATUS or not TOO_LONG.search(f"{text} {error.code} {error.type}"):
        return None
    limit, total, prompt = (_number(pattern, text) for pattern in (_LENGTH_LIMIT, _TOTAL_TOKENS, _PROMPT_TOKENS))
    numbers = sorted(map(int, re.findall(r"(?<!\d)\d{1,15}(?!\d)", words))) if "token" in words.lower() else []
    if limit is None and len(numbers) == 2:  # "210000 tokens > 200000 maximum"
        limit, prompt = numbers
    if total is None and prompt is not None:
        total = prompt + (request.max_tokens if isinstance(request, Completion) else 1) + request.thinking
    return overlong(total, limit)


def _number(pattern: re.Pattern[str], text: str) -> int | None:
    found = pattern.search(text)
    return next((int(group) for group in found.groups() if group), None) if found else None


def status_reason(error: openai.APIStatusError, words: str = "") -> str:
    """Name a status that is not a success, with the server's error codes, which name the parameter at fault, and its words."""
    kind = "rate limit" if error.status_code == 429 else "server error" if error.status_code >= 500 else "refused by the server"
    codes = [text for text in (error.code, error.type, error.param) if isinstance(text, str) and _IDENTIFIER.fullmatch(text)]
    named = " ".join([kind, str(error.status_code), *dict.fromkeys(codes)])
    return f"{named}: {words}" if words else named


def error_reason(error: Exception, seconds: float) -> str:
    """Name an exception by its kind; `seconds` is the time limit that a timeout exceeded."""
    if isinstance(error, openai.APITimeoutError | TimeoutError):
        return f"timeout, no reply within {seconds:g} s"
    if isinstance(error, openai.APIConnectionError):
        return f"connection lost or refused ({type(error.__cause__).__name__})"
    if isinstance(error, MalformedReply):
        return f"malformed reply, {error}"
    if isinstance(error, UnicodeError):
        return "the prompt contains characters that cannot be encoded in a request"
    return f"unexpected {type(error).__name__}"


def bad_key(endpoint: EndpointConfig, status: int, words: str) -> UserError:
    """Make the error for a key that is missing or refused, or may not do what is asked, with the server's words."""
    name = endpoint.api_key_env
    state = "is refused" if os.environ.get(name) else "is not set"
    return UserError(
        f"the server at engine.endpoint.url requires a key: the environment variable {name} {state}",
        got=f"{redact_uri(endpoint.url)} replies with status {status}" + (f": {words}" if words else ""),
        fix=f"set {name} to a valid key where the actors run, or name another variable in engine.endpoint.api_key_env",
    )


def unknown_model(endpoint: EndpointConfig, model: str, words: str = "") -> UserError:
    """Make the error for status 404, with the server's words."""
    return UserError(
        "the server does not know the model, or engine.endpoint.url is not its base address",
        got=f"model '{model}' at {redact_uri(endpoint.url)}" + (f": {words}" if words else ""),
        expected="a name that the server lists under engine.endpoint.url + '/models'; the address mostly ends in /v1",
    )


def unreachable(endpoint: EndpointConfig, reason: str) -> UserError:
    """Make the error for a server that does not answer."""
    return UserError(
        "engine.endpoint.url cannot be reached",
        got=f"{redact_uri(endpoint.url)}: {reason}",
        expected="the base address of a running OpenAI-compatible server, such as http://127.0.0.1:8000/v1",
        fix="start the server, or correct the address",
    )
