"""Format numbers for display, and texts for comparison."""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

MISSING = "–"
GIB = 2**30
LONGEST_LIST, LONGEST_NAME = 20, 60
MOST_DECIMALS = 12
# Marks without a letter between them, such as accents; and parts of a text with a limited number of them.
_MARKS = re.compile(r"[^\w\s\x00-\x7f]{100}")
_PARTS = re.compile(r"[\w\s\x00-\x7f]+[^\w\s\x00-\x7f]{0,100}|[^\w\s\x00-\x7f]{1,100}")


def number(value: float | None, digits: int = 2) -> str:
    """Format a number with `digits` decimals; a missing one as a dash."""
    # Adding 0.0 turns -0.0, which rounding makes of small negatives, into 0.0.
    return MISSING if value is None else f"{round(value, digits) + 0.0:.{digits}f}"


def decimals(low: float, high: float, mark: float, digits: int) -> int:
    """Return the decimals, `digits` or more, with which an interval that does not hold a mark is not written as if it did."""
    nearest = min(low, high, key=lambda end: abs(end - mark))
    while digits < MOST_DECIMALS and not low <= mark <= high and round(nearest, digits) == round(mark, digits):
        digits += 1
    return digits


def percent(level: float) -> str:
    """Format a level of intervals in [0, 1] with all its digits: "95%", "98.3%"."""
    return f"{100 * level:.{MOST_DECIMALS}g}%"


def share(value: float | None) -> str:
    """Format a share as a percentage, never rounded to 0% or 100% unless exact; a missing one as a dash."""
    if value is None:
        return MISSING
    if 0 < value < 0.005:
        return "<1%"
    return ">99%" if 0.995 <= value < 1 else f"{value:.0%}"


def count(value: float | None) -> str:
    """Format an integer with thousands separators; a missing one as a dash."""
    return MISSING if value is None else f"{value:,.0f}"


def plural(value: float | None, noun: str) -> str:
    """Format a count and what is counted: "1 row", "2,000 rows"."""
    return f"{count(value)} {noun}{'s' * (count(value) != '1')}"


def amount(value: float) -> str:
    """Format a number with three digits and K, M or B."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.0f}"


def gib(size: float) -> str:
    """Format bytes in GiB, small values in MiB."""
    return f"{size / GIB:.2f} GiB" if size >= GIB / 10 else f"{size / 2**20:.1f} MiB"


def count_list(counts: Mapping[str, int]) -> str:
    """Format counts by name, such as "141 train, 22 validation"; many or long names are cut."""
    return shorten_list([f"{number} {shorten(name, LONGEST_NAME)}" for name, number in counts.items()])


def shorten_list(names: Sequence[str]) -> str:
    """Join names by commas; of more than LONGEST_LIST, the first ones and the number of the others."""
    rest = [f"and {len(names) - LONGEST_LIST} others"] if len(names) > LONGEST_LIST else []
    return ", ".join([*names[:LONGEST_LIST], *rest])


def duration(seconds: float | None) -> str:
    """Format a duration in its two largest units; a missing one as a dash."""
    if seconds is None:
        return MISSING
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 48 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400:,} days {whole % 86400 // 3600} h"


def nfkc(text: str) -> str:
    """Normalize a text (NFKC), in linear time: Python sorts a run of combining marks in quadratic time."""
    if text.isascii():
        return text
    parts = _PARTS.findall(text) if _MARKS.search(text) else [text]
    return "".join([unicodedata.normalize("NFKC", part) for part in parts])


def shorten(text: str, limit: int) -> str:
    """Truncate a text for display, with a mark at the end."""
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"


def shorten_message(message: Mapping[str, Any], limit: int) -> dict[str, str]:
    """Truncate role and content of a message for display."""
    return {key: shorten(str(message.get(key) or ""), limit) for key in ("role", "content")}
