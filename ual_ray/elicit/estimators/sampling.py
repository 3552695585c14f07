"""How the estimators sample replies."""

from __future__ import annotations

from dataclasses import dataclass

from ual_ray.config import ElicitConfig
from ual_ray.config.elicit import MOST_SAMPLES
from ual_ray.engines.requests import Completion, Turns


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
