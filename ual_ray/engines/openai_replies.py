"""Reads chat completions of an OpenAI-compatible server, which may lack anything: values out, or MalformedReply."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from ual_ray.columns import Message, spoken, with_extra
from ual_ray.config.files import parse_json
from ual_ray.engines.openai_dialect import Body, is_stream, server_words
from ual_ray.engines.reading import answer_place, log_sum
from ual_ray.engines.reply_text import Unread, not_ended, read_reply
from ual_ray.engines.requests import is_cut, is_end
from ual_ray.engines.spellings import plain_entry, visible_entry

# How a thought starts that the server returns apart from a reply.
THOUGHT = "<think>"
# The largest sum of probabilities of one token's alternatives, with room for rounding in 16 bits.
MOST_MASS = 1.05
# Finish reasons of replies that have no text, however often they are asked for.
WITHOUT_TEXT = ("content_filter", "tool_calls", "function_call")
SHOWN_CHARACTERS = 100
# What makes an answer another one than its first token, where a server gives more than one.
_GOES_ON = re.compile(r"\d|[.,]\d|\s?%|[^\W\d_]")
# Where a message has its thought apart from its content, and what parts of a content are called.
THOUGHT_KEYS = ("reasoning_content", "reasoning", "reasoning_text", "thinking", "reasoning_details")
TEXT_PARTS, THOUGHT_PARTS = ("text", "output_text"), ("thinking", "reasoning", "reasoning.text")


@dataclass(frozen=True)
class Reply:
    """A text, why it ended, and if the server gives them the summed log-probability (nats) of its tokens and their number."""

    text: str
    finish_reason: str | None
    log_probability: float | None = None
    tokens: int | None = None


class MalformedReply(Exception):
    """A delivered body that is not a chat completion; the message names what it lacks, `words` are the server's."""

    def __init__(self, message: str, words: str = "") -> None:
        """Take the message, which quotes nothing, and what the server states, which may."""
        super().__init__(message)
        self.words = words


def parse_body(content: bytes) -> Body:
    """Parse a JSON object. Raises MalformedReply."""
    try:
        body = parse_json(content.decode(json.detect_encoding(content), "surrogatepass"))
    except ValueError:
        text = content.decode(errors="replace")
        words = server_words(text)
        if is_stream(text):
            whole = "a stream of events (engine.endpoint.extra_body={stream: false} turns it off)"
            raise MalformedReply("an error, as an event" if words else whole, words) from None
        raise MalformedReply("no JSON", words[:SHOWN_CHARACTERS]) from None
    if not isinstance(body, dict):
        raise MalformedReply("no JSON object")
    return body


def used_tokens(body: Body, *names: str) -> int:
    """Read a count of `usage` under the first of these names that has one, also as text; 0 where there is none."""
    usage = body.get("usage")
    values = [usage.get(name) for name in names] if isinstance(usage, dict) else []
    counts = (re.fullmatch(r"\s*(\d{1,15})(?:\.0*)?\s*", str(value)) for value in values)
    return next((int(count[1]) for count in counts if count), 0)


def read_replies(body: Body) -> list[Reply]:
    """Read the choices that have a text, or a thought in place of one. Raises MalformedReply when none has."""
    return [Reply(text, _finish(choice), *_log_probability(choice)) for text, choice in _texts(body)]


def read_choices(body: Body, choices: Sequence[str]) -> tuple[float, ...] | Unread:
    """Read each choice's log-probability off the alternatives of the first token, -inf for one that is not listed.

    Tokens that differ in white space or marks of it count as one choice. Raises MalformedReply.
    """
    (text, choice), *_ = _texts(body)
    if text.startswith(THOUGHT) and not _content(choice["message"]):
        return Unread(
            "unparsable: the reply is a thought; turn thinking off, or set elicit.thinking_tokens (judge.thinking_tokens)"
        )
    calls = _calls(choice["message"])
    if not choice.get("logprobs") and (calls or not text):
        kind = "a call of a tool" if calls else "empty"
        return Unread(f"unparsable: the reply is {kind} (finish_reason {_finish(choice)!r})")
    if not is_end(_finish(choice)) and not is_cut(_finish(choice)):  # cut after its one token
        return not_ended(_finish(choice))
    tokens = _tokens(choice)
    place = next((at for at, token in enumerate(tokens) if _shows(token)), 0)
    behind = "".join(plain_entry(token) for token in tokens[place + 1 :] if "token" in token)
    if _shows(tokens[place]) and visible_entry(tokens[place]) in choices and _GOES_ON.match(behind):
        return Unread("unparsable: the reply goes on behind the token that is read as its answer")
    return _log_probabilities(tokens[place], choices)


def read_choices_behind_thought(body: Body, choices: Sequence[str]) -> tuple[float, ...] | Reply:
    """Read the log-probabilities where the answer stands, or return the reply where it gives no answer or none come."""
    (reply, *_), ((text, choice), *_) = read_replies(body), _texts(body)
    value = read_reply(text, reply.finish_reason, choices)
    if isinstance(value, Unread):
        return reply
    try:
        tokens = _tokens(choice)
        texts = [plain_entry(entry) for entry in tokens]
    except (MalformedReply, KeyError):  # or a token without a text
        return reply
    place = answer_place(texts, value, choices)
    if place is None or texts[place].strip() != value:  # or the server splits the answer
        return reply
    return _log_probabilities(tokens[place], choices)


