"""Answers from an OpenAI-compatible server: vLLM's own, another one nearby, or a provider's.

The server renders prompts with its own chat template and gives log-probabilities of the first token's alternatives alone,
so the choices have to be one-token texts and the likelihood of a given text cannot be asked for.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import openai

from ual_ray.config import EndpointConfig, EngineConfig
from ual_ray.config.redact import redact_uri
from ual_ray.engines.contract import EngineSpec
from ual_ray.engines.openai_client import NO_KEY, BackgroundLoop, Pace, connect
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
    messages_of,
    overlong,
)
from ual_ray.errors import UserError

logger = logging.getLogger(__name__)

# What OpenAI's API and a default `vllm serve` give at most.
TOP_LOGPROBS = 20
PREFLIGHT_SECONDS = 5.0
NAMED_MODELS = 10
LOGGED_FAILURES = 3
REASON_CHARACTERS = 200
# Between our own attempts: as long as the client waits between its own.
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 8.0
TOO_LONG = re.compile(
    r"context_length_exceeded|exceed_context_size|max_model_len|maximum (?:context|model) length|context size", re.IGNORECASE
)
TOO_LONG_STATUS = frozenset({400, 413, 422})
LENGTH_LIMIT = re.compile(
    r"(?:max_model_len|maximum (?:context|model) length|context size)(?: is| of|=)? ?\(?(\d+)", re.IGNORECASE
)
TOTAL_TOKENS = re.compile(r"requested (\d+) tokens", re.IGNORECASE)
# 'contains at least 513 input tokens' is left out on purpose: vLLM stops counting there.
PROMPT_TOKENS = re.compile(
    r"(?:contains|has|resulted in) (\d+) (?:input )?tokens|input length \(?(\d+)|request \((\d+) tokens|length (\d+)\)",
    re.IGNORECASE,
)
IDENTIFIER = re.compile(r"[A-Za-z_][\w.-]{0,39}")

Read = TypeVar("Read")
Body = dict[str, Any]
# A text, and where the server gives them the summed log-probability of its tokens and their number.
Reply = tuple[str, float | None, int | None]


class EndpointEngine:
    """Asks a server; up to `endpoint.concurrency` requests are under way at a time.

    A request that cannot be answered in the end becomes a Failure, one that is too long Overlong. The key stays in the
    client; no error, result or log line holds it, nor any text of a prompt.
    """

    # The server renders with a template of its own, which it does not tell.
    template_hash = "endpoint"

    def __init__(self, spec: EngineSpec) -> None:
        """Take the key from the environment; nothing is sent yet. Raises UserError for a key that no header can carry."""
        self._endpoint = spec.config.endpoint
        self._model = spec.model
        # Actors do not know of one another, and the pool may be at its largest at any time: only with an equal share each
        # does the bound hold over all of them.
        per_minute = self._endpoint.requests_per_minute
        self._client = connect(self._endpoint, Pace(per_minute and per_minute / spec.config.max_actors))
        self._free = asyncio.Semaphore(self._endpoint.concurrency)
        self._loop = BackgroundLoop()

    def __enter__(self) -> EndpointEngine:
        """Use the engine for the length of a `with` block."""
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
            # After an error that stops the run nothing goes on in the background.
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
            return self._refused(error, request, tally)
        except Exception as error:
            return self._failure(_trouble(error, self._endpoint.timeout_seconds), tally)

    async def _choose(self, request: Choice, tally: _Tally) -> ChoiceResult:
        """Read the choices' log-probabilities off the reply's first token.

        A server returns its 20 likeliest tokens: a choice that is not among them is less likely than all of these, and gets
        -inf. Tokens that differ in white space alone (' 7' and '7') are one choice.
        """
        question = self._question(request.prompt, max_tokens=1) | {"logprobs": True, "top_logprobs": TOP_LOGPROBS}
        values = await self._ask(question, lambda body: _choice_values(body, request.choices), tally)
        return ChoiceResult(values, tally.prompt_tokens, tally.generated_tokens, tally.calls)

    async def _complete(self, request: Completion, tally: _Tally) -> CompletionResult:
        """Gather `n` replies; of a server that gives fewer the rest is asked for again, which takes `n` calls at most."""
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
            replies += await self._ask(question, _replies, tally)
            turn += 1
        texts = tuple(text for text, _, _ in replies[: request.n])
        sureness = replies[0][1:] if request.confidence else (None, None)
        return CompletionResult(texts, tally.prompt_tokens, tally.generated_tokens, tally.calls, *sureness)

    def _question(self, prompt: Turns, max_tokens: int, temperature: float = 0.0) -> Body:
        return {"model": self._model, "messages": messages_of(prompt), "max_tokens": max_tokens, "temperature": temperature}

    async def _ask(self, question: Body, read: Callable[[Body], Read], tally: _Tally) -> Read:
        """Send one question until its reply can be read; the client's retries and ours draw on one budget."""
        client, budget = self._client, self._endpoint.max_retries
        while True:
            reply = await client.chat.completions.with_raw_response.create(**question)
            budget -= reply.retries_taken
            try:
                body = _parse(reply.http_response.content)
                tally.add(body)
                return read(body)
            except _Malformed:
                if budget <= 0:
                    raise
            await asyncio.sleep(min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (self._endpoint.max_retries - budget)))
            budget -= 1
            client = client.with_options(max_retries=budget)

    def _refused(self, error: openai.APIStatusError, request: Choice | Completion, tally: _Tally) -> Failure:
        """Word a status that is no success. Raises UserError for those that no request can get around."""
        if error.status_code in (401, 403):
            raise _bad_key(self._endpoint, error.status_code) from None
        if error.status_code == 404:
            raise UserError(
                "the server does not know the model, or engine.endpoint.url is not its base address",
                got=f"model '{self._model}' at {redact_uri(self._endpoint.url)}",
                expected="a name that the server lists under engine.endpoint.url + '/models'; the address mostly ends in /v1",
            ) from None
        if error.status_code in TOO_LONG_STATUS and TOO_LONG.search(f"{error.message} {error.code} {error.type}"):
            return _overlong(error.message, request)
        return self._failure(_status_reason(error), tally)

    def _failure(self, reason: str, tally: _Tally) -> Failure:
        # No reason is made of texts that the server writes; its error codes are the exception, and may be anything.
        key = self._client.api_key
        reason = reason.replace(key, "***") if key != NO_KEY else reason
        return Failure(f"engine: {reason}"[:REASON_CHARACTERS], tally.prompt_tokens, tally.generated_tokens, tally.calls)


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
            raise _bad_key(endpoint, error.status_code) from None
        if error.status_code < 500 or error.status_code == 501:
            return
        raise _unreachable(endpoint, f"replies with status {error.status_code}") from None
    except (openai.APIError, TimeoutError) as error:
        raise _unreachable(endpoint, _trouble(error, PREFLIGHT_SECONDS)) from None
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
    """Get the names of the server's models; None for a body that is no list of models."""
    async with connect(endpoint, Pace(None)) as client, asyncio.timeout(PREFLIGHT_SECONDS):
        reply = await client.with_options(max_retries=0, timeout=PREFLIGHT_SECONDS).models.with_raw_response.list()
    try:
        listed = _parse(reply.http_response.content)["data"]
        return [str(entry["id"]) for entry in listed]
    except (_Malformed, KeyError, TypeError):
        return None


