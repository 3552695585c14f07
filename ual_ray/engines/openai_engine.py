"""Answers from an OpenAI-compatible server: vLLM's own, another local one, or a provider's.

The server renders prompts with its own chat template and gives log-probabilities of the first token's alternatives alone.
So choices have to be one-token texts, and the likelihood of a given text is not available.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import openai

from ual_ray.config import EndpointConfig, EngineConfig
from ual_ray.config.redact import redact_uri
from ual_ray.engines.contract import EngineSpec
from ual_ray.engines.openai_client import NO_KEY, BackgroundLoop, Pace, connect
from ual_ray.engines.openai_errors import bad_key, error_reason, read_overlong, status_reason, unknown_model, unreachable
from ual_ray.engines.openai_replies import (
    Body,
    MalformedReply,
    Reply,
    parse_body,
    read_choices,
    read_replies,
    used_tokens,
)
from ual_ray.engines.requests import (
    Choice,
    ChoiceResult,
    Completion,
    CompletionResult,
    Failure,
    Likelihood,
    Request,
    Result,
    Turns,
    chat_body,
)
from ual_ray.errors import UserError

logger = logging.getLogger(__name__)

# The most that OpenAI's API and a default `vllm serve` give.
TOP_LOGPROBS = 20
PREFLIGHT_SECONDS = 5.0
NAMED_MODELS = 10
LOGGED_FAILURES = 3
REASON_CHARACTERS = 200
# Seconds between attempts after a malformed reply, as between those of the client.
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 8.0

Read = TypeVar("Read")


class OpenAIEngine:
    """Sends up to `endpoint.concurrency` requests at a time to a server.

    A request that fails after all retries becomes a Failure, one that is too long an Overlong. The key stays in the client:
    no error, result or log line contains it or a prompt's text.
    """

    # The server renders with a template of its own, which it does not disclose.
    template_hash = "endpoint"

    def __init__(self, spec: EngineSpec) -> None:
        """Read the key from the environment; nothing is sent yet. Raises UserError for a key that is invalid in a header."""
        self._endpoint = spec.config.endpoint
        self._model = spec.model
        # Actors do not know of one another and the pool may have any size up to its maximum: with an equal share each, the
        # limit holds over all of them.
        per_minute = self._endpoint.requests_per_minute
        self._client = connect(self._endpoint, Pace(per_minute and per_minute / spec.config.max_actors))
        self._free = asyncio.Semaphore(self._endpoint.concurrency)
        self._loop = BackgroundLoop()

    @staticmethod
    def check(config: EngineConfig, model: str) -> None:
        """Raise UserError when the server cannot be used; see check_endpoint."""
        check_endpoint(config, model)

    def __enter__(self) -> OpenAIEngine:
        """Return the engine; it is closed at the end of the `with` block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the engine."""
        self.close()

    def close(self) -> None:
        """Close the connections and end the engine's thread; the engine cannot be used after that."""
        self._loop.run(self._client.close())
        self._loop.close()

    def run(self, requests: Sequence[Request]) -> list[Result]:
        """Answer all requests, in order. Raises UserError for a key the server refuses and a model it does not know."""
        results = self._loop.run(self._answer_all(requests))
        _log_failures(results)
        return results

    async def _answer_all(self, requests: Sequence[Request]) -> list[Result]:
        tasks = [asyncio.create_task(self._answer(request)) for request in requests]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            # After an error that stops the run nothing continues in the background.
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _answer(self, request: Request) -> Result:
        if isinstance(request, Likelihood):
            return Failure("engine: a server does not give the likelihood of a text")
        if isinstance(request, Choice) and not self._endpoint.logprobs:
            return Failure("engine: the server gives no log-probabilities (engine.endpoint.logprobs is false)")
        tally = _Tally()
        try:
            async with self._free:
                return await (self._choose(request, tally) if isinstance(request, Choice) else self._complete(request, tally))
        except openai.APIStatusError as error:
            if error.status_code in (401, 403):
                raise bad_key(self._endpoint, error.status_code) from None
            if error.status_code == 404:
                raise unknown_model(self._endpoint, self._model) from None
            return read_overlong(error, request) or self._failure(status_reason(error), tally)
        except Exception as error:
            return self._failure(error_reason(error, self._endpoint.timeout_seconds), tally)

    async def _choose(self, request: Choice, tally: _Tally) -> ChoiceResult:
        """Ask for one token: a choice that is not among its 20 likeliest is less likely than all of these, and gets -inf."""
        question = self._question(request.prompt, max_tokens=1) | {"logprobs": True, "top_logprobs": TOP_LOGPROBS}
        values = await self._ask(question, lambda body: read_choices(body, request.choices), tally)
        return ChoiceResult(values, tally.prompt_tokens, tally.generated_tokens, tally.calls)

    async def _complete(self, request: Completion, tally: _Tally) -> CompletionResult:
        """Gather `n` replies; a server that gives fewer per call is asked again, at most `n` times."""
        replies: list[Reply] = []
        turn = 0
        while missing := max(0, request.n - len(replies)):
            question = self._question(request.prompt, request.max_tokens, request.temperature)
            if missing > 1:
                question["n"] = missing
            if request.temperature > 0:
                question["seed"] = _seed(request.seed, turn)
            if request.confidence and self._endpoint.logprobs:
                question["logprobs"] = True
            replies += await self._ask(question, read_replies, tally)
            turn += 1
        first, kept = replies[0], replies[: request.n]
        confidence = (first.log_probability, first.tokens) if request.confidence else (None, None)
        texts, cut = (tuple(part) for part in zip(*((reply.text, reply.cut) for reply in kept), strict=True))
        return CompletionResult(
            texts, tally.prompt_tokens, tally.generated_tokens, tally.calls, *confidence, cut if any(cut) else ()
        )

    def _question(self, prompt: Turns, max_tokens: int, temperature: float = 0.0) -> Body:
        return {"model": self._model, **chat_body(prompt), "max_tokens": max_tokens, "temperature": temperature}

    async def _ask(self, question: Body, read: Callable[[Body], Read], tally: _Tally) -> Read:
        """Send one question until its reply can be read; the client's retries and these share one budget."""
        client, budget = self._client, self._endpoint.max_retries
        while True:
            reply = await client.chat.completions.with_raw_response.create(**question)
            budget -= reply.retries_taken
            try:
                body = parse_body(reply.http_response.content)
                tally.add(body)
                return read(body)
            except MalformedReply:
                if budget <= 0:
                    raise
            await asyncio.sleep(min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (self._endpoint.max_retries - budget)))
            budget -= 1
            client = client.with_options(max_retries=budget)

    def _failure(self, reason: str, tally: _Tally) -> Failure:
        # The server's error codes are the one part of a reason that it writes itself: they may be anything.
        key = self._client.api_key
        reason = reason.replace(key, "***") if key != NO_KEY else reason
        return Failure(f"engine: {reason}"[:REASON_CHARACTERS], tally.prompt_tokens, tally.generated_tokens, tally.calls)


