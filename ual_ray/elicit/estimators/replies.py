"""How the estimators sample replies, and how they read probabilities and parsed values out of replies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ual_ray.config import ElicitConfig
from ual_ray.engines.requests import Completion, Turns

# If all choices together are less probable than this, their relative probabilities are noise.
MIN_CHOICE_MASS = 0.01
# If a smaller share of the replies can be parsed, the row is not scored.
MIN_PARSED_SHARE = 0.5
LONGEST_RATING = 8  # tokens of a sampled number or letter


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
        return cls(config.samples, config.temperature, seed) if config.mode == "sampled" else None

    @classmethod
    def of_answers(cls, config: ElicitConfig, seed: int) -> Sampling:
        """Return how answers to the instruction are sampled."""
        return cls(config.samples, config.temperature, seed, config.max_new_tokens)

    def ask(self, prompt: Turns, attempt: int, count: int | None = None) -> Completion:
        """Return the request for the replies to a prompt."""
        count = count or self.count
        # An engine gives the n replies of a request the seeds from its own on: the next attempt starts after them.
        return Completion(prompt, self.max_tokens, self.temperature, count, self.seed + attempt * count)


def choice_shares(log_probabilities: Sequence[float]) -> list[float] | None:
    """Renormalise over the choices; None where they are improbable together: the model would reply something else."""
    shares = softmax(log_probabilities)
    mass = math.fsum(math.exp(value) for value in log_probabilities)
    return shares if mass >= MIN_CHOICE_MASS else None


def softmax(log_probabilities: Sequence[float]) -> list[float] | None:
    """Renormalise log-probabilities; None where one is NaN or the largest is not finite."""
    highest = max(log_probabilities)
    if not math.isfinite(highest) or any(map(math.isnan, log_probabilities)):
        return None
    weights = [math.exp(value - highest) for value in log_probabilities]
    total = sum(weights)
    return [weight / total for weight in weights]


def mean_of_parsed(values: Sequence[float | None]) -> float | None:
    """Average the values that could be parsed; None where they are fewer than half."""
    parsed = [value for value in values if value is not None]
    return math.fsum(parsed) / len(parsed) if values and len(parsed) >= MIN_PARSED_SHARE * len(values) else None
