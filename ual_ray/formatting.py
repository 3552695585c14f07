"""Format numbers for display."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MISSING = "–"


def number(value: float | None, digits: int = 2) -> str:
    """Format a number with `digits` decimals; a missing one as a dash."""
    # Adding 0.0 turns -0.0, which rounding makes of small negatives, into 0.0.
    return MISSING if value is None else f"{round(value, digits) + 0.0:.{digits}f}"


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


def duration(seconds: float | None) -> str:
    """Format a duration in its two largest units; a missing one as a dash."""
    if seconds is None:
        return MISSING
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60} min"


def shorten(text: str, limit: int) -> str:
    """Truncate a text for display, with a mark at the end."""
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"


def shorten_message(message: Mapping[str, Any], limit: int) -> dict[str, str]:
    """Truncate role and content of a message for display."""
    return {key: shorten(str(message.get(key) or ""), limit) for key in ("role", "content")}
