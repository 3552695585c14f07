"""Requests to a language model and their results: what estimators, benchmarks and judges exchange with engines.

Requests are hashable: two estimators that ask the same thing share one call. Why a reply ended is read in the words of any
server: the model ended it, its length did, or something else did. `Engine` is the contract of all engines.
"""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, count, zip_longest
from typing import Any, Protocol, TypeAlias

import pyarrow as pa
import pyarrow.compute

from ual_ray.columns import REFERENCE, Message, Messages, extra_of, json_text
from ual_ray.config import EngineConfig

# (role, content), or (role, content, extra) of a message that has an extra.
Turns: TypeAlias = tuple[tuple[str, ...], ...]
# length, model_length, max_tokens, MAX_OUTPUT_TOKENS, token_limit, model_context_window_exceeded, REASON_MAX_LEN, ...
_CUT = re.compile(r"(?i)length|max_?\w*(?:tokens|len|context)|token_limit|context_?window|^limit$|^incomplete$")
# Words of which a reason consists that the model ended its reply: stop, STOP_SEQUENCE, end_turn, eosFound, <|im_end|>, ...
# With any other word, also one that no server of today has, the reply is not the model's or not whole: content_filter, abort.
_ENDED = re.compile(
    r"(?i)stop|stopped|eos|eot|eom|end|ended|endoftext|turn|of|text|sequence|token|string|words?|str|id|im|s|matched|hit|found"
    r"|complete|completed|completion|done|finish|finished|normal|natural|success|reason|null|none|unspecified|unknown"
)
_CALLS_TOOL = re.compile(r"(?i)(?:tool|function)_?(?:calls?|use)")


def turns(messages: Messages) -> Turns:
    """Convert messages to hashable tuples, without the reference answer, which is not part of the conversation."""
    return tuple((message["role"], message["content"], *filter(None, [_sent(message)])) for message in messages)


def _sent(message: Message) -> str | None:
    extra = message.get("extra")
    if not extra or REFERENCE not in extra:
        return extra
    kept = {key: value for key, value in extra_of(message).items() if key != REFERENCE}
    return json_text(kept) if kept else None


def messages_of(frozen: Turns) -> list[Message]:
    """Convert such tuples to messages."""
    return [
        Message(role=role, content=content, extra=extra[0]) if extra else Message(role=role, content=content)
        for role, content, *extra in frozen
    ]


def chat_body(frozen: Turns) -> dict[str, Any]:
    """Write a conversation as a server of the OpenAI API takes it: `messages`, and `tools` where it has them.

    A call needs an id and its arguments as text, and the reply of a tool the id of its call, which data may lack.
    """
    messages: list[dict[str, Any]] = []
    tools: dict[str, Any] = {}
    open_calls: list[str] = []
    given = [(message, extra_of(message)) for message in messages_of(frozen)]
    taken = {call.get("id") for _, extra in given for call in extra.get("tool_calls", ())}
    replied = [extra["tool_call_id"] for _, extra in given if extra.get("tool_call_id")]
    made = (identity for number in count() if (identity := f"call_{number}") not in {*taken, *replied})
    new = chain([identity for identity in dict.fromkeys(replied) if identity not in taken], made)
    for message, extra in given:
        own: dict[str, Any] = {key: extra[key] for key in ("name", "tool_call_id") if key in extra}
        if "tool_calls" in extra:
            own["tool_calls"] = [_sent_call(call, new) for call in extra["tool_calls"]]
            open_calls += [call["id"] for call in own["tool_calls"]]
        if message["role"] == "tool" and open_calls:
            answered = own.setdefault("tool_call_id", open_calls[0])
            open_calls = [identity for identity in open_calls if identity != answered]
        messages.append({"role": message["role"], "content": message["content"], **own})
        tools |= {key: extra[key] for key in ("tools",) if key in extra}
    return {"messages": messages, **tools}


def _sent_call(call: dict[str, Any], new: Iterator[str]) -> dict[str, Any]:
    arguments = call["function"]["arguments"]
    text = arguments if isinstance(arguments, str) else json_text(arguments)
    return {**call, "id": call.get("id") or next(new), "function": {**call["function"], "arguments": text}}


@dataclass(frozen=True)
class Choice:
    """Ask for the log-probability that the reply starts with each choice, and not with a longer choice that extends it.

    With a budget of `thinking` tokens the model thinks first and the choices are read behind its thought; where there are no
    log-probabilities, the result is the CompletionResult of one reply.
    """

    prompt: Turns
    choices: tuple[str, ...]
    thinking: int = 0


@dataclass(frozen=True)
class Likelihood:
    """Ask for the NLL of all assistant turns of a given conversation, or of the last one only.

    `content_only`: without what the template adds behind a reply's content, such as the end-of-turn token.
    """

    conversation: Turns
    last_reply_only: bool = False
    content_only: bool = False


@dataclass(frozen=True)
class Completion:
    """Ask for `n` replies of up to `max_tokens` tokens, with the seeds from `seed` on; temperature 0 is greedy.

    `confidence` also asks for the log-probability of the first reply, which costs a pass over the vocabulary per token.
    `thinking`: tokens for a thought before the reply, in addition to max_tokens. `choices`: what the reply may be, for servers
    that can be held to it.
    """

    prompt: Turns
    max_tokens: int
    temperature: float = 0.0
    n: int = 1
    seed: int = 0
    confidence: bool = False
    thinking: int = 0
    choices: tuple[str, ...] = ()


