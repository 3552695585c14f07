"""Find the tokens in which a reply gives its answer, where their probabilities are read. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from ual_ray.engines.reply_text import read_choice
from ual_ray.engines.thoughts import end_of_thought


def answer_place(tokens: Sequence[str], value: str, choices: Sequence[str], opening: str = "") -> int | None:
    """Return the first token of the answer `value` in a reply; None where no tokens spell it.

    It is the first place behind the thought at which the reply so far reads as the answer: the 1 of "Rating: 1", not that of
    "it has 1 flaw" behind it. tokens: their texts with white space; opening: what the prompt holds of a thought.
    """
    end_of_tokens = len(opening)
    text = opening + "".join(tokens)
    behind = end_of_thought(text)
    for at, token in enumerate(tokens):
        end_of_tokens += len(token)
        if end_of_tokens > behind and (more := _spelled(tokens, at, value)):
            end = end_of_tokens + sum(map(len, tokens[at + 1 : at + more]))
            if read_choice(text[:end], choices) == value:
                return at
    return None


def _spelled(tokens: Sequence[str], at: int, value: str) -> int:
    """Count the tokens from one on that spell a value, white space aside; 0 if they do not, or are part of a number or word."""
    if not tokens[at].strip() or (at and value.isdecimal() and tokens[at - 1][-1:].isdecimal()):
        return 0
    spelled = ""
    for count, token in enumerate(tokens[at:], start=1):
        spelled += token.strip()
        if not value.startswith(spelled) or spelled == value:
            goes_on = "".join(tokens[at + count : at + count + 1])[:1].isalnum()
            return count if spelled == value and not goes_on else 0
    return 0
