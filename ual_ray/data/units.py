"""Units of measure and money, which make equal numbers different answers; what is counted, such as clips, does not."""

from __future__ import annotations

import re

# Each unit with its other spellings, without the s of the plural.
UNITS = {
    spelling: unit
    for unit, *others in (
        *(
            ("am",),
            ("pm",),
            ("ms", "millisecond"),
            ("second", "sec", "s"),
            ("minute", "min"),
            ("hour", "hr", "h"),
            ("day",),
            ("week",),
            ("month",),
        ),
        *(("year", "yr"), ("mm", "millimeter", "millimetre"), ("cm", "centimeter", "centimetre"), ("meter", "metre", "m")),
        *(("km", "kilometer", "kilometre"), ("inch", "inche"), ("foot", "feet", "ft"), ("yard", "yd"), ("mile", "mi")),
        *(
            ("mg", "milligram"),
            ("gram", "g"),
            ("kg", "kilogram", "kilo"),
            ("ounce", "oz"),
            ("pound", "lb", "£", "gbp"),
            ("ton",),
        ),
        *(("ml", "milliliter", "millilitre"), ("liter", "litre", "l"), ("cup",), ("pint",), ("quart",), ("gallon",), ("acre",)),
        *(("dollar", "$", "usd"), ("cent", "¢", "penny", "pennie"), ("euro", "€", "eur"), ("yen", "¥"), ("rupee", "₹")),
        *(("celsius",), ("fahrenheit",), ("kelvin",), ("degree",), ("percent", "%"), ("permille", "‰")),
    )
    for spelling in (unit, *others)
}
# TeX's marks of a formula, not signs of money: there is no blank inside them, and no digit behind them.
FORMULA = re.compile(r"(?<!\\)\$(?=\S)([^$\n]*[^$\s\\])\$(?!\d)")
_SIGN_FIRST = re.compile(r"([$€£¥₹])\s*(-?[\d.,/]*\d)")
_UNIT = re.compile(
    r"\d[ \t-]*(?:(sq|square|cu|cubic)\b\.?[ \t]*)?\\?([a-z]+|[$€£¥₹¢%‰])(?:(?:\^?\{?([23])\}?(?!\d))|[ \t]+(squared|cubed)\b)?"
)
_POWERS = {"sq": "2", "square": "2", "squared": "2", "cu": "3", "cubic": "3", "cubed": "3"}


def unit_of(text: str) -> str | None:
    """Name the unit of the only number of a text, such as dollar or foot^2; None for another word, and without one."""
    found = _UNIT.findall(_SIGN_FIRST.sub(r"\2\1", FORMULA.sub(r"\1", text.lower())))
    if len(found) != 1:
        return None
    before, word, digit, behind = found[0]
    power = digit or _POWERS.get(before or behind)
    unit = _named(word)
    return f"{unit}^{power}" if unit and power else unit


def is_plural(word: str) -> bool:
    """Whether a word is that of more than one unit, such as euros or feet."""
    return word == "feet" or word.endswith("s") and len(word) > 2 and _named(word) is not None


def _named(word: str) -> str | None:
    """Name the unit of a word; a single letter has no plural: ms is not the plural of m."""
    return UNITS.get(word) or (UNITS.get(word.removesuffix("s")) if len(word) > 2 else None)
