r"""Final answers as keys that are equal where the answers are: 72 clips = 72.0, 1/2 = \frac{1}{2} = 0.5, **18** = $18 per day.

Numbers are compared by value (50% is 50, and 0.5), other mathematics by math-verify, all else as text.
Pure but for math-verify's process.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise

from ual_ray.benchmarks.math_check import Checker
from ual_ray.data.answers import ANSWER_IS, FORMULA, boxed, in_ascii, in_digits, plain_numbers, unit_of, with_points

_DIGITS = r"\d{1,3}(?:,\d{2,3}){0,20},\d{3}(?!\d)|\d+|(?=\.\d)"
_NUMBER = (
    r"(?P<sign>(?:(?<![\w)])[-+])?)\s*(?:(?:\\[$€£¥₹]?|[$€£¥₹])\s*)?(?P<sign2>-?)"
    rf"(?P<top>(?>(?:{_DIGITS})(?:\.\d+)?(?:e[-+]?\d{{1,2}}(?!\w))?))(?:\s*/\s*(?P<bottom>\d+))?"
)
# A number and its unit: a word, which a single letter is not (2x is not 2); "18 and 20" is two numbers.
_WITH_UNIT = re.compile(
    rf"(?:about|approximately|around|exactly|only|≈|~|=)?\s*+{_NUMBER}\s*+"
    r"(?:\\?%|\^?\\circ|\^\{\\circ\}|°\w?|[$€£¥₹¢]|(?!and\b|or\b|to\b|.*\b(?:and|or)\s+\$?\d)"
    r"(?:[^\W\d_]{2,}|[\u3040-\u9fff\uac00-\ud7a3])(?:\^?\{?[23]\}?)?(?![\w^])[^\d=^\\]*.*)?",
    re.IGNORECASE | re.DOTALL,
)
_MONTH = r"(?-i:(?:Jan|Febr?|Mar|Apr|May|June?|July?|Aug|Sept?|Oct|Nov|Dec)(?:uary|ch|il|ust|(?:em|o)?ber)?)\b\.?"
_DATE = rf"(?:\d{{1,2}}(?:st|nd|rd|th)?\s+{_MONTH},?|{_MONTH}(?:\s+\d{{1,2}}(?:st|nd|rd|th)?,?)?)\s+\d{{4}}"
_SIGN = r"(?:[<>≤≥]=?|\\[gl](?:eq?|t|eqslant)(?![a-z]))"
_CHAIN = rf"[-+]?\d[\d.,/]{{0,30}}\s*{_SIGN}\s*[a-z]\s*{_SIGN}\s*[-+]?\d[\d.,/]{{0,30}}(?<=\d)"
# The last number of a text; a time, a date, a point, a range and 2 < x < 5 are more than their last number.
_LAST = re.compile(
    r"(?<![a-z\d_.^:])(?<![\^t]\{)(?<![a-z)]/)(?<![a-z]-)(?!\s)(?:\d+(?::\d\d)+|\d+_\{?(?:\d+|[a-z]+)\}?|\d+([-/])\d+\1\d+"
    rf"|{_DATE}|{_CHAIN}|[(\[]-?\d[\d.]{{0,30}}(?:\s*,\s*-?\d[\d.]{{0,30}}){{1,9}}[)\]]"
    r"|(?<!\d,)\d[\d,.]{0,30}%?-\$?\d[\d,.]{0,30}(?<=\d)"
    r"|(?:\$|(?<!\d,))\d[\d,.]*\s+(?:[ap]m\s+)?(?:to|or)\s+\$?\d[\d,.]*(?<=\d)"
    rf"|(?<=between )\$?\d[\d,.]*\s+and\s+\$?\d[\d,.]*(?<=\d)|{_NUMBER})(?![a-z\d_^])",
    re.IGNORECASE,
)
# What stands between the numbers of an answer of several parts: "5 apples and 7 pears", "x = 1, y = 2", "5 ft 6 in", "17 R 3".
_WORDS = r"(?:\s*[^\W\d]+){0,2}"
_AND = re.compile(
    rf"(?i)%?(?:{_WORDS}\s*(?:,?\s*\b(?:and|or|nor)\b|[&;]){_WORDS}\s*(?:=\s*)?|{_WORDS}\s*,\s*(?:[a-z]\s*=\s*)?"
    r"|\s*(?:feet|foot|ft|hours?|hrs?|h|minutes?|mins?|weeks?|days?|years?|months?|pounds?|lbs?|dollars?|yards?|degrees?)\s*"
    rf"|{_WORDS}\s+(?:x|by)\s+|\s*(?:±|\\pm|r|remainder)\s*)\$?"
)
# A whole text in brackets, and one that is a formula without a value: with signs other than those of a number.
_LIST = re.compile(r"\s*(?:[A-Za-z]\s*=\s*)?([(\[{][^\"=:]*,[^\"=:]*[)\]}])[.\s]*")
_TERM = re.compile(r"(?=[^+*^×·÷±√\\]*[+*^×·÷±√\\])(?:\\[a-z]+|[A-Za-z](?![A-Za-z])|[\d\s.,+\-*/^×·÷±(){}√πθ=])+")
# Behind an answer: "18 (9 pairs)", "18 apples [1]".
_ASIDE = re.compile(r"(?<=[\w%°$€£])(?:\.?\s+|\.)(?:\([^()\n]*\)|\[[^\[\]\n]*\])[.\s]*\Z")
_PART = re.compile(rf"(?<![\w.^]){_NUMBER}(?![\w^])", re.IGNORECASE)
_TEXT = re.compile(r"\\(?:text|mathrm|mathbf|textbf)\s*\{([^{}]*)\}")
# An option and its text, and the first words of a sentence that goes on.
_RESULT = re.compile(r"[^\s\w][^=]*=|\w{2}[^=]*=|\d\s*=")  # 12 + 6 = 18, but not y = 2x
_OPTION_ALONE = re.compile(r"\s*\(?([A-Z])\)\s+[^\n]+\s*")
_OPTION = re.compile(r"\(?([A-Z])[).:]\s+\S.*")
_CLAUSE = re.compile(r"(?<=\w),?\s+(?:\(|(?:because|since|as|which|so|not)\b)|(?<=\w);")
# An answer again in other words, behind itself: "18, i.e. 9 pairs".
_AGAIN = re.compile(r"(?i)(?<=[\w%)}\]$]),?\s+(?:i\.\s?e\b|that is,|in other words|equivalently|namely)")
_OR = re.compile(r"(?i)(?<=\S),?\s+(?:or|=)\s+")
_HASHES = re.compile(r"####[ \t]*([^\n]+)")
# A sum of money as a formula ($\$18$) keeps its sign; roots, and signs in words, are written as numbers have them.
_MONEY = re.compile(r"(?<![\\$])\$(\\\$[^$\n]*[^$\s\\])\$")
_ROOT = re.compile(r"√\s*(?:\(([^()]*)\)|\{([^{}]*)\}|(\d+|[a-zA-Z]))")
_SIGN_WORD = re.compile(r"(?i)\b(?:negative|(?:(?<=^)|(?<=[:=] )|(?<=\bis ))minus)\s+(?=[$€£]?\d)")
_SENTENCE_END = re.compile(r"(?<=\D)(?<!\bsq)(?<!\bcu)(?<!\bi\.e)\.\s|(?<=\d)\.(?=\s+\D)|[!?](?=\s)|[。\n]")
_MARKUP = re.compile(
    r"</?[A-Za-z][\w-]*>|[\U0001f000-\U0001faff\u2600-\u27bf\ufe0f]|(?<![\d)])\*{1,3}|\*{1,3}(?![\d(.])|`{1,3}"
    r"|(?<![\w)}])_{1,3}|_{1,3}(?![\w{\\])"
    r"|\\[,;!:]|\\boxed|\\\(|\\\)|\\\[|\\\]|\$\$"
)
# 10:00am is 10 am.
_HALF_HOUR = re.compile(r"(?i)(?<=:\d\d)(?=[ap]\.?m\b)")
_FULL_HOUR = re.compile(r"(?<![\d:])(\d{1,2})(?::00)?\s*(?=[ap]\.?m\b)", re.IGNORECASE)
# A single word that is an answer without a colon before it: a letter or a verdict, and behind "the answer is" a name.
_WORD = re.compile(r"[A-Za-z]|(?i:yes|no|true|false|none)")
_ONE_WORD = re.compile(rf"{_WORD.pattern}|[A-Z][A-Za-z]+")
_ANY_WORD = re.compile(r"\S+")
# A word that is not a function's name: the text is a sentence.
_COUNTED = re.compile(r"[-+$€£]?\d+\s+[A-Za-z]")
# Words before a number that make it another answer, or none: "at least 18", "18, not 20".
_BOUND_WORDS = (
    r"(?i:\b(?:(?:no|not) (?:more|less|fewer) than"
    r"|(?:more|less|fewer|greater|larger|smaller|higher|lower) than(?: or equal to)?"
    r"|at (?:least|most)|(?<!round )(?<!rounds )(?<!rounded )(?<!adds )(?<!add )up to"
    r"|nearly|almost|(?:mini|maxi)mum of|(?:(?<=is )|(?<=are )|(?<=was )|(?<=be )|(?<=just ))"
    r"(?:over|under|above|below))|(?<![=<>\d-])(?<!\d )[<>≤≥]=?(?![<>])|\\[gl](?:eq?|t|eqslant)\b"
    r"|\b(?:twice|double|triple|half(?: of)?|(?:two|three|four|five) times|log|ln|sin|cos|tan|root of)\b)"
)
_BOUND = re.compile(rf"(?:(?<![\w\\])[A-Za-z][ \t]*(?=[<>≤≥\\]))?{_BOUND_WORDS}[ \t]*\$?\Z")
_BOUNDED = re.compile(rf"(?i)[^\w<>\\]*(?:{_BOUND_WORDS}|not\b)")
_BOUND_BEHIND = re.compile(
    r"(?i)[ \t]+(?:squared|cubed)\b|[ \t]*(?:\+(?![ \t]*[\d(])|(?:[^\W\d]+[ \t]+)?"
    r"(?:or (?:more|less|fewer|over|above|under|below|higher|lower|greater)"
    r"|at (?:least|most)|and (?:up|above|over|more|under|below))\b)"
)
_DENIED = re.compile(
    r"(?i)(?:\b(?:not|never|instead of|rather than|cannot)|n['’]t)(?: be)?"
    r"(?: (?:exactly|just|only|simply|equal to|the number|actually))?[ \t]*\$?\Z"
)
# What counts the parts of a text: "Step 2: done", and lines that start with 1., 2. and so on.
_LABEL = re.compile(
    r"(?i)\b(?:steps?|questions?|problems?|parts?|cases?|examples?"
    r"|exercises?|tasks?|notes?|figures?|tables?|equations?)[ ]?#?\Z"
)
_LABELS = re.compile(r"\s*[:)]\s+[^\W\d]")
_COUNTER = re.compile(r"(?m)^[ \t]*(\d{1,2})[.)][ \t]+(?=\D)")
_TIMES = re.compile(r"(?<![\w,.])(\d[\d,]*(?:\.\d+)?)(?:[ \t]+(?i:(dozen)s?)|(k|K|M|mn|bn|B))\b")
_MONEY_TIMES = re.compile(r"(?<=[$€£])(\d[\d,]*(?:\.\d+)?)[ \t]?()(k|K|M|mn|bn|B)\b")
_COUNTS = {"dozen": 12, "k": 10**3, "K": 10**3, "M": 10**6, "mn": 10**6, "bn": 10**9, "B": 10**9}
# A whole text that is one formula, and one that starts with the word that it gives.
_ONE_FORMULA = re.compile(r"\s*(?:\$+([^$=]+)\$+|\\\(([^=]+)\\\)|\\\[([^=]+)\\\])[.\s]*")
_WORD_FIRST = re.compile(r"(?i)\W*(yes|no|true|false)[*_]*[,.!;:—–](?!\S)[^\d]*")
_NAMED = re.compile(
    r"(?i)(?:(?:the )?(?:correct |right |best )?(?:option|choice|answer)(?: is)?[:\s]+)?[\[(]?(?-i:([A-Z]))[\])]?"
)
_AT_LEAST = re.compile(
    r"(?i)\b(?:at (?:least|most)|or (?:more|less|fewer|over|above|under|below)|and up)\b|\d\s*\+\Z|\d\s+(?:squared|cubed)\b"
)
# A number in a base, such as 413_5, (413)_5 or 413_{five}.
_BASE_WORDS = "two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
_BASES = {word: str(base) for base, word in enumerate(_BASE_WORDS.split(), start=2)}
_BASED = re.compile(rf"(?:\((-?[\da-f.]+)\)|(-?[\da-f.]+))_\{{?(\d+|{'|'.join(_BASES)})\}}?")
_INTERVAL = re.compile(r"(?:[a-z]\\in)?[(\[][^,()\[\]]+,[^,()\[\]]+[)\]]")
PERCENT = "percent"
_PROSE = re.compile(r"(?<!\\)\b(?!sqrt|frac|text|pi|sin|cos|tan|log|ln)[A-Za-z]{3,}")
_MATHS = re.compile(r"[\\^=+*/(){}\d]")
LONGEST_MARKED = 4  # words
LONGEST_IN_PARTS = 10  # words of a text whose numbers may all be parts of its answer
LARGEST_ANSWER = 200  # characters of what is worth comparing as mathematics


@dataclass(frozen=True)
class AnswerKey:
    """An answer as text without blanks, and its value if it is a number, with its unit if that is one of measure."""

    text: str
    value: Fraction | None
    unit: str | None = None
    exact: bool = True  # not "at least 18"


def marked_answer(text: str) -> AnswerKey | None:
    r"""Read a marked final answer: '#### n', '\boxed{...}', 'The answer is n'; None where none is marked.

    "The answer is that it depends" marks none: behind the words an answer is a number, mathematics or a single word.
    """
    text = in_ascii(text)
    # A longer one is a heading.
    if (found := _HASHES.search(text)) and len(_AGAIN.split(found[1])[0].split()) <= LONGEST_MARKED:
        return _short(found[1], _WORD)
    if content := boxed_answer(text):
        return _key(content)
    if answers := ANSWER_IS.findall(text):
        colon = re.search(r"(?i)answer[*_]*\s*(?:is\s*)?[:=]", text)
        return _short(answers[-1], _ANY_WORD if colon else _ONE_WORD)
    return None


def boxed_answer(text: str) -> str | None:
    r"""Return the content of the last \boxed{...}, and of those joined to it: "1, 2"; one of them if all are one: 0.5, 50%."""
    parts = boxed(text)
    return parts[-1] if _are_one(parts) else ", ".join(dict.fromkeys(parts)) or None


def _are_one(parts: Sequence[str]) -> bool:
    """Whether several texts give one answer: 0.5 or 50%."""
    keys = [_key(part) for part in parts]
    return len(keys) > 1 and all(same_answer(key, keys[-1]) for key in keys)


def answer_of(text: str) -> AnswerKey | None:
    """Read the marked final answer, else the last number of a text, else a short text as a whole; None without any."""
    if (marked := marked_answer(text)) is not None:
        return marked
    if whole := _ONE_FORMULA.fullmatch(text):
        return _key(whole[1] or whole[2] or whole[3])
    if word := _WORD_FIRST.fullmatch(text):
        return _key(word[1])
    if option := _OPTION_ALONE.fullmatch(text):
        return _key(option[1])
    plain = FORMULA.sub(r"\1", plain_numbers(_cleaned(text)))
    if (aside := _ASIDE.search(plain)) and re.search(r"\d", plain[: aside.start()].rpartition("\n")[2]):
        plain = plain[: aside.start()]
    if several := _several(plain):
        return several
    labels = _labels(plain)
    numbers = (found for found in reversed([*_LAST.finditer(plain)]) if not _DENIED.search(_before(plain, found)))
    if number := next((found for found in numbers if found.start() not in labels), None):
        # The words of a bound stay with its number: the key is text, and equals that of the same words alone.
        bounds = _BOUND.search(_before(plain, number)), _BOUND_BEHIND.match(plain, number.end())
        before, behind = (bound[0] if bound else "" for bound in bounds)
        return _key(f"{before}{number[0]}{behind}", plain[number.start() :])
    plain = in_digits(plain.rstrip(" .!"))
    return _short(plain, _ONE_WORD) if len(plain.split()) <= LONGEST_MARKED and not labels else None


def _labels(text: str) -> set[int]:
    """Return where the numbers start that count parts of a text."""
    lines = {int(found[1]): found.start(1) for found in _COUNTER.finditer(text)}
    labels = {at for number, at in lines.items() if {number - 1, number + 1} & lines.keys()}
    numbers = (found for found in re.finditer(r"\d+", text) if _LABELS.match(text, found.end()))
    return labels | {found.start() for found in numbers if _LABEL.search(_before(text, found))}


def _several(text: str) -> AnswerKey | None:
    """Make the key of a short answer of several parts, or of a formula; None for any other text."""
    if len(text) > LARGEST_ANSWER or "\n" in text.strip() or len(text.split()) > LONGEST_IN_PARTS:
        return None
    if re.match(r"\W*\d", text) and (
        (again := _AGAIN.search(text)) or ("=" not in text and _are_one(_OR.split(text.rstrip(" ."))))
    ):
        return _short(text[: again.start()] if again else text, _ONE_WORD)
    if whole := _LIST.fullmatch(text):
        return _key(whole[1])
    if _TERM.fullmatch(text) and "=" not in text.partition("=")[2] and _value(text) is None and not _RESULT.search(text):
        return _key(text)
    numbers = [*_PART.finditer(text)]
    if len(numbers) < 2 or _DENIED.search(_before(text, numbers[-1])):
        return None
    between = [text[one.end() : other.start()] for one, other in pairwise(numbers)]
    if not all(_AND.fullmatch(words) for words in between):
        return None
    return AnswerKey(",".join(re.sub(r"[\s$,]", "", number[0]) for number in numbers), None)


def _before(text: str, found: re.Match[str]) -> str:
    """Return the words before a number, as far as they may change it."""
    return text[max(0, found.start() - 40) : found.start()]


def same_answer(first: AnswerKey | None, second: AnswerKey | None) -> bool:
    """Whether two answers are equal; a text without one equals nothing, not even another of its kind."""
    if first is None or second is None:
        return False
    if other_unit(first, second):  # math-verify leaves units out
        return False
    if first.value is not None and second.value is not None:
        as_share = {first.unit, second.unit} == {PERCENT, None} and _share(first) == _share(second)  # 50% is 50, and 0.5
        return first.value == second.value or as_share
    if first.text == second.text:
        return True
    if is_interval(first) and is_inequality(second):
        first, second = second, first  # math-verify knows one order alone
    return _is_maths(first) and _is_maths(second) and _equal_maths(first.text, second.text)


def is_interval(key: AnswerKey) -> bool:
    """Whether an answer is written as an interval, (2, 5) or [2, 5), which may be a point."""
    return _INTERVAL.fullmatch(key.text) is not None


def is_inequality(key: AnswerKey) -> bool:
    """Whether an answer is an inequality, such as 2 < x < 5."""
    return re.search(_SIGN, key.text) is not None


def other_unit(first: AnswerKey, second: AnswerKey) -> bool:
    """Whether two answers are in different units, or in different bases."""
    return None not in (first.unit, second.unit) and first.unit != second.unit


def _share(key: AnswerKey) -> Fraction | None:
    return key.value / 100 if key.value is not None and key.unit == PERCENT else key.value


def _key(answer: str, behind: str = "") -> AnswerKey | None:
    """Make the key of an answer. behind: the text that it is the start of, which may go on with its unit."""
    text = in_digits(FORMULA.sub(r"\1", _cleaned(answer).rstrip(" .。")))
    text = re.sub(r"(?i)\b([ap])\.m\b\.?", r"\1m", text)
    plain = re.sub(r"[\s$]", "", text).lower()
    plain = re.sub(r"\(([a-z]+)\)", r"\1", plain) if plain.count("(") == 1 and plain.startswith("(") else plain
    if based := _BASED.fullmatch(plain):
        base = _BASES.get(based[3], based[3])
        return AnswerKey(f"{based[1] or based[2]}_{base}", None, f"base {base}")
    numbers = plain_numbers(text)
    exact = _BOUNDED.match(text) is None and _AT_LEAST.search(text) is None
    return AnswerKey(plain, _value(numbers) if exact else None, unit_of(behind or numbers), exact) if plain else None


def _short(answer: str, words: re.Pattern[str]) -> AnswerKey | None:
    """Make the key of what follows 'the answer is' if that is an answer and not the start of a sentence.

    words: single words that are answers.
    """
    sentence = _AGAIN.split(_SENTENCE_END.split(_cleaned(answer) + " ")[0])[0].strip().rstrip(" .!")
    if _are_one(parts := _OR.split(sentence)):
        return _key(parts[-1])
    if option := _OPTION.fullmatch(sentence) or _NAMED.fullmatch(sentence):
        return _key(option[1])
    whole, clause = map(in_digits, (sentence, _CLAUSE.split(sentence)[0]))
    return next((_key(part) for part in dict.fromkeys((whole, clause)) if _is_answer(part, words)), None)


def _is_answer(text: str, words: re.Pattern[str]) -> bool:
    if _value(plain_numbers(text)) is not None or _COUNTED.match(text) or words.fullmatch(text.strip("()")):
        return True
    return bool(_MATHS.search(text) and re.search(r"[^\W_]", text)) and not _PROSE.search(text)


def _cleaned(text: str) -> str:
    text = _MONEY.sub(r"\1", in_ascii(_TEXT.sub(r"\1", text))).replace("π", "{\\pi}")
    text = _ROOT.sub(lambda found: f"\\sqrt{{{found[1] or found[2] or found[3]}}}", text)
    text = _HALF_HOUR.sub(" ", _FULL_HOUR.sub(r"\1 ", _SIGN_WORD.sub("-", _MARKUP.sub("", text)))).strip()
    return in_full(with_points(text))


def in_full(text: str) -> str:
    """Write $18k as $18000, and in a text of few words also 18k as 18000, and 18 dozen as 216."""
    # "96/12 = 8 dozen" may answer how many dozens, and a 401k is a pension.
    numbers = _TIMES if len(text.split()) <= LONGEST_MARKED else _MONEY_TIMES

    def product(found: re.Match[str]) -> str:
        times = _COUNTS[found[3] or found[2].lower()]
        return f"{Decimal(found[1].replace(',', '')) * times:f}"

    return numbers.sub(product, text)


def _value(text: str) -> Fraction | None:
    """Read a number with or without its unit; None for all else."""
    found = _WITH_UNIT.fullmatch(re.sub(r"^[A-Za-z]\s*=\s*", "", text))
    if found is None:
        return None
    top, bottom = found["top"], found["bottom"] or "1"
    if len(top + bottom) > LARGEST_ANSWER or int(bottom) == 0:
        return None
    value = Fraction(top.replace(",", "")) / int(bottom)
    return -value if (found["sign"] + found["sign2"]).count("-") == 1 else value


def _is_maths(key: AnswerKey) -> bool:
    return key.exact and len(key.text) <= LARGEST_ANSWER and _MATHS.search(key.text) is not None


@lru_cache(maxsize=10_000)
def _equal_maths(first: str, second: str) -> bool:
    return _checker()(first, f"\\boxed{{{second}}}")[1]


@lru_cache(maxsize=1)
def _checker() -> Checker:
    return Checker()
