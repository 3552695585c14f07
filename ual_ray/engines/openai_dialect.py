"""What a server accepts: the fields of a request, adapted to what the server states it refuses."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ual_ray.config import EndpointConfig
from ual_ray.config.files import parse_json
from ual_ray.config.redact import hide
from ual_ray.engines.reply_text import ANSWER_KEY
from ual_ray.engines.requests import Turns, chat_body
from ual_ray.formatting import shorten

Body = dict[str, Any]

# 500: llama.cpp refuses n > 1 with it, and gateways pass on what a provider refuses.
REFUSALS = frozenset({400, 404, 422, 500, 501})
MAX_COMPLETION_TOKENS = "max_completion_tokens"
# Words of a refusal, and the names under which it may have a parameter; those of n include what it counts.
_REFUSED = re.compile(
    r"\bnot\b|cannot|n['’]t\b|\bno\b|only|unsupported|unrecogni[sz]ed|unknown|unexpected|extra|deprecated|invalid|must|should"
    r"|less than|at most|[<>]|不|必须|只",
    re.IGNORECASE,
)
# Words for a field that a server does not know, whatever its value.
_UNKNOWN = re.compile(
    r"unsupported|not supported|unrecogni[sz]ed|unknown|unexpected|extra (?:inputs|fields)|deprecated", re.IGNORECASE
)
_NAMES = {
    name: re.compile(rf"(?<![A-Za-z0-9_\\])(?:{names})(?![A-Za-z0-9_])", re.IGNORECASE)
    for name, names in {
        "temperature": "temperature",
        "seed": "seed",
        "max_tokens": "max_tokens",
        "n": "n|best_of|candidate_?count|num_return_sequences"
        "|(?:multiple|number of|one completion|more than one|single) "
        "(?:candidates?|choices?|completions?|generations?|outputs?|responses?|samples?|sequences?)",
    }.items()
}
TOO_LONG = re.compile(
    r"context_length_exceeded|exceed_context_size|max_model_len|context[ _](?:length|size|window)|maximum model length"
    r"|(?:prompt|input|message|string)s?\b.{0,40}(?:too long|exceed)|too many (?:\w+ )?tokens|reduce the length|input length"
    r"|max_new_tokens.{0,9} must be <=|must have less than \d+ tokens",
    re.IGNORECASE,
)
# The fewest tokens that a server lets a request ask for: "max_output_tokens must be >= 16", "[16, 8192]", "greater than 15".
_MORE = r"(?:greater|more|larger|higher) than"
_LEAST_TOKENS = re.compile(
    rf"max_?(?:output_?|completion_?|new_?)?tokens?\b[^\n]{{0,120}}?(?:(?P<above>{_MORE}(?! or)|>(?!=))"
    rf"|>=|≥|at least|{_MORE} or equal to|(?:not?|n['’]t|cannot)\b[^\n]{{0,12}} (?:less|fewer|smaller|lower) than"
    r"|minimum[a-z_ ]{0,30}|between|(?:be|in|within)(?= ?[\[(]\d)|不能小于|大于等于|最小值?为?)"
    r"[ :=\[(]*(?P<number>\d{1,4})(?!\d)"
    r"|minimum[^\n]{0,40}max_?(?:output_?|completion_?|new_?)?tokens?\b[^\n\d]{0,20}(?P<of>\d{1,4})(?!\d)"
    r"|(?:at least|minimum(?: of)?) (?P<so_many>\d{1,4}) (?:output|completion|new|generated) tokens",
    re.IGNORECASE,
)
MOST_LEAST_TOKENS = 1024  # a server that wants more is told of in its own words
# What other providers call the message of an error: status_msg, error_msg, Message, title.
_NAMED = ("message", "msg", "detail", "error", "errors")
_TELLS = re.compile(r"msg|message|error|detail|reason|title|description", re.IGNORECASE)
# The first line of a stream of server-sent events.
_EVENTS = re.compile(r"\s*(?:data|event|id|retry)?:")
_PAGE = re.compile(r"\s*<(?:!doctype|html|head|\?xml)", re.IGNORECASE)


@dataclass(frozen=True)
class Dialect:
    """How requests to one server are written; `adapted` gives the next one after a refusal."""

    endpoint: EndpointConfig
    max_tokens_field: str
    top_logprobs: int
    temperature: bool = True
    seed: bool = True
    n: bool = True
    least_tokens: int = 1

    @classmethod
    def of(cls, endpoint: EndpointConfig) -> Dialect:
        """Start with what the configuration states."""
        field = "max_tokens" if endpoint.max_tokens_field == "auto" else endpoint.max_tokens_field
        return cls(endpoint, field, endpoint.top_logprobs, temperature=endpoint.temperature is not None)

    def body(self, model: str, prompt: Turns, max_tokens: int, temperature: float, **options: Any) -> Body:
        """Write a request. options: n, seed, logprobs, top_logprobs, choices."""
        endpoint = self.endpoint
        body: Body = {"model": model, **chat_body(prompt), self.max_tokens_field: max(max_tokens, self.least_tokens)}
        if self.temperature:
            body["temperature"] = temperature if endpoint.temperature == "as_asked" else endpoint.temperature
        if self.n and options.get("n", 1) > 1:
            body["n"] = options["n"]
        if self.seed and "seed" in options:
            body["seed"] = options["seed"]
        if options.get("logprobs"):
            body["logprobs"] = True
        if options.get("top_logprobs"):
            body["top_logprobs"] = self.top_logprobs
        if endpoint.reasoning_effort is not None:
            body["reasoning_effort"] = endpoint.reasoning_effort
        if endpoint.chat_template_kwargs:
            body["chat_template_kwargs"] = endpoint.chat_template_kwargs
        return body | self._structured(options.get("choices", ())) | endpoint.extra_body

    def _structured(self, choices: tuple[str, ...]) -> Body:
        if not choices or self.endpoint.structured == "none":
            return {}
        if self.endpoint.structured == "choice":
            return {"structured_outputs": {"choice": list(choices)}}
        values: list[Any] = [int(choice) if choice.isdecimal() else choice for choice in choices]
        schema = {
            "type": "object",
            "properties": {ANSWER_KEY: {"enum": values}},
            "required": [ANSWER_KEY],
            "additionalProperties": False,
        }
        return {
            "response_format": {"type": "json_schema", "json_schema": {"name": ANSWER_KEY, "strict": True, "schema": schema}}
        }

    def adapted(self, words: str, param: str | None) -> Dialect | None:
        """Return the dialect to try after a refusal in these words, which may name a parameter; None = nothing to change."""
        text = f"{words} {param or ''}"
        if TOO_LONG.search(text):
            return None
        if (least := _least_tokens(f"{param or ''} {words}")) > self.least_tokens:
            return replace(self, least_tokens=least)
        named = {name for name, names in _NAMES.items() if param == name or (names.search(words) and _REFUSED.search(words))}
        renamed = MAX_COMPLETION_TOKENS in text or ("max_tokens" in named and _UNKNOWN.search(words))
        if self.max_tokens_field == "max_tokens" and renamed and self.endpoint.max_tokens_field == "auto":
            return replace(self, max_tokens_field=MAX_COMPLETION_TOKENS)
        if self.temperature and "temperature" in named:
            return replace(self, temperature=False)
        if self.n and "n" in named:
            return replace(self, n=False)
        if "logprobs" in text.lower() and (most := _most_allowed(words, self.top_logprobs)):
            return replace(self, top_logprobs=most)
        if self.seed and "seed" in named:
            return replace(self, seed=False)
        return None

    def changes(self, first: Dialect) -> list[str]:
        """List what was adapted since the first dialect, for people."""
        notes = {
            f"{self.max_tokens_field} in place of max_tokens": self.max_tokens_field != first.max_tokens_field,
            "temperature left out: the server's default is used": self.temperature != first.temperature,
            "n > 1 sent as n requests of one": self.n != first.n,
            f"top_logprobs lowered to {self.top_logprobs}": self.top_logprobs != first.top_logprobs,
            "seed left out": self.seed != first.seed,
            f"at least {self.least_tokens} tokens asked for, as the server demands": self.least_tokens != first.least_tokens,
        }
        return [note for note, changed in notes.items() if changed]


def _least_tokens(words: str) -> int:
    """Read the fewest tokens that a refusal allows to ask for; 0 where it names none."""
    found = _LEAST_TOKENS.search(words)
    number = found and (found["number"] or found["of"] or found["so_many"])
    least = int(number) + (found["above"] is not None) if found and number else 0
    return least if least <= MOST_LEAST_TOKENS else 0


def _most_allowed(words: str, asked: int) -> int | None:
    """Read the largest number of alternatives that a refusal names, below the one asked for."""
    smaller = [number for number in map(int, re.findall(r"(?<!\d)\d{1,9}(?!\d)", words)) if 0 < number < asked]
    return max(smaller, default=None)


def server_words(body: object, levels: int = 10) -> str:
    """Find the message in the body of an error, whatever its form; '' without one within so many levels."""
    if not levels:
        return ""
    if isinstance(body, str):
        return _page_words(body) if _PAGE.match(body) else _event_words(body, levels - 1) if is_stream(body) else body
    if isinstance(body, list):
        return "; ".join(filter(None, (server_words(part, levels - 1) for part in body)))
    if not isinstance(body, Mapping):
        return ""
    found = (server_words(body.get(name), levels - 1) for name in _NAMED)
    words = next(filter(None, found), "")
    if not words:  # also of a field that is named: {"errors": {"MaxTokens": ["must be above 0"]}}
        told = (
            (key, server_words(value, levels - 1)) for key, value in body.items() if key not in _NAMED and _may_tell(key, value)
        )
        words = "; ".join(f"{key}: {text}" for key, text in told if text)
    if words and isinstance(quoted := body.get("metadata"), Mapping):  # a gateway's, of the provider that it asked
        words = ": ".join(filter(None, [words, _provider_words(quoted.get("raw"), levels - 1)]))
    place = body.get("loc")  # FastAPI: {"loc": ["body", "n"], "msg": "Extra inputs are not permitted"}
    return f"{place[-1]}: {words}" if words and isinstance(place, list) and place else words


def is_stream(body: str) -> bool:
    """Whether a body is a stream of server-sent events."""
    return bool(_EVENTS.match(body)) and re.search(r"^data:", body, re.MULTILINE) is not None


def _event_words(stream: str, levels: int) -> str:
    """Find the message of an error that comes as an event, alone or behind parts of a reply; '' in a stream without one."""
    told = []
    for event in re.sub(r"\r\n?", "\n", stream).split("\n\n"):
        lines = [line.strip() for line in re.findall(r"^data:(.*)", event, re.MULTILINE)]
        whole = _parsed("\n".join(lines))
        for found in [whole] if isinstance(whole, Mapping) else map(_parsed, lines):
            part = isinstance(found, Mapping) and not found.get("error") and {"choices", "delta"} & found.keys()
            cut_off = isinstance(found, str) and found.startswith(("{", "["))  # or the end, [DONE]
            told.append("" if part or cut_off else server_words(found, levels))
    return "; ".join(filter(None, told))


def _parsed(text: str) -> object:
    try:
        return parse_json(text)
    except ValueError:
        return text


def _may_tell(key: object, value: object) -> bool:
    """Whether an entry of an error may hold its message: by its name, or as it has entries of its own."""
    return not isinstance(value, str) or _TELLS.search(str(key)) is not None


def _provider_words(raw: object, levels: int) -> str:
    """Find the message in a provider's reply as a gateway quotes it, as text."""
    try:
        return server_words(parse_json(raw) if isinstance(raw, str) else raw, levels)
    except ValueError:
        return str(raw)


def _page_words(page: str) -> str:
    """Return the words of a page that a proxy answers with: its title and text, at most 300 characters."""
    text = re.sub(r"(?is)<(style|script)\b.*?(?:</\1\s*>|\Z)|<!--.*?(?:-->|\Z)|<[^>]*(?:>|\Z)", " ", page)
    return " ".join(html.unescape(text).split())[:300]


def quote(words: str, prompt: Turns, secrets: Sequence[str]) -> str:
    """Quote a server's words in one line, without secrets and without what they repeat of the prompt."""
    text = shorten(hide(" ".join(words.split()), secrets), LONGEST_QUOTE)
    for turn in prompt:
        text = _without(text, " ".join(turn[1].split()))
    return text


LONGEST_QUOTE = 2000  # characters
REPEATED = 20  # characters in a row from which words of a server count as the prompt's


def _without(text: str, content: str) -> str:
    size = min(REPEATED, len(content))
    if size < 4:
        return text
    kept, at = [], 0
    while at < len(text):
        end = at + size
        if text[at:end] in content and end <= len(text):
            while end < len(text) and text[at : end + 1] in content:
                end += 1
            kept.append("[prompt]")
            at = end
        else:
            kept.append(text[at])
            at += 1
    return "".join(kept)