@dataclass
class _Tally:
    """What one request has cost so far, its unreadable replies included."""

    prompt_tokens: int = 0
    generated_tokens: int = 0
    calls: int = 0

    def add(self, body: Body) -> None:
        usage = body.get("usage")
        self.calls += 1
        self.prompt_tokens += _count(usage, "prompt_tokens")
        self.generated_tokens += _count(usage, "completion_tokens")


class _Malformed(Exception):
    """A reply that was delivered but is no chat completion; says what it lacks."""


def _count(usage: Any, name: str) -> int:
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if isinstance(value, int) and value > 0 else 0


def _parse(content: bytes) -> Body:
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        raise _Malformed("no JSON") from None
    if not isinstance(body, dict):
        raise _Malformed("no JSON object")
    return body


def _answered(body: Body) -> list[Body]:
    """Get the choices that hold a text."""
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices:
        raise _Malformed("no choices")
    answered = [choice for choice in choices if isinstance(choice, dict) and _text(choice) is not None]
    if not answered:
        raise _Malformed("no content")
    return answered


def _text(choice: Body) -> str | None:
    message = choice.get("message")
    content = message.get("content") if isinstance(message, dict) else None
    return content if isinstance(content, str) else None


def _replies(body: Body) -> list[Reply]:
    return [(text, *_sureness(choice)) for choice in _answered(body) if (text := _text(choice)) is not None]