Request: TypeAlias = Choice | Likelihood | Completion


def turns_of(request: Request) -> Turns:
    """Return the turns that a request hands to the engine."""
    return request.conversation if isinstance(request, Likelihood) else request.prompt


@dataclass(frozen=True)
class ChoiceResult:
    """Log-probabilities in the order of the choices, in nats; `calls` counts generations."""

    log_probabilities: tuple[float, ...]
    prompt_tokens: int
    generated_tokens: int = 1
    calls: int = 1

    @property
    def mass(self) -> float:
        """Probability of all choices together, in [0, 1]; NaN where one is NaN."""
        return min(math.fsum(math.exp(value) for value in self.log_probabilities), 1.0)


@dataclass(frozen=True)
class LikelihoodResult:
    """Summed NLL of the assistant's tokens in nats, and their number."""

    nll_sum: float
    target_tokens: int
    prompt_tokens: int
    generated_tokens: int = 0
    calls: int = 1


@dataclass(frozen=True)
class CompletionResult:
    """All `n` replies, and why each ended: 'stop', 'length' (it was cut) or another word of the engine's; None = unknown.

    If confidence was requested and is available: the summed log-probability (nats) of the first reply's tokens, and their
    number, the end-of-turn token included if the engine generates it.
    """

    texts: tuple[str, ...]
    prompt_tokens: int
    generated_tokens: int
    calls: int = 1
    log_probability: float | None = None
    scored_tokens: int | None = None
    finish_reasons: tuple[str | None, ...] = ()

    @property
    def replies(self) -> list[tuple[str, str | None]]:
        """Each reply with its finish reason."""
        return list(zip_longest(self.texts, self.finish_reasons[: len(self.texts)]))

    @property
    def confidence(self) -> float | None:
        """Mean token probability of the first reply, exp(mean log-probability), in [0, 1]; None if unknown."""
        if self.log_probability is None or math.isnan(self.log_probability) or not self.scored_tokens:
            return None
        return min(1.0, math.exp(self.log_probability / self.scored_tokens))


@dataclass(frozen=True)
class Failure:
    """No result, with a reason 'engine: ...' or 'template: ...'; rows with an engine error are sent again on retry."""

    reason: str
    prompt_tokens: int = 0
    generated_tokens: int = 0
    calls: int = 0


@dataclass(frozen=True)
class Overlong(Failure):
    """Prompt and answer together exceed the engine's limit; `tokens` and `limit` may be unknown (None)."""

    tokens: int | None = None
    limit: int | None = None


Result: TypeAlias = ChoiceResult | LikelihoodResult | CompletionResult | Failure


def overlong(tokens: int | None, limit: int | None) -> Overlong:
    """Make the failure of a prompt that does not fit with its answer."""
    size = "the server takes fewer tokens" if tokens is None else f"{tokens} tokens"
    most = "" if limit is None else f", engine.max_model_len is {limit}"
    return Overlong(f"overlong: {size}{most}", tokens=tokens, limit=limit)


def is_cut(finish_reason: str | None) -> bool:
    """Whether a reply was ended by its maximum length, and not by the model."""
    return finish_reason is not None and _CUT.search(finish_reason) is not None


def is_end(finish_reason: str | None) -> bool:
    """Whether the model ended a reply itself, or the server does not tell."""
    if not finish_reason or _CALLS_TOOL.fullmatch(finish_reason):
        return True
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+", finish_reason)
    return bool(words) and all(map(_ENDED.fullmatch, words))


def count_cut(finish_reasons: pa.ChunkedArray) -> tuple[int, int]:
    """Count the replies that were cut, and all replies, in a column of lists of finish reasons."""
    reasons = pa.compute.list_flatten(finish_reasons)
    return pa.compute.sum(pa.compute.match_substring_regex(reasons, _CUT.pattern)).as_py() or 0, len(reasons)


@dataclass(frozen=True)
class EngineSpec:
    """How to build an engine: settings, model (a name that `resolve_model` accepts), and the directory of a LoRA adapter."""

    config: EngineConfig
    model: str
    adapter: str | None = None
    trust_remote_code: bool = False


class Engine(Protocol):
    """Answers requests: one result each, in order; a request that cannot be answered gets a Failure.

    Built from an EngineSpec. `template_hash` identifies the chat template that prompts are rendered with. An engine that asks
    a server also has a static `check(config: EngineConfig, model: str)`, which raises UserError if the server is unusable, and
    one whose `template_hash` needs a tokenizer a static `read_template_hash(spec: EngineSpec)`, which loads no weights.
    """

    template_hash: str

    def run(self, requests: Sequence[Request]) -> list[Result]:
        """Answer all requests. Raises EngineDied when the engine is unusable, and UserError for what the user has to fix."""


class EngineDied(RuntimeError):
    """The engine is unusable from now on; its actor has to be replaced."""


def run_once(engine: Engine, requests: Iterable[Request]) -> dict[Request, Result]:
    """Send each distinct request once, and return the results by request."""
    unique = list(dict.fromkeys(requests))
    results = engine.run(unique) if unique else []
    assert len(results) == len(unique), f"the engine answered {len(results)} of {len(unique)} requests"
    return dict(zip(unique, results, strict=True))
