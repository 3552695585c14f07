"""Estimators from the likelihood of the response under the elicitor; both share one request."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

from ual_ray.columns import Messages, trained_replies
from ual_ray.config import ElicitConfig
from ual_ray.elicit.estimators.contract import MISSING, Estimate, Estimator, clip, pairs_of
from ual_ray.engines.requests import Likelihood, LikelihoodResult, Request, Result, turns


class _OfResponse(Estimator):
    """Ask for the likelihood of the response, given the instruction."""

    needs_likelihood: ClassVar[bool] = True

    @classmethod
    def build(cls, config: ElicitConfig, seed: int) -> Self:
        """Build the estimator; it has no settings."""
        return cls()

    def asked(self, messages: Messages, attempt: int = 0) -> Sequence[Request]:
        """Ask for the NLL of all replies at once, which is exact and reads the conversation once."""
        pairs = pairs_of(messages)
        if len(pairs) == 1:
            return self.requests(pairs[0], attempt)
        return [Likelihood(turns(messages[: trained_replies(messages)[-1] + 1]))]

    def estimate(self, results: Sequence[Result], messages: Messages) -> Estimate:
        """Reduce the one result."""
        return self.reduce(results, messages)

    def requests(self, messages: Messages, attempt: int = 0) -> Sequence[Request]:
        """Ask for the NLL of the last reply, which is the pair's response."""
        return [Likelihood(turns(messages), last_reply_only=True)]


@dataclass(frozen=True)
class NegativeLogLikelihood(_OfResponse):
    """Mean token NLL of the response, mapped by 1 - exp(-NLL): 1 - the geometric mean probability.

    raw: mean NLL in nats per token.
    """

    summary: ClassVar[str] = "1 - the geometric mean probability of the response's tokens under the elicitor."

    def reduce(self, results: Sequence[Result], messages: Messages) -> Estimate:
        """Average over the tokens."""
        nll = _response_nll(results)
        return MISSING if nll is None else Estimate(clip(-math.expm1(-nll[0] / nll[1])), nll[0] / nll[1])


@dataclass(frozen=True)
class SummedNegativeLogLikelihood(_OfResponse):
    """Summed token NLL S of the response, mapped by S / (1 + S), which keeps long responses apart.

    raw: S in nats. It grows with the response's length; see elicit.length_residual.
    """

    summary: ClassVar[str] = "The summed negative log-likelihood of the response's tokens, squashed into [0, 1]."

    def reduce(self, results: Sequence[Result], messages: Messages) -> Estimate:
        """Map the sum."""
        nll = _response_nll(results)
        return MISSING if nll is None else Estimate(clip(nll[0] / (1 + nll[0])), nll[0])


def _response_nll(results: Sequence[Result]) -> tuple[float, int] | None:
    (result,) = results
    if not isinstance(result, LikelihoodResult) or result.target_tokens == 0 or not math.isfinite(result.nll_sum):
        return None
    return max(0.0, result.nll_sum), result.target_tokens
