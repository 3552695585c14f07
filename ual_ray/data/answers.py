"""Final answers: extraction from a text, and normalization, so that equal answers are equal strings.

strict: the first number behind '####'; flexible: the last number of the text (GSM8K, Cobbe et al. 2021, arXiv 2110.14168).
"""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal, InvalidOperation
from fractions import Fraction

# A fraction, but no part of a date.
_NUMBER = r"-?\$?-?(?:(?<![\d/])\d+/\d+(?![\d/])|\d[\d,]*(?:\.\d+)?|\.\d+)"
_FRACTION = re.compile(r"\\[dt]?frac\s*\{\s*(-?\d+)\s*\}\s*\{\s*(\d+)\s*\}")
_STRICT = re.compile(rf"####\s*({_NUMBER})")
_FLEXIBLE = re.compile(rf"({_NUMBER})")
ANSWER_IS = re.compile(r"(?i)the (?:final )?answer is:?\s*(.+)")
BOXED = "\\boxed{"


# Larger exponents are compared as written: in full, 1e999999 would be a megabyte.
LARGEST_EXPONENT = 27


def final_answer(text: str) -> str | None:
    r"""Extract a marked final answer, normalised: '#### n', '\boxed{...}', 'The answer is: ...'; None where none is marked."""
    marked = written_answer(text)
    return None if marked is None else normalise_answer(marked) or None


def written_answer(text: str) -> str | None:
    """Extract a marked final answer as it is written; None where none is marked."""
    if (number := extract_strict(text)) is not None:
        return number
    if (boxed := _last_boxed(text)) is not None:
        return boxed
    found = ANSWER_IS.findall(text)
    return found[-1] if found else None


def normalise_answer(answer: str) -> str:
    """Write an answer so that equal ones are equal strings: no blanks, dollars, thousands commas, final stop; 72.0 is 72."""
    text = re.sub(r"[\s$]", "", answer).replace(",", "").rstrip(".").lower()
    try:
        number = Decimal(text)
    except InvalidOperation:
        return text
    if not number.is_finite() or abs(number.adjusted()) > LARGEST_EXPONENT:
        return text
    return f"{number.normalize():f}" if number else "0"


def last_number(text: str) -> str | None:
    """Return the last number of the text, normalised as an answer; None without."""
    number = extract_flexible(text)
    return None if number is None else normalise_answer(number)


def _last_boxed(text: str) -> str | None:
    start = text.rfind(BOXED)
    return until_closed(text, start + len(BOXED)) if start >= 0 else None


def until_closed(text: str, start: int) -> str | None:
    """Return the text from `start`, inside a brace, to the brace that closes it; None where none does."""
    depth = 1
    for end in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if depth == 0:
            return text[start:end]
    return None


def extract_strict(text: str) -> str | None:
    """Return the first number behind '####', normalised, or None."""
    match = _STRICT.search(_plain(text))
    return normalise_number(match.group(1)) if match else None


def extract_flexible(text: str) -> str | None:
    """Return the last number of the text, normalised, or None."""
    matches = _FLEXIBLE.findall(_plain(text))
    return normalise_number(matches[-1]) if matches else None


def normalise_number(number: str) -> str:
    """Drop ',', '$', spaces and a trailing '.'; nothing else, so '5.0' and '5' stay different strings."""
    return re.sub(r"[,$\s]", "", number).rstrip(".")


def same_number(first: str | None, second: str | None) -> bool:
    """Tell whether two extracted numbers have one value: 18.00 is 18, and 1/2 is 0.5."""
    if first is None or second is None:
        return False
    try:
        return Fraction(first) == Fraction(second)
    except (ValueError, ZeroDivisionError):
        return first == second


def _plain(text: str) -> str:
    r"""Write digits of other scripts and widths, 12{,}000 and \frac{1}{2} in ASCII."""
    text = unicodedata.normalize("NFKC", text).replace("{,}", ",").replace("\N{FRACTION SLASH}", "/")
    return _FRACTION.sub(r"\1/\2", text)
