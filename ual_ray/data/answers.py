"""Final answers: extraction from a text, and normalization, so that equal answers are equal strings.

strict: the first number behind '####'; flexible: the last number of the text (GSM8K, Cobbe et al. 2021, arXiv 2110.14168).
Units of measure and money make equal numbers different answers; what is counted, such as clips, does not.
"""

import re
from decimal import Decimal
from fractions import Fraction

from ual_ray.formatting import nfkc

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


# 3,5 km, €3,50 and 1.234,56 have decimal commas; 3,5 may be two numbers.
_COMMAS = re.compile(
    r"(?<![\w.,])(?:(?P<whole>\d+),(?=(?:\d{1,2}|\d{4,})\s*(?:\\?%|[€£¢°]|(?:[kcm]?m|[km]?g|m?l|h|s|min)\b(?!\s*,)))"
    r"|(?<=[$€£])(?P<money>\d+),(?=\d\d(?![\d,.]\d|\d))|(?P<thousands>\d{1,3}(?:\.\d{3}){1,6}),(?=\d{1,9}(?![\d,.]\d|\d)))"
)
_ONE = "one|two|three|four|five|six|seven|eight|nine"
_TEENS = "ten|eleven|twelve|thirteen|fourteen|fifteen|sixteen|seventeen|eighteen|nineteen"
_TENS = "twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety"
_WORTH = {word: number for number, word in enumerate(["zero", *f"{_ONE}|{_TEENS}".split("|")])}
_WORTH |= {word: 10 * tens for tens, word in enumerate(_TENS.split("|"), start=2)}
_BELOW_100 = rf"(?:(?:{_TENS})(?:[ -](?:{_ONE}))?|{_TEENS}|{_ONE})"
_BELOW_1000 = rf"(?:(?:(?:{_ONE}|a) hundred(?: (?:and )?{_BELOW_100})?)|{_BELOW_100})"
# A number in words, and at most one word behind it: its unit, or what is counted.
_SCALE = r"(?:million|thousand)(?:,? (?:and )?|$)"
_NO_UNIT = "half|halves|thirds?|quarters?|times|fold|and|or|of|to|more|less|by"
_NO_UNIT += rf"|{_ONE}|{_TEENS}|{_TENS}|(?:dozen|hundred|thousand|[mb]illion|trillion)s?"
_IN_WORDS = re.compile(
    rf"(?i)(?P<sign>(?:minus|negative) )?(?P<number>zero|(?:(?:{_BELOW_1000}|a) {_SCALE}){{0,2}}{_BELOW_1000}?)"
    rf"(?P<unit>(?<=[a-z]) (?!(?:{_NO_UNIT}|\w+ths?)\b)[a-z]+)?"
)


def with_points(text: str) -> str:
    """Write decimal commas as points, where a unit or dots between thousands tell them from commas between numbers."""
    return _COMMAS.sub(lambda found: found[0].replace(".", "").replace(",", "."), text)


def in_digits(text: str) -> str:
    """Write a text that is a number in words, with its unit or without, in digits; any other text as it is.

    "One" counts nothing with a word behind it: "one thing".
    """
    found = _IN_WORDS.fullmatch(text.strip())
    if found is None or not found["number"] or (found["unit"] and found["number"].lower() == "one"):
        return text
    total = part = 0
    for word in re.findall("[a-z]+", found["number"].lower()):
        if word == "hundred":
            part *= 100
        elif word in _SCALES:
            total, part = total + part * 10 ** _SCALES[word], 0
        elif word != "and":
            part += 1 if word == "a" else _WORTH[word]
    return f"{'-' if found['sign'] else ''}{total + part}{found['unit'] or ''}"


