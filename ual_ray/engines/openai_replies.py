"""Reads chat completions of an OpenAI-compatible server, which may lack anything: values out, or MalformedReply."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

Body = dict[str, Any]


class Reply(NamedTuple):
    """A text, whether it was cut, and if the server gives them its tokens' summed log-probability (nats) and number."""

    text: str
    cut: bool
    log_probability: float | None
    tokens: int | None


class MalformedReply(Exception):
    """A delivered body that is not a chat completion; the message names what it lacks and quotes nothing."""


def parse_body(content: bytes) -> Body:
    """Parse a JSON object. Raises MalformedReply."""
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        raise MalformedReply("no JSON") from None
    if not isinstance(body, dict):
        raise MalformedReply("no JSON object")
    return body


def used_tokens(body: Body, name: str) -> int:
    """Read a count of `usage`, such as prompt_tokens; 0 if it is missing or not a positive integer."""
    usage = body.get("usage")
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if isinstance(value, int) and value > 0 else 0


def read_replies(body: Body) -> list[Reply]:
    """Read the choices that have a text. Raises MalformedReply when none has."""
    return [Reply(text, choice.get("finish_reason") == "length", *_log_probability(choice)) for text, choice in _texts(body)]


def read_choices(body: Body, choices: Sequence[str]) -> tuple[float, ...]:
    """Read each choice's log-probability off the alternatives of the first token, -inf for one that is not listed.

    Tokens that differ in white space alone (' 7' and '7') count as one choice. Raises MalformedReply.
    """
    try:
        listed = _texts(body)[0][1]["logprobs"]["content"][0]["top_logprobs"]
        alternatives = [(str(entry["token"]).strip(), float(entry["logprob"])) for entry in listed]
    except (KeyError, IndexError, TypeError, ValueError):
        raise MalformedReply("no log-probabilities") from None
    if not alternatives or any(math.isnan(value) or value == math.inf for _, value in alternatives):
        raise MalformedReply("no log-probabilities")
    return tuple(_log_sum([value for token, value in alternatives if token == choice]) for choice in choices)


def _texts(body: Body) -> list[tuple[str, Body]]:
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices:
        raise MalformedReply("no choices")
    messages = [(choice.get("message"), choice) for choice in choices if isinstance(choice, dict)]
    contents = [(_content(message, choice), choice) for message, choice in messages if isinstance(message, dict)]
    texts = [(content, choice) for content, choice in contents if content is not None]
    if not texts:
        raise MalformedReply("no content")
    return texts


def _content(message: Body, choice: Body) -> str | None:
    """Read a message's text; "" where it only has thoughts or a refusal, None where it has nothing."""
    content = message.get("content")
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        content = "".join(part for part in parts if isinstance(part, str))
    if isinstance(content, str):
        return content
    answered = any(message.get(name) for name in ("reasoning_content", "reasoning", "refusal"))
    return "" if answered or choice.get("finish_reason") == "length" else None


def _log_probability(choice: Body) -> tuple[float | None, int | None]:
    try:
        values = [float(entry["logprob"]) for entry in choice["logprobs"]["content"]]
    except (KeyError, TypeError, ValueError):
        return None, None  # many servers give none, and the reply is valid without
    total = math.fsum(values)
    return (total, len(values)) if values and math.isfinite(total) else (None, None)


def _log_sum(values: Sequence[float]) -> float:
    """Add probabilities given as logarithms; capped at probability 1 against rounding."""
    highest = max(values, default=-math.inf)
    if highest == -math.inf:
        return highest
    return min(0.0, highest + math.log(math.fsum(math.exp(value - highest) for value in values)))
