"""What an estimator declares, what it returns, and how replies are sampled.

A row is scored as it is trained: each reply that gets the row's alpha is measured, as a pair of the conversation before it and
the reply, and the row's estimate is the mean over the replies, by their lengths, as alpha counts by token.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar, Self

from ual_ray.columns import REFERENCE, REPLY_WEIGHT, Message, Messages, extra_of, response_of, trained_replies, with_extra
from ual_ray.config import ElicitConfig
from ual_ray.config.elicit import MOST_SAMPLES
from ual_ray.engines.requests import Completion, Request, Result, Turns


@dataclass(frozen=True)
class Estimate:
    """`uncertainty` in [0, 1], higher = more uncertain; `raw` in the estimator's own unit; None where it failed.

    `reason` states why it failed, its kind first ('cut: ...'); None where a Failure among the results states it.
    """

    uncertainty: float | None
    raw: float | None
    reason: str | None = None


MISSING = Estimate(None, None)
# Begins the reason of a row whose estimate nothing may read.
WRONG_ESTIMATE = "estimator: returned"


def missing(reason: str) -> Estimate:
    """Make the estimate of a pair that could not be measured."""
    return Estimate(None, None, reason)


def checked(found: Any) -> Estimate:
    """Return what an estimator returned, if it is an estimate of a number in [0, 1] or of none; else a missing one, and why."""
    if not isinstance(found, Estimate):
        return missing(f"{WRONG_ESTIMATE} {type(found).__name__} in place of an Estimate")
    numbers = (found.uncertainty, found.raw)
    if not all(one is None or (isinstance(one, Real) and math.isfinite(one)) for one in numbers):
        return missing(f"{WRONG_ESTIMATE} uncertainty {found.uncertainty!r}, raw {found.raw!r}: not finite numbers")
    if found.uncertainty is not None and not 0 <= found.uncertainty <= 1:
        return missing(f"{WRONG_ESTIMATE} uncertainty {found.uncertainty:g}, which is not in [0, 1]")
    return found


class Estimator(ABC):
    """One way to measure how uncertain the elicitor is of a pair; subclasses are values (frozen dataclasses) and pure.

    summary: one sentence for the reports. needs_likelihood: it asks for the likelihood of a given text, which a server does
    not return. min_samples: the smallest elicit.samples that it works with. shows_more: its requests show the elicitor the
    reference answer of data.reference and the examples of elicit.examples.
    """

    summary: ClassVar[str]
    needs_likelihood: ClassVar[bool] = False
    min_samples: ClassVar[int] = 1
    shows_more: ClassVar[bool] = False

    @classmethod
    @abstractmethod
    def build(cls, config: ElicitConfig, seed: int) -> Self:
        """Build the estimator from the configuration. Raises UserError for settings that it cannot use."""

    def asked(self, messages: Messages, attempt: int = 0) -> Sequence[Request]:
        """Return the requests about a row, which are those about its pairs."""
        return [request for pair in pairs_of(messages) for request in self.requests(pair, attempt)]

    def estimate(self, results: Sequence[Result], messages: Messages) -> Estimate:
        """Turn the results, in the order of `asked`, into an estimate of the row; none where a reply has none."""
        pairs = pairs_of(messages)
        each = len(results) // len(pairs)
        found = [self.reduce(results[at * each : (at + 1) * each], pair) for at, pair in enumerate(pairs)]
        if len(found) == 1:
            return found[0]
        if without := [estimate for estimate in found if estimate.uncertainty is None]:
            return without[0]
        lengths = [max(1, len(response_of(pair[-1]))) for pair in pairs]
        uncertainty = _mean([estimate.uncertainty for estimate in found], lengths)
        return Estimate(
            None if uncertainty is None else clip(uncertainty), _mean([estimate.raw for estimate in found], lengths)
        )

    @abstractmethod
    def requests(self, messages: Messages, attempt: int = 0) -> Sequence[Request]:
        """Return the requests about a pair; another attempt differs in its seeds alone."""

    @abstractmethod
    def reduce(self, results: Sequence[Result], messages: Messages) -> Estimate:
        """Turn the results, in the order of the requests, into an estimate; MISSING where a result is a Failure."""


def pairs_of(messages: Messages) -> list[Messages]:
    """Return each reply of a row that is trained on, behind what comes before it.

    The reference answer is the last reply's. Weights are left out: a pair is about its reply, whichever others are trained.
    """
    last = len(messages) - 1
    return [
        [_without(message, REPLY_WEIGHT, *([REFERENCE] if at < last else [])) for message in messages[: at + 1]]
        for at in trained_replies(messages)
    ]


def _without(message: Message, *names: str) -> Message:
    extra = extra_of(message)
    if not extra.keys() & {*names}:
        return message
    plain = Message(role=message["role"], content=message["content"])
    return with_extra(plain, **{name: value for name, value in extra.items() if name not in names})


def _mean(values: Sequence[float | None], weights: Sequence[int]) -> float | None:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    return math.fsum(value * weight for value, weight in zip(known, weights, strict=True)) / sum(weights)


def clip(value: float) -> float:
    """Clip rounding errors to [0, 1]."""
    return min(1.0, max(0.0, value))


@dataclass(frozen=True)
class Sampling:
    """`count` replies of at most `max_tokens` tokens, behind a thought of at most `thinking` tokens, at a temperature.

    Every attempt has seeds of its own.
    """

    count: int
    temperature: float
    seed: int = 0
    max_tokens: int = 32
    thinking: int = 0

    @classmethod
    def of_ratings(cls, config: ElicitConfig, seed: int) -> Sampling | None:
        """Return how numbers and letters are sampled; None where their log-probabilities are read instead."""
        if config.mode != "sampled":
            return None
        return cls(config.samples, config.temperature, seed, config.reply_tokens, config.thinking_tokens)

    @classmethod
    def of_answers(cls, config: ElicitConfig, seed: int) -> Sampling:
        """Return how answers to the instruction are sampled."""
        return cls(config.samples, config.temperature, seed, config.max_new_tokens, config.thinking_tokens)

    def ask(self, prompt: Turns, attempt: int, count: int | None = None, choices: tuple[str, ...] = ()) -> Completion:
        """Return the request for the replies to a prompt."""
        count = count or self.count
        # An engine gives the n replies of a request the seeds from its own on: the next attempt starts after all that may be.
        seed = self.seed + attempt * MOST_SAMPLES
        return Completion(prompt, self.max_tokens, self.temperature, count, seed, thinking=self.thinking, choices=choices)