# A minus behind a digit or a word is a hyphen: 18-20 is a range. Commas stand between thousands alone: 10,11 are two numbers.
_SIGN = r"(?:(?<![\w)])[-+])?(?:\\?[$€£¥₹][ ]?-?)?"
# At most so many groups of thousands: without a limit each of them would be the start of a search to the last.
_DIGITS = r"(?:\d{1,3}(?:,\d{2,3}){0,20},\d{3}(?!\d)|\d+)(?:\.\d+)?(?:[eE][-+]?\d{1,2}(?!\w))?|\.\d+"
# A fraction, but no part of a date.
_NUMBER = rf"{_SIGN}(?:(?<![\d/])\d+/\d+(?![\d/])|{_DIGITS})"
# What makes a number a part of something else: a decimal comma, a time, a date, a sum, a power, thousands.
_GOES_ON = (
    r"(?!\d|[.,_]\d|[ \t]*,[ \t]*\d{3}(?!\d)|[ \t]?(?:[kKMB]|mn|bn)\b|[ \t]*[\^:*/+×·÷][ \t]*\\?[({$€£¥₹]?\d"
    r"|[ \t]*[-–~][ \t]*\\?[($€£¥₹]?\d|[ \t]+(?:to|or|x)[ \t]+\\?[$€£¥₹]?\d)"
)
_STRICT = re.compile(rf"####\s*({_NUMBER}){_GOES_ON}")
_FLEXIBLE = re.compile(rf"({_NUMBER})")
# How numbers are written, besides their digits.
_RAISED = re.compile("(?<=[\\w)}])[\u207a\u207b]?[\u00b9\u00b2\u00b3\u2070\u2074-\u2079]+")
_VULGAR = re.compile("(?<=\\d)(?=[\u00bc-\u00be\u2150-\u215e\u2189])")
_BETWEEN_THOUSANDS = re.compile("(?<=\\d)(?:\\{,\\}|\\\\,|\\\\ |[_\u00a0\u2009\u202f'\u2019]|[ ]?,[ ](?=0))(?=\\d{3}(?!\\d))")
_SPACED = re.compile(r"(?<![\d.,/-])(?<!\d )[1-9]\d{0,2}(?: \d{3})+(?![\d/]| \d|[.,]\d{3})")
_WORD_FOLLOWS = re.compile(r"[ \t-]?[^\W\d_]")
# The last noun of a phrase: none but such words go on behind it.
_NOUN_ENDS = re.compile(
    r"[ \t]([^\W\d_]+)\b(?![ \t-]+(?!(?:an?|and|at|by|each|every|for|from|in|is|less|more|of|on|or|per|to|was|were|with)\b)\w)"
)
_MINUS = re.compile(r"[\u2212\u2013](?=[$€£¥₹]?\.?\d)")
_FRACTION = re.compile(r"(?:(?=\d)|(?<![ \t]))(\d?)[ \t]*\\[dtc]?frac\s*(?:\{\s*(-?\d+)\s*\}|(\d))\s*(?:\{\s*(\d+)\s*\}|(\d))")
_MIXED = re.compile(r"(?<![\d/.,^])(\d{1,3}) (\d{1,2})/(\d{1,2})(?![\d/])")
_POWER_OF_TEN = re.compile(
    r"(?<![\w.,^])(\d{1,30}(?:\.\d{1,30})?)\s*(?:\\times|\\cdot|[×·*x])\s*10\s*(?:\^|\*\*)\s*\{?\s*([-+]?\d{1,2})(?![\w.])\}?"
)
_SCALED = re.compile(r"(?i)(?<![\d,])(\d[\d,]*(?:\.\d+)?)((?:\s+(?:hundred|thousand|million|billion|trillion)s?\b){1,3})")
_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
ANSWER_IS = re.compile(
    r"(?im)(?:the (?:(?:final|correct|right) )?answer (?:is|would be|should be)\b:?"
    r"|the (?:correct|right|best) (?:option|choice) is\b:?"
    r"|^[^\w\n]*(?:final |correct )?answer[*_]*\s*(?:[:=]|[-–—→]\s)|答案\s*(?:是|为|:))\s*(.+)"
)
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
# What stands between boxes that are parts of one answer: "$x = \boxed{1}$ or $x = \boxed{2}$".
_BLANK = r"(?:[\s$]|\\[()\[\] ;]|\\quad\b)*"
_BOX_FOLLOWS = re.compile(
    rf"{_BLANK}(?:[,;]|\\text\s*\{{\s*(?:and|or)\s*\}}|\b(?:and|or)\b)(?:{_BLANK}\b(?:and|or)\b)?{_BLANK}(?:[A-Za-z]\s*=\s*)?"
)


