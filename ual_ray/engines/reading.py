"""From a result to the probability of each choice, for ratings, verdicts and whatever else is chosen. Pure.

A probability is returned only where the model meant one of the choices; otherwise an Unread states why not.
`answer_place` finds the tokens in which a reply gives its answer, where their probabilities are read.
"""

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate, islice

from ual_ray.engines.reply_text import Unread, read_choice, read_reply
from ual_ray.engines.requests import ChoiceResult, CompletionResult, Failure, Result
from ual_ray.engines.thoughts import end_of_thought

# Raised when replies are read otherwise than before: those of the elicitor, which are kept, are read again, and judges asked.
READING_VERSION = 33
# If a smaller share of the replies can be read, the result is missing.
MIN_READ_SHARE = 0.5
UNUSABLE = Unread("unparsable: the log-probabilities of the choices are not numbers")
# What closes a reply behind its answer: nothing, or JSON and a box.
_CLOSINGS = ("", "}", '"}')
# Spellings of the answer that may be those of its scale; each takes some readings of the whole reply.
MOST_TRIES = 4


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


def answer_place(tokens: Sequence[str], value: str, choices: Sequence[str], opening: str = "") -> int | None:
    """Return the first token of the answer `value` in a reply; None where no tokens spell it.

    It is the first place behind the thought without which the reply gives another answer, and up to which it reads as this one:
    the 1 of "Rating: 1", not that of "1. It has 1 flaw" before it or behind. tokens: their texts with white space; opening:
    what the prompt holds of a thought.
    """
    text = opening + "".join(tokens)
    ends = [*accumulate(map(len, tokens), initial=len(opening))]
    behind = end_of_thought(text)
    places = [
        (at, ends[at], ends[at + more])
        for at in range(len(tokens))
        if ends[at + 1] > behind and (more := _spelled(tokens, at, value))
    ]
    other = next(choice for choice in choices if choice != value)

    def is_lost(last: int) -> bool:
        """Whether the reply no longer reads as the answer once its first spellings are others."""
        changed, done = "", 0
        for _, start, end in places[: last + 1]:
            changed, done = changed + text[done:start] + text[start:end].replace(value, other), end
        return read_choice(changed + text[done:], choices) != value

    for _ in range(MOST_TRIES):
        found = bisect_left(range(len(places)), True, key=is_lost)
        if found == len(places):
            break
        at, _, end = places[found]
        if any(read_choice(text[:end] + closing, choices) == value for closing in _CLOSINGS):
            return at
        places = places[found + 1 :]  # that was of the scale: "Rating (0-9): 9"
    return None


def _spelled(tokens: Sequence[str], at: int, value: str) -> int:
    """Count the tokens from one on that spell a value, white space aside; 0 if they do not, or are part of a number or word."""
    if not tokens[at].strip() or (at and value.isdecimal() and tokens[at - 1][-1:].isdecimal()):
        return 0
    spelled = ""
    for count, token in enumerate(islice(tokens, at, None), start=1):
        spelled += token.strip()
        if not value.startswith(spelled) or spelled == value:
            goes_on = "".join(tokens[at + count : at + count + 1])[:1].isalnum()
            return count if spelled == value and not goes_on else 0
    return 0
