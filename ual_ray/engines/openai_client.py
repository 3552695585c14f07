"""The HTTP side of the OpenAI engine: client, rate limit, timeout per request, and an event loop in a thread."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import httpx2
import openai

from ual_ray.config import EndpointConfig
from ual_ray.errors import UserError

NO_KEY = "EMPTY"
BYTES_PER_TOKEN = 4

Answer = TypeVar("Answer")


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
        """Start the thread."""
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
