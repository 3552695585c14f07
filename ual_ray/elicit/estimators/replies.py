"""How the estimators sample replies, and what they make of those that could be read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ual_ray.config import ElicitConfig
from ual_ray.engines.requests import Completion, Turns

# If a smaller share of the replies can be parsed, the row is not scored.
MIN_PARSED_SHARE = 0.5
# Tokens of a sampled number or letter with its label; a reply that is longer is cut, and not read.
LONGEST_RATING = 16


@dataclass(frozen=True)
class Sampling:
    """`count` replies of at most `max_tokens` tokens at a temperature; every attempt has seeds of its own."""

    count: int
    temperature: float
    seed: int = 0
    max_tokens: int = LONGEST_RATING

    @classmethod
    def of_ratings(cls, config: ElicitConfig, seed: int) -> Sampling | None:
        """Return how numbers and letters are sampled; None where their log-probabilities are read instead."""
        room = LONGEST_RATING + config.thinking_tokens
        return cls(config.samples, config.temperature, seed, room) if config.mode == "sampled" else None

    @classmethod
    def of_answers(cls, config: ElicitConfig, seed: int) -> Sampling:
        """Return how answers to the instruction are sampled."""
        return cls(config.samples, config.temperature, seed, config.max_new_tokens)

    def ask(self, prompt: Turns, attempt: int, count: int | None = None) -> Completion:
        """Return the request for the replies to a prompt."""
        count = count or self.count
        # An engine gives the n replies of a request the seeds from its own on: the next attempt starts after them.
        return Completion(prompt, self.max_tokens, self.temperature, count, self.seed + attempt * count)


def mean_of_parsed(values: Sequence[float | None]) -> float | None:
    """Average the values that could be parsed; None where they are fewer than half."""
    parsed = [value for value in values if value is not None]
    return math.fsum(parsed) / len(parsed) if values and len(parsed) >= MIN_PARSED_SHARE * len(values) else None
