"""Group answers of the same meaning: by their final answers, by their words, by their embeddings, or by entailment.

A grouping turns texts into keys once, and compares keys: `group(keys, same)` then gives every text the number of its group.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ual_ray.benchmarks.answer_key import AnswerKey, answer_of, same_answer
from ual_ray.formatting import nfkc

# The blocks of scripts without spaces between words; Korean has spaces.
UNSPACED = (
    "\u0e01-\u0e4e\u0e81-\u0ecd\u0f40-\u0fbc\u1000-\u109d\u1780-\u17d3"  # Thai, Lao, Tibetan, Burmese, Khmer
    "\u3005-\u3007\u3041-\u30ff\u3105-\u312f\u31f0-\u31ff"  # kana, bopomofo
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"  # Han
)
# Vowel signs and accents, which \w leaves out: without them many words of Hindi or Tamil are one.
MARKS = "".join(chr(code) for code in range(0x300, 0x11800) if unicodedata.category(chr(code)).startswith("M"))
WORD = re.compile(rf"[{UNSPACED}]|(?<!\w)-?\d+(?:[.,]\d+)*(?!\w)|(?:[^\W{UNSPACED}]|[{MARKS}])+")


class Grouping(Protocol):
    """Tells texts that mean the same from texts that do not."""

    def keys(self, texts: Sequence[str]) -> list[Any]:
        """Turn each text into what is compared."""

    def same(self, first: Any, second: Any) -> bool:
        """Tell whether two keys mean the same."""


@dataclass(frozen=True)
class AnswerGrouping:
    """Equal final answers; a text without one agrees with nothing, not even with another of its kind."""

    def keys(self, texts: Sequence[str]) -> list[AnswerKey | None]:
        """Extract the final answers."""
        return [answer_of(text) for text in texts]

    def same(self, first: AnswerKey | None, second: AnswerKey | None) -> bool:
        """Compare two final answers."""
        return same_answer(first, second)


@dataclass(frozen=True)
class LexicalGrouping:
    """Word overlap (F1 over words with their counts, i.e. ROUGE-1) of at least `similarity`.

    Scripts that are written without spaces (Han, kana, Thai, Lao, Tibetan, Burmese, Khmer) are compared by their characters.
    """

    similarity: float

    def keys(self, texts: Sequence[str]) -> list[Counter[str]]:
        """Count the words, in one form of each character (full-width and half-width are equal); without any, the characters."""
        plain = [nfkc(text).casefold() for text in texts]
        return [Counter(WORD.findall(text) or "".join(text.split())) for text in plain]

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
