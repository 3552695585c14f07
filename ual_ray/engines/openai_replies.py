"""Reads chat completions of an OpenAI-compatible server, which may lack anything: values out, or MalformedReply."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

Body = dict[str, Any]
# A text, and if the server gives them the summed log-probability (nats) of its tokens and their number.
Reply = tuple[str, float | None, int | None]


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
    return [(text, *_log_probability(choice)) for text, choice in _texts(body)]


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
    contents = [(message.get("content"), choice) for message, choice in messages if isinstance(message, dict)]
    texts = [(content, choice) for content, choice in contents if isinstance(content, str)]
    if not texts:
        raise MalformedReply("no content")
    return texts


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
