"""The probability that the response is true, from a question with two options (Kadavath et al. 2022, arXiv 2207.05221)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ual_ray.columns import Messages
from ual_ray.config import ElicitConfig
from ual_ray.elicit.estimators.contract import MISSING, Estimate, Estimator, clip
from ual_ray.elicit.estimators.replies import Sampling, mean_of_parsed
from ual_ray.elicit.prompts import FIRST, SECOND, Prompts, load_prompts
from ual_ray.engines.readings import choice_shares, read_letter
from ual_ray.engines.requests import Choice, ChoiceResult, CompletionResult, Request, Result


@dataclass(frozen=True)
class PTrue(Estimator):
    """P(no) / (P(yes) + P(no)) when asked whether the response is right, averaged over both orders of the options.

    Asking in both orders cancels a preference for one letter. raw: mean log-odds of "no", in nats (sampled: the share of
    "no"); None where not finite.
    """

    summary: ClassVar[str] = "The probability with which the elicitor calls the response false."
    prompts: Prompts
    sampling: Sampling | None = None

    @classmethod
    def build(cls, config: ElicitConfig, seed: int) -> PTrue:
        """Load the prompts."""
        return cls(load_prompts(config.templates), Sampling.of_ratings(config, seed))

    def requests(self, messages: Messages, attempt: int = 0) -> Sequence[Request]:
        """Ask for the verdict with 'yes' as option A, and with 'yes' as option B."""
        both = [self.prompts.verdict(messages, yes_first=yes_first) for yes_first in (True, False)]
        if self.sampling is not None:
            half = math.ceil(self.sampling.count / 2)
            return [self.sampling.ask(prompt, attempt, half) for prompt in both]
        return [Choice(prompt, (FIRST, SECOND)) for prompt in both]

    def reduce(self, results: Sequence[Result], messages: Messages) -> Estimate:
        """Average the shares of 'no'; both orders are needed."""
        # In the second question the letters are swapped: A is 'no'.
        verdicts = [_share_of_no(result, no) for result, no in zip(results, (SECOND, FIRST), strict=True)]
        if any(verdict is None for verdict in verdicts):
            return MISSING
        shares, odds = zip(*(verdict for verdict in verdicts if verdict is not None), strict=True)
        raw = sum(odds) / 2  # infinite, or NaN, where a letter is impossible
        return Estimate(clip(math.fsum(shares) / 2), raw if math.isfinite(raw) else None)


def _share_of_no(result: Result, no: str) -> tuple[float, float] | None:
    """Return the share and the log-odds (sampled: the share again) of the letter that means 'no'."""
    if isinstance(result, ChoiceResult) and (shares := choice_shares(result.log_probabilities)) is not None:
        first, second = result.log_probabilities
        return (shares[1], second - first) if no == SECOND else (shares[0], first - second)
    if isinstance(result, CompletionResult):
        letters = [text and read_letter(text, (FIRST, SECOND)) for text in result.whole]
        share = mean_of_parsed([float(letter == no) if letter else None for letter in letters])
        return None if share is None else (share, share)
    return None
