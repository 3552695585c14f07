"""The rating that the elicitor gives its own uncertainty, as in UAL (arXiv 2406.04854)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ual_ray.columns import Messages
from ual_ray.config import ElicitConfig
from ual_ray.elicit.estimators.contract import MISSING, Estimate, Estimator, clip
from ual_ray.elicit.estimators.replies import Sampling, mean_of_parsed
from ual_ray.elicit.prompts import Prompts, load_prompts
from ual_ray.engines.readings import choice_shares, read_number
from ual_ray.engines.requests import Choice, ChoiceResult, CompletionResult, Request, Result


@dataclass(frozen=True)
class Verbalized(Estimator):
    """Expected rating on a scale, (sum of s p(s) - lowest) / (highest - lowest), p renormalised over the scale.

    With `sampling` the expectation is the mean of sampled numbers instead. raw: the expected number.
    """

    summary: ClassVar[str] = "The number that the elicitor gives when asked how uncertain it is of the response."
    prompts: Prompts
    lowest: int
    highest: int
    sampling: Sampling | None = None

    @classmethod
    def build(cls, config: ElicitConfig, seed: int) -> Verbalized:
        """Read the scale."""
        lowest, highest = map(int, config.scale.split("-"))
        return cls(load_prompts(config.templates), lowest, highest, Sampling.of_ratings(config, seed))

    def requests(self, messages: Messages, attempt: int = 0) -> Sequence[Request]:
        """Ask for the probabilities of the numbers, or for sampled numbers."""
        prompt = self.prompts.rating(messages, str(self.lowest), str(self.highest))
        if self.sampling is not None:
            return [self.sampling.ask(prompt, attempt)]
        return [Choice(prompt, tuple(str(number) for number in range(self.lowest, self.highest + 1)))]

    def reduce(self, results: Sequence[Result], messages: Messages) -> Estimate:
        """Average the numbers."""
        (result,) = results
        expected: float | None = None
        if isinstance(result, ChoiceResult) and (shares := choice_shares(result.log_probabilities)) is not None:
            expected = math.fsum((self.lowest + step) * share for step, share in enumerate(shares))
        if isinstance(result, CompletionResult):
            expected = mean_of_parsed(
                [None if text is None else read_number(text, self.lowest, self.highest) for text in result.whole]
            )
        if expected is None:
            return MISSING
        return Estimate(clip((expected - self.lowest) / (self.highest - self.lowest)), expected)
