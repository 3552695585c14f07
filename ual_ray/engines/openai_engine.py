"""Answers from an OpenAI-compatible server: vLLM's own, another local one, or a provider's.

The server renders prompts with its own chat template and gives log-probabilities of the first token's alternatives alone.
So choices have to be one-token texts, and the likelihood of a given text is not available.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import openai

from ual_ray.config import EndpointConfig, EngineConfig
from ual_ray.config.redact import hide, redact_uri
from ual_ray.engines.openai_client import (
    BackgroundLoop,
    Pace,
    bad_key,
    connect,
    error_reason,
    read_overlong,
    status_reason,
    unknown_model,
    unreachable,
)
from ual_ray.engines.openai_dialect import REFUSALS, Body, Dialect, quote, server_words
from ual_ray.engines.openai_replies import (
    MalformedReply,
    Reply,
    parse_body,
    read_choices,
    read_choices_behind_thought,
    read_replies,
    used_tokens,
)
from ual_ray.engines.reply_text import Unread
from ual_ray.engines.requests import (
    Choice,
    ChoiceResult,
    Completion,
    CompletionResult,
    EngineSpec,
    Failure,
    Likelihood,
    Request,
    Result,
)
from ual_ray.errors import UserError

logger = logging.getLogger(__name__)

# What is left for a reply behind its thought, where its log-probabilities are read.
REPLY_TOKENS = 32
PREFLIGHT_SECONDS = 5.0
NAMED_MODELS = 10
LOGGED_FAILURES = 3
REASON_CHARACTERS = 400
# A key such as "x" or "none", which a server without keys is given, is a part of words.
LEAST_SECRET = 8
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
        paces = (self._endpoint.requests_per_minute, self._endpoint.tokens_per_minute)
        self._client = connect(self._endpoint, *(Pace(pace and pace / spec.config.max_actors) for pace in paces))
        self._dialect = Dialect.of(self._endpoint)
        self._free = asyncio.Semaphore(self._endpoint.concurrency)
        self._loop = BackgroundLoop()

    @staticmethod
    def check(config: EngineConfig, model: str) -> None:
        """Raise UserError when the server cannot be used; see check_endpoint."""
        check_endpoint(config, model)

    def __enter__(self) -> OpenAIEngine:
        return self

    def __exit__(self, *_: object) -> None:
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
            return await (self._choose(request, tally) if isinstance(request, Choice) else self._complete(request, tally))
        except openai.APIStatusError as error:
            words = quote(server_words(error.body), request.prompt, self._secrets)
            if error.status_code in (401, 403):
                raise bad_key(self._endpoint, error.status_code, words) from None
            if error.status_code == 404:
                raise unknown_model(self._endpoint, self._model, words) from None
            return read_overlong(error, request) or self._failure(status_reason(error, words), tally)
        except MalformedReply as error:
            words = quote(error.words, request.prompt, self._secrets)
            return self._failure(f"malformed reply, {error}" + (f": {words}" if words else ""), tally)
        except Exception as error:
            return self._failure(error_reason(error, self._endpoint.timeout_seconds), tally)

    async def _choose(self, request: Choice, tally: _Tally) -> Result:
        """Ask for one token, or for a thought and a reply: a choice that is not among the alternatives gets -inf."""

        def question(dialect: Dialect) -> Body:
            longest = request.thinking + REPLY_TOKENS if request.thinking else 1
            return dialect.body(self._model, request.prompt, longest, 0.0, logprobs=True, top_logprobs=True)

        def read(body: Body) -> tuple[float, ...] | Unread | Reply:
            return (read_choices_behind_thought if request.thinking else read_choices)(body, request.choices)

        found = await self._ask(question, read, tally)
        if isinstance(found, Unread):
            return Failure(found.reason, tally.prompt_tokens, tally.generated_tokens, tally.calls)
        if isinstance(found, Reply):
            return self._completed([found], tally)
        return ChoiceResult(found, tally.prompt_tokens, tally.generated_tokens, tally.calls)

    async def _complete(self, request: Completion, tally: _Tally) -> CompletionResult:
        """Gather `n` replies; a server that gives fewer per call is asked again, at most `n` times."""
        replies: list[Reply] = []
        turn = 0
        while missing := max(0, request.n - len(replies)):
            together = self._dialect.n
            sizes = [missing] if together else [1] * missing
            asked = (self._sample(request, size, turn + at, tally) for at, size in enumerate(sizes))
            for found in await asyncio.gather(*asked):
                replies += found
            turn += len(sizes)
        return self._completed(replies[: request.n], tally, request.confidence)

    async def _sample(self, request: Completion, n: int, turn: int, tally: _Tally) -> list[Reply]:
        def question(dialect: Dialect) -> Body:
            options: dict[str, Any] = {"seed": _seed(request.seed, turn)} if request.temperature > 0 else {}
            logprobs = request.confidence and self._endpoint.logprobs
            longest = request.max_tokens + request.thinking
            return dialect.body(
                self._model,
                request.prompt,
                longest,
                request.temperature,
                n=n,
                logprobs=logprobs,
                choices=request.choices,
                **options,
            )

        return await self._ask(question, read_replies, tally)

    @staticmethod
    def _completed(replies: Sequence[Reply], tally: _Tally, confidence: bool = False) -> CompletionResult:
        sure = (replies[0].log_probability, replies[0].tokens) if confidence else (None, None)
        texts, reasons = tuple(reply.text for reply in replies), tuple(reply.finish_reason for reply in replies)
        return CompletionResult(texts, tally.prompt_tokens, tally.generated_tokens, tally.calls, *sure, reasons)

    async def _ask(self, question: Callable[[Dialect], Body], read: Callable[[Body], Read], tally: _Tally) -> Read:
        """Send one question until its reply can be read; the client's retries and these share one budget.

        A refusal that names what the server does not take changes the dialect of all later requests and is sent again.
        """
        client, budget = self._client, self._endpoint.max_retries
        while True:
            dialect = self._dialect
            try:
                async with self._free:
                    reply = await _post(client, question(dialect))
                budget -= reply.retries_taken
                body = parse_body(reply.http_response.content)
                tally.add(body)
                return read(body)
            except openai.APIStatusError as error:
                if not self._adapt(dialect, error):
                    raise
                continue
            except MalformedReply:
                if budget <= 0:
                    raise
            await asyncio.sleep(min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (self._endpoint.max_retries - budget)))
            budget -= 1
            client = client.with_options(max_retries=budget)

    def _adapt(self, sent: Dialect, error: openai.APIStatusError) -> bool:
        """Change the dialect after a refusal; return whether the request should be sent again."""
        words = server_words(error.body)
        if error.status_code not in REFUSALS or sent.adapted(words, error.param) is None:
            return False
        # Of several requests under way the first changes it.
        if (other := self._dialect.adapted(words, error.param)) is not None:
            self._dialect = other
            logger.info("adapted to the server: %s", ", ".join(other.changes(Dialect.of(self._endpoint))))
        return True

    @property
    def adaptations(self) -> list[str]:
        """What the requests lack or have in addition, because the server reported so."""
        return self._dialect.changes(Dialect.of(self._endpoint))

    @property
    def _secrets(self) -> tuple[str, ...]:
        return _secrets_of(self._endpoint)

    def _failure(self, reason: str, tally: _Tally) -> Failure:
        # The server's error codes are parts of a reason that it writes itself: they may be anything.
        reason = f"engine: {hide(reason, self._secrets)}"
        return Failure(reason[:REASON_CHARACTERS], tally.prompt_tokens, tally.generated_tokens, tally.calls)


def _secrets_of(endpoint: EndpointConfig) -> tuple[str, ...]:
    named = (os.environ.get(endpoint.api_key_env, "").strip(), *endpoint.extra_headers.values())
    return tuple(secret for secret in named if len(secret) >= LEAST_SECRET)


async def _post(client: openai.AsyncOpenAI, body: Body) -> Any:
    rest = {name: value for name, value in body.items() if name not in ("model", "messages")}
    return await client.chat.completions.with_raw_response.create(
        model=body["model"], messages=body["messages"], extra_body=rest
    )


@dataclass
class _Tally:
    """What one request has cost so far, malformed replies included."""

    prompt_tokens: int = 0
    generated_tokens: int = 0
    calls: int = 0

    def add(self, body: Body) -> None:
        self.calls += 1
        self.prompt_tokens += used_tokens(body, "prompt_tokens", "input_tokens")
        self.generated_tokens += used_tokens(body, "completion_tokens", "output_tokens")


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
        words = quote(server_words(error.body), (), _secrets_of(endpoint))
        if error.status_code in (401, 403):
            raise bad_key(endpoint, error.status_code, words) from None
        if error.status_code < 500 or error.status_code == 501:
            return
        told = f"replies with status {error.status_code}" + (f": {words}" if words else "")
        raise unreachable(endpoint, told) from None
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
            fix="set the model to one of these names",
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
