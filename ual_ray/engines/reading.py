"""From a result to the probability of each choice, for ratings, verdicts and whatever else is chosen. Pure.

A probability is returned only where the model meant one of the choices; otherwise an Unread states why not.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from ual_ray.engines.reply_text import Unread, read_reply
from ual_ray.engines.requests import ChoiceResult, CompletionResult, Failure, Result

# Raised when replies are read otherwise than before: those of the elicitor, which are kept, are read again, and judges asked.
READING_VERSION = 27
# If a smaller share of the replies can be read, the result is missing.
MIN_READ_SHARE = 0.5
UNUSABLE = Unread("unparsable: the log-probabilities of the choices are not numbers")


def choice_probabilities(result: Result, choices: Sequence[str], min_mass: float) -> list[float] | Unread:
    """Return the probability of each choice, which sum to 1: from log-probabilities, or the shares of sampled replies.

    min_mass: the least probability of all choices together; below it their ratios are noise.
    """
    if isinstance(result, ChoiceResult):
        return _from_log_probabilities(result, min_mass)
    if isinstance(result, CompletionResult):
        return _from_replies(result, choices)
    return Unread(result.reason if isinstance(result, Failure) else f"unparsable: a {type(result).__name__} has no choices")


def _from_log_probabilities(result: ChoiceResult, min_mass: float) -> list[float] | Unread:
    shares = softmax(result.log_probabilities)
    if result.mass < min_mass:  # False for NaN
        return Unread(f"mass: the probability of all choices is {result.mass:.1g}, less than min_choice_mass = {min_mass:g}")
    return UNUSABLE if shares is None else shares


def _from_replies(result: CompletionResult, choices: Sequence[str]) -> list[float] | Unread:
    readings = [read_reply(text, finish, choices) for text, finish in result.replies]
    read = Counter(reading for reading in readings if isinstance(reading, str))
    if not readings or read.total() < MIN_READ_SHARE * len(readings):
        reasons = Counter(reading.reason for reading in readings if isinstance(reading, Unread))
        return Unread(reasons.most_common(1)[0][0] if reasons else "unparsable: there is no reply")
    return [read[choice] / read.total() for choice in choices]


def softmax(log_probabilities: Sequence[float]) -> list[float] | None:
    """Renormalise log-probabilities; None where one is NaN or the largest is not finite."""
    highest = max(log_probabilities)
    if not math.isfinite(highest) or any(map(math.isnan, log_probabilities)):
        return None
    weights = [math.exp(value - highest) for value in log_probabilities]
    total = sum(weights)
    return [weight / total for weight in weights]


def log_sum(values: Sequence[float]) -> float:
    """Add probabilities given as logarithms; -inf for none."""
    highest = max(values, default=-math.inf)
    if not math.isfinite(highest):
        return highest
    return highest + math.log(math.fsum(math.exp(value - highest) for value in values))
