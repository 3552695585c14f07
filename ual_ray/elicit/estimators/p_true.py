"""The probability that the response is true, from a question with two options (Kadavath et al. 2022, arXiv 2207.05221)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ual_ray.columns import Messages
from ual_ray.config import ElicitConfig
from ual_ray.elicit.estimators.contract import Estimate, Estimator, Sampling, clip, missing
from ual_ray.elicit.prompts import FIRST, SECOND, Prompts, load_prompts
from ual_ray.engines.reading import choice_probabilities
from ual_ray.engines.reply_text import Unread
from ual_ray.engines.requests import Choice, ChoiceResult, Request, Result

LETTERS = (FIRST, SECOND)
# Which of the letters means 'no' in each of the two questions.
NO = (1, 0)


@dataclass(frozen=True)
class PTrue(Estimator):
    """P(no) / (P(yes) + P(no)) when asked whether the response is right, averaged over both orders of the options.

    Asking in both orders cancels a preference for one letter. raw: mean log-odds of "no", in nats (sampled: the share of
    "no"); None where not finite.
    """

    summary: ClassVar[str] = "The probability with which the elicitor calls the response false."
    prompts: Prompts
    sampling: Sampling | None = None
    thinking: int = 0
    min_mass: float = 0.01

    @classmethod
    def build(cls, config: ElicitConfig, seed: int) -> PTrue:
        """Load the prompts."""
        sampling = Sampling.of_ratings(config, seed)
        return cls(load_prompts(config.templates), sampling, config.thinking_tokens, config.min_choice_mass)

    def requests(self, messages: Messages, attempt: int = 0) -> Sequence[Request]:
        """Ask for the verdict with 'yes' as option A, and with 'yes' as option B."""
        both = [self.prompts.verdict(messages, yes_first=yes_first) for yes_first in (True, False)]
        if self.sampling is not None:
            half = math.ceil(self.sampling.count / 2)
            return [self.sampling.ask(prompt, attempt, half, LETTERS) for prompt in both]
        return [Choice(prompt, LETTERS, self.thinking) for prompt in both]

    def reduce(self, results: Sequence[Result], messages: Messages) -> Estimate:
        """Average the shares of 'no'; both orders are needed."""
        # In the second question the letters are swapped: A is 'no'.
        shares = []
        for result, no in zip(results, NO, strict=True):
            read = choice_probabilities(result, LETTERS, self.min_mass)
            if isinstance(read, Unread):
                return missing(read.reason)
            shares.append(read[no])
        share, odds = clip(math.fsum(shares) / 2), _mean_log_odds(results)
        raw = share if odds is None else odds
        return Estimate(share, raw if math.isfinite(raw) else None)


def _mean_log_odds(results: Sequence[Result]) -> float | None:
    """Average the log-odds of 'no' over both orders; infinite or NaN where a letter is impossible, None for sampled letters."""
    total = 0.0
    for result, no in zip(results, NO, strict=True):
        if not isinstance(result, ChoiceResult):
            return None
        total += result.log_probabilities[no] - result.log_probabilities[1 - no]
    return total / 2
