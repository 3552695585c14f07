"""Messages for errors of an OpenAI-compatible server: reasons of failures, and errors that the user has to fix.

A reason quotes the server's own words without the key and without what they repeat of the prompt.
"""

from __future__ import annotations

import os
import re

import openai

from ual_ray.config import EndpointConfig
from ual_ray.config.redact import redact_uri
from ual_ray.engines.openai_dialect import TOO_LONG, server_words
from ual_ray.engines.openai_replies import MalformedReply
from ual_ray.engines.requests import Choice, Completion, Failure, overlong
from ual_ray.errors import UserError

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


def read_overlong(error: openai.APIStatusError, request: Choice | Completion) -> Failure | None:
    """Return an overlong failure if that is what the server reports; its numbers may be unknown (None)."""
    if error.status_code not in _TOO_LONG_STATUS or not TOO_LONG.search(f"{error.message} {error.code} {error.type}"):
        return None
    limit, total, prompt = (_number(pattern, error.message) for pattern in (_LENGTH_LIMIT, _TOTAL_TOKENS, _PROMPT_TOKENS))
    words = server_words(error.body)
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
