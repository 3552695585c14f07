"""When do two answers say the same? By their final answers, by their words, or by their embeddings.

A grouping turns texts into keys once, and compares keys: `group(keys, same)` then gives every text the number of its group.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, Protocol

from ual_ray.evaluate.benchmarks.gsm8k import extract_flexible, extract_strict

ANSWER_IS = re.compile(r"(?i)the (?:final )?answer is:?\s*(.+)")
BOXED = "\\boxed{"
# Numbers beyond are compared as they are written: written out, 1e999999 would be a megabyte.
LARGEST_EXPONENT = 27


class Grouping(Protocol):
    """Tells texts that mean the same from texts that do not."""

    def keys(self, texts: Sequence[str]) -> list[Any]:
        """Turn each text into what is compared."""

    def same(self, first: Any, second: Any) -> bool:
        """Tell whether two keys mean the same."""


@dataclass(frozen=True)
class AnswerGrouping:
    """Equal final answers; a text without one agrees with nothing, not even with another of its kind."""

    def keys(self, texts: Sequence[str]) -> list[str | None]:
        """Extract the final answers."""
        return [final_answer(text) or _last_number(text) for text in texts]

    def same(self, first: str | None, second: str | None) -> bool:
        """Compare two final answers."""
        return first is not None and first == second


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


def final_answer(text: str) -> str | None:
    r"""Extract a marked final answer, normalised: '#### n', '\boxed{...}', 'The answer is: ...'; None where none is marked."""
    if (number := extract_strict(text)) is not None:
        return normalise(number)
    if (boxed := _last_boxed(text)) is not None:
        return normalise(boxed) or None
    found = ANSWER_IS.findall(text)
    return normalise(found[-1]) or None if found else None


def normalise(answer: str) -> str:
    """Write an answer so that equal ones are equal strings: no blanks, dollars, thousands commas, final stop; 72.0 is 72."""
    text = re.sub(r"[\s$]", "", answer).replace(",", "").rstrip(".").lower()
    try:
        number = Decimal(text)
    except InvalidOperation:
        return text
    if not number.is_finite() or abs(number.adjusted()) > LARGEST_EXPONENT:
        return text
    return f"{number.normalize():f}" if number else "0"


def _last_number(text: str) -> str | None:
    number = extract_flexible(text)
    return None if number is None else normalise(number)


def _last_boxed(text: str) -> str | None:
    start = text.rfind(BOXED)
    if start < 0:
        return None
    depth = 1
    for end in range(start + len(BOXED), len(text)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if depth == 0:
            return text[start + len(BOXED) : end]
    return None
