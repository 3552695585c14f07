"""Ratings that the elicitor gives: how likely an error is (as in UAL, arXiv 2406.04854), and how many responses would do.

Two questions, as they have two answers: a chat reply is hardly ever wrong and has countless equals, a sum is the reverse.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

from ual_ray.columns import Messages
from ual_ray.config import ElicitConfig
from ual_ray.elicit.estimators.contract import Estimate, Estimator, Sampling, clip, missing
from ual_ray.elicit.prompts import Prompts, load_prompts
from ual_ray.engines.reading import choice_probabilities
from ual_ray.engines.reply_text import Unread
from ual_ray.engines.requests import Choice, Request, Result


@dataclass(frozen=True)
class Verbalized(Estimator):
    """Expected rating on a scale, (sum of s p(s) - lowest) / (highest - lowest), p renormalised over the scale.

    With `sampling` the expectation is the mean of sampled numbers instead. raw: the expected number. Subclasses name the
    `question`, a key of prompts.yaml whose highest number is the most uncertain.
    """

    question: ClassVar[str]
    shows_more: ClassVar[bool] = True
    prompts: Prompts
    lowest: int
    highest: int
    sampling: Sampling | None = None
    thinking: int = 0
    min_mass: float = 0.01

    @classmethod
    def build(cls, config: ElicitConfig, seed: int) -> Self:
        """Read the scale."""
        lowest, highest = map(int, config.scale.split("-"))
        sampling = Sampling.of_ratings(config, seed)
        prompts = load_prompts(config.templates, config.examples)
        prompts.check_examples(cls.question, lowest, highest)
        return cls(prompts, lowest, highest, sampling, config.thinking_tokens, config.min_choice_mass)

    @property
    def numbers(self) -> tuple[str, ...]:
        """The numbers of the scale, as text."""
        return tuple(str(number) for number in range(self.lowest, self.highest + 1))

    def requests(self, messages: Messages, attempt: int = 0) -> Sequence[Request]:
        """Ask for the probabilities of the numbers, or for sampled numbers."""
        prompt = self.prompts.rating(self.question, messages, str(self.lowest), str(self.highest))
        if self.sampling is not None:
            return [self.sampling.ask(prompt, attempt, choices=self.numbers)]
        return [Choice(prompt, self.numbers, self.thinking)]

    def reduce(self, results: Sequence[Result], messages: Messages) -> Estimate:
        """Average the numbers."""
        (result,) = results
        shares = choice_probabilities(result, self.numbers, self.min_mass)
        if isinstance(shares, Unread):
            return missing(shares.reason)
        expected = math.fsum((self.lowest + step) * share for step, share in enumerate(shares))
        return Estimate(clip((expected - self.lowest) / (self.highest - self.lowest)), expected)


class VerbalizedError(Verbalized):
    """How likely the response is in error."""

    question: ClassVar[str] = "verbalized_error"
    summary: ClassVar[str] = "The number that the elicitor gives when asked how likely the response is wrong."


class VerbalizedDiversity(Verbalized):
    """How many very different responses would be as good."""

    question: ClassVar[str] = "verbalized_diversity"
    summary: ClassVar[str] = "The number that the elicitor gives when asked how many different responses would be as good."