def _log_probabilities(token: Body, choices: Sequence[str]) -> tuple[float, ...]:
    """Read each choice's log-probability off a token's alternatives, each once, and the token if it is not listed."""
    try:
        listed = {(str(entry["token"]), float(entry["logprob"])): visible_entry(entry) for entry in token["top_logprobs"]}
        if listed and _shows(token) and (own := visible_entry(token)) in {*choices} - {*listed.values()}:
            listed[str(token["token"]), float(token["logprob"])] = own
        alternatives = [(text, value) for (_, value), text in listed.items()]
        total = math.fsum(math.exp(value) for _, value in alternatives)
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError):
        raise MalformedReply("no log-probabilities") from None
    if not alternatives or math.isnan(total):
        raise MalformedReply("no log-probabilities")
    if total > MOST_MASS:
        raise MalformedReply(f"no log-probabilities: the probabilities of a token's alternatives sum to {total:.3g}")
    # Rounding may give a little more than probability 1.
    return tuple(min(0.0, log_sum([value for token, value in alternatives if token == choice])) for choice in choices)


def _shows(token: Body) -> bool:
    """Whether a token is more than white space."""
    return "token" in token and bool(visible_entry(token))


def _tokens(choice: Body) -> list[Body]:
    try:
        tokens = choice["logprobs"]["content"]
        if isinstance(tokens, list) and tokens and all(isinstance(token, dict) for token in tokens):
            return tokens
    except (KeyError, TypeError):
        pass
    raise MalformedReply("no log-probabilities")


def _texts(body: Body) -> list[tuple[str, Body]]:
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices:
        raise MalformedReply("no choices", server_words(body))
    given = [choice for choice in choices if isinstance(choice, dict)]
    if failed := next((choice["error"] for choice in given if choice.get("error")), None):
        raise MalformedReply("an error in its place", server_words(failed))
    found = [(_text(choice), choice) for choice in given]
    texts = [(text, choice) for text, choice in found if text is not None]
    if not texts:
        raise MalformedReply("no content")
    return texts


def _text(choice: Body) -> str | None:
    """Return a choice's text, with its calls of tools as `spoken` writes those of the data; None without.

    For one that a reasoning parser took for a thought: that thought without an end.
    """
    message = choice.get("message")
    if not isinstance(message, dict):
        return None
    content = _content(message)
    if calls := _calls(message):
        return spoken(with_extra(Message(role="assistant", content=content or ""), tool_calls=calls))
    if content and content.strip():
        return content
    if thought := _thought(message):
        return f"{THOUGHT}{thought}"
    if content is not None or is_cut(_finish(choice)) or message.get("refusal") or _finish(choice) in WITHOUT_TEXT:
        return content or ""
    return None


def _content(message: Body) -> str | None:
    content = message.get("content")
    return _joined(content, TEXT_PARTS) if isinstance(content, list) else content if isinstance(content, str) else None


def _thought(message: Body) -> str:
    given = next((message[key] for key in THOUGHT_KEYS if message.get(key)), message.get("content"))
    return given if isinstance(given, str) else _joined(given, THOUGHT_PARTS) or ""


def _joined(parts: object, kinds: Sequence[str]) -> str | None:
    """Join the texts of the parts of these kinds; None where there is none."""
    found = [part for part in parts if isinstance(part, dict) and part.get("type") in kinds] if isinstance(parts, list) else []
    given = [next((part[key] for key in ("text", *THOUGHT_KEYS) if part.get(key)), None) for part in found]
    texts = [text if isinstance(text, str) else _joined(text, TEXT_PARTS) or "" for text in given]
    return "".join(texts) if found else None


def _calls(message: Body) -> list[Body]:
    """Return a message's calls of tools, also one in the older form."""
    calls = message.get("tool_calls") or [{"function": message.get("function_call")}]
    found = [call for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []
    return [call for call in found if isinstance(call.get("function"), dict) and call["function"].get("name")]


def _finish(choice: Body) -> str | None:
    """Return why a choice ended; 'refusal' where the server marks it as one, whatever it gives as the reason."""
    if choice["message"].get("refusal"):
        return "refusal"
    reason = choice.get("finish_reason")
    if isinstance(reason, dict):  # SGLang's own form: {"type": "length", "length": 8}
        reason = reason.get("type")
    return None if reason is None else str(reason)


def _log_probability(choice: Body) -> tuple[float | None, int | None]:
    try:
        values = [float(entry["logprob"]) for entry in choice["logprobs"]["content"]]
        total = math.fsum(values)
    except (KeyError, TypeError, ValueError, OverflowError):
        return None, None  # many servers give none, and the reply is valid without
    return (total, len(values)) if values and math.isfinite(total) else (None, None)