def _sureness(choice: Body) -> tuple[float | None, int | None]:
    try:
        values = [float(entry["logprob"]) for entry in choice["logprobs"]["content"]]
    except (KeyError, TypeError, ValueError):
        return None, None  # not every server gives them, and a reply is one without
    total = math.fsum(values)
    return (total, len(values)) if values and math.isfinite(total) else (None, None)


def _choice_values(body: Body, choices: Sequence[str]) -> tuple[float, ...]:
    try:
        listed = _answered(body)[0]["logprobs"]["content"][0]["top_logprobs"]
        alternatives = [(str(entry["token"]).strip(), float(entry["logprob"])) for entry in listed]
    except (KeyError, IndexError, TypeError, ValueError):
        raise _Malformed("no log-probabilities") from None
    if not alternatives or any(math.isnan(value) or value == math.inf for _, value in alternatives):
        raise _Malformed("no log-probabilities")
    return tuple(_log_sum([value for token, value in alternatives if token == choice]) for choice in choices)


def _log_sum(values: Sequence[float]) -> float:
    """Add probabilities given by their logarithms; rounding must not carry the sum above 1."""
    highest = max(values, default=-math.inf)
    if highest == -math.inf:
        return highest
    return min(0.0, highest + math.log(math.fsum(math.exp(value - highest) for value in values)))


def _seed(seed: int, turn: int) -> int:
    """Derive the seed of a further call: far from the seeds of other requests, and within every server's range."""
    if turn == 0:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed} {turn}".encode()).digest()[:4], "big") >> 1


def _overlong(message: str, request: Choice | Completion) -> Failure:
    """Read the numbers out of a server's complaint about a length; None stands for what it does not say."""
    limit, total, prompt = (_number(pattern, message) for pattern in (LENGTH_LIMIT, TOTAL_TOKENS, PROMPT_TOKENS))
    if total is None and prompt is not None:
        total = prompt + (request.max_tokens if isinstance(request, Completion) else 1)
    return overlong(total, limit)


def _number(pattern: re.Pattern[str], text: str) -> int | None:
    found = pattern.search(text)
    return next((int(group) for group in found.groups() if group), None) if found else None


def _status_reason(error: openai.APIStatusError) -> str:
    kind = "rate limit" if error.status_code == 429 else "server error" if error.status_code >= 500 else "refused by the server"
    # The server's message would help most but may quote the prompt; its codes name the parameter at fault and hold no text.
    told = [text for text in (error.code, error.type, error.param) if isinstance(text, str) and IDENTIFIER.fullmatch(text)]
    return " ".join([kind, str(error.status_code), *dict.fromkeys(told)])


def _trouble(error: Exception, seconds: float) -> str:
    """Word an error for a Failure, by its kind alone: the text of it may quote a header or a prompt."""
    if isinstance(error, openai.APITimeoutError | TimeoutError):
        return f"timeout, no reply within {seconds:g} s"
    if isinstance(error, openai.APIConnectionError):
        return f"connection lost or refused ({type(error.__cause__).__name__})"
    if isinstance(error, _Malformed):
        return f"malformed reply, {error}"
    if isinstance(error, UnicodeError):
        return "the prompt holds characters that no request can carry"
    return f"unexpected {type(error).__name__}"


def _bad_key(endpoint: EndpointConfig, status: int) -> UserError:
    name = endpoint.api_key_env
    state = "is refused" if os.environ.get(name) else "is not set"
    return UserError(
        f"the server at engine.endpoint.url wants a key: the environment variable {name} {state}",
        got=f"{redact_uri(endpoint.url)} replies with status {status}",
        fix=f"set {name} to a valid key where the actors run, or name another variable in engine.endpoint.api_key_env",
    )


def _unreachable(endpoint: EndpointConfig, trouble: str) -> UserError:
    return UserError(
        "engine.endpoint.url cannot be reached",
        got=f"{redact_uri(endpoint.url)}: {trouble}",
        expected="the base address of a running OpenAI-compatible server, such as http://127.0.0.1:8000/v1",
        fix="start the server, or correct the address",
    )


def _log_failures(results: Sequence[Result]) -> None:
    """Log the first few failures of a run and the number of each kind; what is overlong is no trouble of the engine."""
    reasons = [result.reason for result in results if type(result) is Failure]
    for reason in reasons[:LOGGED_FAILURES]:
        logger.warning("a request got no answer: %s", reason)
    if len(reasons) > LOGGED_FAILURES:
        kinds = ", ".join(f"{count} x {reason}" for reason, count in Counter(reasons).most_common(5))
        logger.warning("%d of %d requests got no answer: %s", len(reasons), len(results), kinds)
