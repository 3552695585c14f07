"""GSM8K's two ways to read a number out of an answer (Cobbe et al. 2021, arXiv 2110.14168).

strict: the first number behind "####"; flexible: the last number of the text. Commas, dollar signs and a trailing full stop
do not count. Both give the normalised number as a string, or None where there is none.
"""

from __future__ import annotations

import re

_NUMBER = r"-?\$?-?(?:\d[\d,]*(?:\.\d+)?|\.\d+)"
_STRICT = re.compile(rf"####\s*({_NUMBER})")
_FLEXIBLE = re.compile(rf"({_NUMBER})")


def extract_strict(text: str) -> str | None:
    """Return the first number behind '####', normalised, or None."""
    match = _STRICT.search(text)
    return normalise(match.group(1)) if match else None


def extract_flexible(text: str) -> str | None:
    """Return the last number of the text, normalised, or None."""
    matches = _FLEXIBLE.findall(text)
    return normalise(matches[-1]) if matches else None


def normalise(number: str) -> str:
    """Drop ',', '$', spaces and a trailing '.'; nothing else, so '5.0' and '5' stay different strings."""
    return re.sub(r"[,$\s]", "", number).rstrip(".")
