"""Group answers of the same meaning: by their final answers, by their words, or by their embeddings.

A grouping turns texts into keys once, and compares keys: `group(keys, same)` then gives every text the number of its group.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol

from ual_ray.data.answers import last_number, normalise_answer, written_answer

QUANTITY = re.compile(r"(?<![\w.,/])[-+]?\s*(?:\d{1,15}\s*/\s*\d{1,15}|\d[\d,]{0,30}(?:\.\d{1,30})?|\.\d{1,30})(?![\d/])")


class Grouping(Protocol):
    """Tells texts that mean the same from texts that do not."""

    def keys(self, texts: Sequence[str]) -> list[Any]:
        """Turn each text into what is compared."""

    def same(self, first: Any, second: Any) -> bool:
        """Tell whether two keys mean the same."""


@dataclass(frozen=True)
class AnswerGrouping:
    """Equal final answers, numbers by value; a text without one agrees with nothing, not even with another of its kind."""

    def keys(self, texts: Sequence[str]) -> list[Fraction | str | None]:
        """Extract the final answers."""
        return [answer_key(text) for text in texts]

    def same(self, first: Fraction | str | None, second: Fraction | str | None) -> bool:
        """Compare two final answers."""
        return first is not None and first == second


def answer_key(text: str) -> Fraction | str | None:
    """Return what a text's final answer is compared by: the value of its one number, else its words; None without an answer."""
    marked = written_answer(text)
    if marked is not None:
        value = quantity(marked)
        return value if value is not None else normalise_answer(marked) or None
    number = last_number(text)
    return None if number is None else quantity(number)


def quantity(answer: str) -> Fraction | None:
    """Read the one number of an answer, with or without units ("18 dollars", "1/2"), LaTeX or plain; None for others."""
    text = unicodedata.normalize("NFKC", answer).replace("{,}", "").replace("\u2212", "-")
    text = re.sub(r"\\[dt]?frac\s*\{\s*(-?\d+)\s*\}\s*\{\s*(\d+)\s*\}", r"\1/\2", text)
    text = re.sub(r"\\(?:text|mathrm|mathbf|textbf)\s*\{([^{}]*)\}|\\[a-zA-Z]+|[*_`$\\{}]", r" \1 ", text)
    numbers = QUANTITY.findall(text)
    # Two numbers are no one quantity, and a number next to a lone letter is a term: 2x.
    if len(numbers) != 1 or re.search(r"\d[a-zA-Z](?![a-zA-Z])|\b[a-zA-Z]\d", text):
        return None
    try:
        return Fraction(re.sub(r"[,\s]", "", numbers[0]))
    except (ValueError, ZeroDivisionError):
        return None


@dataclass(frozen=True)
class LexicalGrouping:
    """Word overlap (F1 over words with their counts, i.e. ROUGE-1) of at least `similarity`."""

    similarity: float

    def keys(self, texts: Sequence[str]) -> list[Counter[str]]:
        """Count the words."""
        return [Counter(re.findall(r"\w+", text.lower())) for text in texts]

    def same(self, first: Counter[str], second: Counter[str]) -> bool:
        """Compare two word counts."""
        return word_overlap(first, second) >= self.similarity


def word_overlap(first: Counter[str], second: Counter[str]) -> float:
    """F1 of the words that two texts share, in [0, 1]; two empty texts are the same."""
    total = first.total() + second.total()
    return 2 * (first & second).total() / total if total else 1.0


def group(keys: Sequence[Any], same: Callable[[Any, Any], bool]) -> list[int]:
    """Number the groups: each key joins the first group whose first member is the same."""
    founders: list[Any] = []
    numbers = []
    for key in keys:
        number = next((index for index, founder in enumerate(founders) if same(founder, key)), len(founders))
        if number == len(founders):
            founders.append(key)
        numbers.append(number)
    return numbers