def boxed(text: str) -> list[str]:
    r"""Return the content of the last \boxed{...}, behind those that 'and', 'or' or a comma join to it; none without one."""
    parts: list[str] = []
    following = 0
    for box in reversed([*_BOX.finditer(text)]):
        content = until_closed(text, box.end())
        if not content or (parts and not _BOX_FOLLOWS.fullmatch(text, box.end() + len(content) + 1, following)):
            break
        parts.insert(0, content.strip().strip("$"))
        following = box.start()
    return parts


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
    match = _STRICT.search(plain_numbers(text))
    return normalise_number(match.group(1)) if match else None


def extract_flexible(text: str) -> str | None:
    """Return the last number of the text, normalised, or None."""
    matches = _FLEXIBLE.findall(plain_numbers(text))
    return normalise_number(matches[-1]) if matches else None


def normalise_number(number: str) -> str:
    """Drop ',', signs of money, '+', spaces and a trailing '.'; nothing else, so '5.0' and '5' stay different strings."""
    return re.sub(r"[,$€£¥₹+\\\s]", "", number).rstrip(".")


def same_number(first: str | None, second: str | None) -> bool:
    """Tell whether two extracted numbers have one value: 18.00 is 18, and 1/2 is 0.5."""
    if first is None or second is None:
        return False
    try:
        return Fraction(first) == Fraction(second)
    except (ValueError, ZeroDivisionError):
        return first == second


def plain_numbers(text: str) -> str:
    r"""Write numbers with plain digits: 12\,000 and 12 000 as 12,000, \frac{1}{2} as 1/2, 3 1/2 as 7/2, 2 million in full.

    3 x 10^8 becomes 3e8.
    """
    text = _POWER_OF_TEN.sub(r"\1e\2", _SPACED.sub(_joined, in_ascii(text)))
    text = _FRACTION.sub(_as_fraction, text)
    return _SCALED.sub(_in_full, _MIXED.sub(_as_improper, text))


def in_ascii(text: str) -> str:
    """Write digits of other widths, minus signs, powers and vulgar fractions as a keyboard has them; 18² is 18^2, not 182."""
    text = _RAISED.sub(lambda found: "^" + nfkc(found[0]).replace("\u2212", "-"), text)
    text = _BETWEEN_THOUSANDS.sub(",", _VULGAR.sub(" ", text))
    text = nfkc(text).replace("{,}", ",").replace("\N{FRACTION SLASH}", "/")
    return _MINUS.sub("-", text)


def _joined(found: re.Match[str]) -> str:
    """Join thousands behind blanks: not 3 100 dollar bills, where a word follows and both may be numbers of their own.

    12 500 euros are one number: what is counted, or has this size, would be named behind a unit of its own.
    """
    groups = found[0].split(" ")
    noun = _NOUN_ENDS.match(found.string, found.end())
    unit = noun is not None and is_plural(noun[1].lower())
    one = len(groups) > 2 or groups[1].startswith("0") or unit or not _WORD_FOLLOWS.match(found.string, found.end())
    return ",".join(groups) if one else found[0]


def _as_fraction(found: re.Match[str]) -> str:
    before, *parts = found.groups()
    top, bottom = (part for part in parts if part)
    return f"{before} {top}/{bottom}" if before else f"{top}/{bottom}"


def _as_improper(found: re.Match[str]) -> str:
    whole, top, bottom = map(int, found.groups())
    return f"{whole * bottom + top}/{bottom}" if top < bottom else found[0]


def _in_full(found: re.Match[str]) -> str:
    zeros = sum(_SCALES[word.removesuffix("s")] for word in found[2].lower().split())  # 2 hundred thousand
    return f"{Decimal(found[1].replace(',', '')).scaleb(zeros):f}"
