"""Estimators of a pair's uncertainty: each declares the requests it needs and turns their results into two numbers.

Contract: uncertainty is a float in [0, 1], HIGHER = MORE UNCERTAIN, or None on failure; raw is the estimator's own value.
Pure: no Ray, no vLLM, no MLflow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ual_ray.elicit import prompts
from ual_ray.elicit.requests import Choice, ChoiceResult, Likelihood, LikelihoodResult, Request, Result, turns
from ual_ray.records import Messages


@dataclass(frozen=True)
class Estimate:
    """`uncertainty` in [0, 1], higher = more uncertain; `raw` in the estimator's own unit; None where it failed."""

    uncertainty: float | None
    raw: float | None


MISSING = Estimate(None, None)

# Below this probability of all choices together, their shares are the noise of a tail.
MIN_CHOICE_MASS = 0.01


class Estimator(Protocol):
    """One way to measure uncertainty."""

    name: str

    def requests(self, messages: Messages) -> Sequence[Request]:
        """Declare what has to be asked about a pair."""

    def reduce(self, results: Sequence[Result]) -> Estimate:
        """Turn the results, in the order of the requests, into an estimate."""


class Verbalized:
    """Expected score over the digits: sum of s p(s) / 9, with p renormalised over the ten digits (UAL's elicitation).

    raw: the expected digit, 0 to 9.
    """

    name = "verbalized"

    def requests(self, messages: Messages) -> Sequence[Request]:
        """Ask for the probabilities of the ten digits."""
        return [Choice(prompts.fill(prompts.VERBALIZED, messages), prompts.DIGITS)]

    def reduce(self, results: Sequence[Result]) -> Estimate:
        """Average the digits under their probabilities."""
        (result,) = results
        if not isinstance(result, ChoiceResult):
            return MISSING
        shares = choice_shares(result.log_probabilities)
        if shares is None:
            return MISSING
        expected = sum(digit * share for digit, share in enumerate(shares))
        return Estimate(min(1.0, expected / (len(shares) - 1)), expected)


class PTrue:
    """Probability that the elicitor calls the response false: P(B) / (P(A) + P(B)) (Kadavath et al. 2022, arXiv 2207.05221).

    raw: the log-odds of "false", in nats.
    """

    name = "p_true"

    def requests(self, messages: Messages) -> Sequence[Request]:
        """Ask for the probabilities of yes and no."""
        return [Choice(prompts.fill(prompts.P_TRUE, messages), (prompts.YES, prompts.NO))]

    def reduce(self, results: Sequence[Result]) -> Estimate:
        """Take the share of no."""
        (result,) = results
        if not isinstance(result, ChoiceResult):
            return MISSING
        shares = choice_shares(result.log_probabilities)
        if shares is None:
            return MISSING
        yes, no = result.log_probabilities
        return Estimate(shares[1], no - yes)


class NegativeLogLikelihood:
    """Mean token NLL of the response under the elicitor, squashed by 1 - exp(-NLL): 1 - the geometric mean probability.

    raw: mean NLL in nats per token.
    """

    name = "nll"

    def requests(self, messages: Messages) -> Sequence[Request]:
        """Ask for the NLL of the last reply, which is the pair's response."""
        return [Likelihood(turns(messages), last_reply_only=True)]

    def reduce(self, results: Sequence[Result]) -> Estimate:
        """Average over the tokens."""
        (result,) = results
        if not isinstance(result, LikelihoodResult) or result.target_tokens == 0 or not math.isfinite(result.nll_sum):
            return MISSING
        mean = result.nll_sum / result.target_tokens
        return Estimate(max(0.0, -math.expm1(-mean)), mean)


REGISTRY: dict[str, Estimator] = {estimator.name: estimator for estimator in (Verbalized(), PTrue(), NegativeLogLikelihood())}


def choice_shares(log_probabilities: Sequence[float]) -> list[float] | None:
    """Renormalise over the choices; None when the model puts so little on all of them that it means to say something else."""
    shares = softmax(log_probabilities)
    mass = math.fsum(math.exp(value) for value in log_probabilities)
    return shares if mass >= MIN_CHOICE_MASS else None


def softmax(log_probabilities: Sequence[float]) -> list[float] | None:
    """Renormalise log-probabilities over the given choices; None when none of them has a finite one."""
    highest = max(log_probabilities)
    if not math.isfinite(highest) or any(map(math.isnan, log_probabilities)):
        return None
    weights = [math.exp(value - highest) for value in log_probabilities]
    total = sum(weights)
    return [weight / total for weight in weights]