@dataclass
class _Tally:
    """What one request has cost so far, malformed replies included."""

    prompt_tokens: int = 0
    generated_tokens: int = 0
    calls: int = 0

    def add(self, body: Body) -> None:
        self.calls += 1
        self.prompt_tokens += used_tokens(body, "prompt_tokens")
        self.generated_tokens += used_tokens(body, "completion_tokens")


def _seed(seed: int, turn: int) -> int:
    """Derive the seed of a further call: far from the seeds of other requests, and in every server's range."""
    if turn == 0:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed} {turn}".encode()).digest()[:4], "big") >> 1


def _log_failures(results: Sequence[Result]) -> None:
    """Log the first few failures of a run and the number of each kind; overlong requests are not the engine's fault."""
    reasons = [result.reason for result in results if type(result) is Failure]
    for reason in reasons[:LOGGED_FAILURES]:
        logger.warning("a request got no answer: %s", reason)
    if len(reasons) > LOGGED_FAILURES:
        kinds = ", ".join(f"{count} x {reason}" for reason, count in Counter(reasons).most_common(5))
        logger.warning("%d of %d requests got no answer: %s", len(reasons), len(results), kinds)


def check_endpoint(config: EngineConfig, model: str) -> None:
    """Ask the server for its models, for 5 seconds at most.

    Raises UserError when the server cannot be reached, refuses the key, or lists its models without this one. A server that
    does not list any models passes.
    """
    endpoint = config.endpoint
    loop = BackgroundLoop()
    try:
        served = loop.run(_served_models(endpoint))
    except openai.APIStatusError as error:
        if error.status_code in (401, 403):
            raise bad_key(endpoint, error.status_code) from None
        if error.status_code < 500 or error.status_code == 501:
            return
        raise unreachable(endpoint, f"replies with status {error.status_code}") from None
    except (openai.APIError, TimeoutError) as error:
        raise unreachable(endpoint, error_reason(error, PREFLIGHT_SECONDS)) from None
    finally:
        loop.close()
    # Ollama's and Google's servers list longer names than they ask for.
    if served is not None and not {model, f"{model}:latest", f"models/{model}"} & set(served):
        more = f", and {len(served) - NAMED_MODELS} more" if len(served) > NAMED_MODELS else ""
        raise UserError(
            "the server at engine.endpoint.url does not serve the model",
            got=f"'{model}' at {redact_uri(endpoint.url)}",
            expected=(", ".join(served[:NAMED_MODELS]) or "none is served") + more,
        )


async def _served_models(endpoint: EndpointConfig) -> list[str] | None:
    """Get the names of the server's models; None for a body that is not a list of models."""
    async with connect(endpoint, Pace(None)) as client, asyncio.timeout(PREFLIGHT_SECONDS):
        reply = await client.with_options(max_retries=0, timeout=PREFLIGHT_SECONDS).models.with_raw_response.list()
    try:
        listed = parse_body(reply.http_response.content)["data"]
        return [str(entry["id"]) for entry in listed]
    except (MalformedReply, KeyError, TypeError):
        return None
