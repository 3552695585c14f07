r"""Final answers as keys that are equal where the answers are: 72 clips = 72.0, 1/2 = \frac{1}{2} = 0.5, **18** = $18 per day.

Numbers are compared by value, other mathematics by math-verify, all else as text. Pure but for math-verify's process.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from ual_ray.benchmarks.math_check import Checker
from ual_ray.data.answers import ANSWER_IS, BOXED, until_closed

_DIGITS = r"\d+(?:(?:,|\{,\})\d{3})*(?:\.\d+)?|\.\d+"
_PART = r"\\[dt]?frac\s*(?:\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}|(\d)(\d))"
_NUMBER = rf"(?P<sign>[-−+]?)\s*\\?[$€£]?\s*(?P<sign2>[-−]?)(?:{_PART}|(?P<top>{_DIGITS})(?:\s*/\s*(?P<bottom>\d+))?)"
# A number and its unit: a word, which a single letter is not (2x is not 2); "18 and 20" is two numbers.
_WITH_UNIT = re.compile(
    rf"(?:about|approximately|around|exactly|only)?\s*{_NUMBER}\s*(?:\\?%|°\w?|(?:\\text\{{)?\s*(?!and\b|or\b|to\b|.*\b(?:and|or)\s+\$?\d)[A-Za-z]{{2,}}\b[^\d=^\\]*.*)?",
    re.IGNORECASE | re.DOTALL,
)
_LAST = re.compile(rf"(?<![\w.^]){_NUMBER}(?![\w^])")
_HASHES = re.compile(r"####[ \t]*([^\n]+)")
_MARKUP = re.compile(r"[*_`]{1,3}|\\boxed|\\\(|\\\)|\\\[|\\\]|\$\$")
_WORD = re.compile(r"(?i)[a-z]|yes|no|true|false|none")
# A word that is not a function's name: the text is a sentence.
_COUNTED = re.compile(r"[-+$€£]?\d+\s+[A-Za-z]")
_PROSE = re.compile(r"(?<!\\)\b(?!sqrt|frac|text|pi|sin|cos|tan|log|ln)[A-Za-z]{3,}")
_MATHS = re.compile(r"[\\^=+*/(){}\d]")
LONGEST_MARKED = 4  # words
LARGEST_ANSWER = 200  # characters of what is worth comparing as mathematics


@dataclass(frozen=True)
class AnswerKey:
    """An answer as text without blanks, and its value if it is a number."""

    text: str
    value: Fraction | None


def marked_answer(text: str) -> AnswerKey | None:
    r"""Read a marked final answer: '#### n', '\boxed{...}', 'The answer is n'; None where none is marked.

    "The answer is that it depends" marks none: behind the words an answer is a number, mathematics or a single word.
    """
    text = unicodedata.normalize("NFKC", text)
    if (found := _HASHES.search(text)) and len(found[1].split()) <= LONGEST_MARKED:  # a longer one is a heading
        return _short(found[1], after_colon=False)
    start = text.rfind(BOXED)
    if start >= 0 and (boxed := until_closed(text, start + len(BOXED))):
        return _key(boxed)
    if answers := ANSWER_IS.findall(text):
        return _short(answers[-1], after_colon=re.search(r"(?i)answer is:", text) is not None)
    return None


def answer_of(text: str) -> AnswerKey | None:
    """Read the marked final answer, or else the last number of a text; None without either."""
    if (marked := marked_answer(text)) is not None:
        return marked
    numbers = [*_LAST.finditer(_cleaned(text))]
    return _key(numbers[-1][0]) if numbers else None


def same_answer(first: AnswerKey | None, second: AnswerKey | None) -> bool:
    """Whether two answers are equal; a text without one equals nothing, not even another of its kind."""
    if first is None or second is None:
        return False
    if first.value is not None and second.value is not None:
        return first.value == second.value
    if first.text == second.text:
        return True
    return _is_maths(first) and _is_maths(second) and _equal_maths(first.text, second.text)


def _key(answer: str) -> AnswerKey | None:
    text = _cleaned(answer).rstrip(" .")
    value = _value(text)
    plain = re.sub(r"[\s$]", "", text).lower()
    plain = re.sub(r"\(([a-z]+)\)", r"\1", plain) if plain.count("(") == 1 and plain.startswith("(") else plain
    return AnswerKey(plain, value) if plain else None


def _short(answer: str, after_colon: bool) -> AnswerKey | None:
    """Make the key of what follows 'the answer is' if that is an answer and not the start of a sentence."""
    sentence = re.split(r"(?<=[^\d])\.\s|\n", _cleaned(answer) + " ")[0].strip(" .")
    words = sentence.split()
    if not words:
        return None
    if (
        _value(sentence) is not None
        or _COUNTED.match(sentence)
        or (len(words) == 1 and (after_colon or _WORD.fullmatch(sentence.strip("()"))))
    ):
        return _key(sentence)
    mathematical = _MATHS.search(sentence) and not _PROSE.search(sentence)
    return _key(sentence) if mathematical else None


def _cleaned(text: str) -> str:
    return _MARKUP.sub("", unicodedata.normalize("NFKC", text)).replace("{,}", ",").strip()


def _value(text: str) -> Fraction | None:
    """Read a number with or without its unit; None for all else."""
    found = _WITH_UNIT.fullmatch(re.sub(r"^[A-Za-z]\s*=\s*", "", text))
    if found is None:
        return None
    tops = [part for part in (found[3], found[5], found["top"]) if part]
    bottom = next((part for part in (found[4], found[6], found["bottom"]) if part), "1")
    if not tops or len(tops[0] + bottom) > LARGEST_ANSWER or int(bottom) == 0:
        return None
    value = Fraction(tops[0].replace(",", "")) / int(bottom)
    return -value if "-" in (sign := (found["sign"] + found["sign2"]).replace("−", "-")) and len(sign) == 1 else value


def _is_maths(key: AnswerKey) -> bool:
    return len(key.text) <= LARGEST_ANSWER and _MATHS.search(key.text) is not None


@lru_cache(maxsize=10_000)
def _equal_maths(first: str, second: str) -> bool:
    return _checker()(first, f"\\boxed{{{second}}}")[1]


@lru_cache(maxsize=1)
def _checker() -> Checker:
    return Checker()
