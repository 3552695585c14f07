"""Find the tokens in which a reply gives its answer, where their probabilities are read. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate, islice

from ual_ray.engines.reply_text import read_choice
from ual_ray.engines.thoughts import end_of_thought

# What closes a reply behind its answer: nothing, or JSON and a box.
_CLOSINGS = ("", "}", '"}')
# Spellings of the answer that may be those of its scale; each takes some readings of the whole reply.
MOST_TRIES = 4


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
