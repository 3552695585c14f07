"""What can be asked of a language model, and what comes back: the vocabulary between estimators and engines.

Requests are hashable values: two estimators that ask the same thing share one call.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

from ual_ray.columns import Message, Messages

Turns: TypeAlias = tuple[tuple[str, str], ...]


def turns(messages: Messages) -> Turns:
    """Freeze messages into (role, content) pairs."""
    return tuple((message["role"], message["content"]) for message in messages)


def messages_of(frozen: Turns) -> list[Message]:
    """Thaw (role, content) pairs into messages."""
    return [Message(role=role, content=content) for role, content in frozen]


@dataclass(frozen=True)
class Choice:
    """Ask for the log-probability that the assistant's reply opens with each choice and with no longer one of them."""

    prompt: Turns
    choices: tuple[str, ...]


@dataclass(frozen=True)
class Likelihood:
    """Ask for the NLL of the assistant's turns of a given conversation, or of the last of them alone."""

    conversation: Turns
    last_reply_only: bool = False


@dataclass(frozen=True)
class Completion:
    """Ask for `n` replies of up to `max_tokens` tokens; temperature 0 is greedy.

    `confidence` asks how sure the model was of the first reply too, which costs a pass over the vocabulary per token.
    """

    prompt: Turns
    max_tokens: int
    temperature: float = 0.0
    n: int = 1
    seed: int = 0
    confidence: bool = False


Request: TypeAlias = Choice | Likelihood | Completion


@dataclass(frozen=True)
class ChoiceResult:
    """Log-probabilities in the order of the choices, in nats; `calls` counts generations."""

    log_probabilities: tuple[float, ...]
    prompt_tokens: int
    generated_tokens: int = 1
    calls: int = 1


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
    """All `n` replies.

    Where confidence was asked for and could be had: the summed log-probability (nats) of the first reply's tokens, and their
    number. The end-of-turn token counts as one where the engine generates it.
    """

    texts: tuple[str, ...]
    prompt_tokens: int
    generated_tokens: int
    calls: int = 1
    log_probability: float | None = None
    scored_tokens: int | None = None

    @property
    def confidence(self) -> float | None:
        """Mean token probability of the first reply, exp(mean log-probability), in [0, 1]; None where it is not known."""
        if self.log_probability is None or not self.scored_tokens:
            return None
        return min(1.0, math.exp(self.log_probability / self.scored_tokens))


@dataclass(frozen=True)
class Failure:
    """No result, and why: 'engine: ...' or 'template: ...'. An engine's failure may pass; the row is sent again next time."""

    reason: str
    prompt_tokens: int = 0
    generated_tokens: int = 0
    calls: int = 0


@dataclass(frozen=True)
class Overlong(Failure):
    """Prompt and answer together are longer than the engine takes; `tokens` and `limit` are None where it does not say."""

    tokens: int | None = None
    limit: int | None = None


Result: TypeAlias = ChoiceResult | LikelihoodResult | CompletionResult | Failure


def overlong(tokens: int | None, limit: int | None) -> Overlong:
    """Say that a prompt and its answer do not fit."""
    return Overlong(f"overlong: {tokens} tokens, engine.max_model_len is {limit}", tokens=tokens, limit=limit)
