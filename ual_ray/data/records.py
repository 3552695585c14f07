"""A record of the user's data, the reason why one cannot be used, and its texts."""

import math
import re
from collections.abc import Mapping
from typing import Any

Record = Mapping[str, Any]

# Put before the question, where `data.columns` maps it.
CONTEXT = "context"
# How the reason of a line in another encoding starts.
NOT_UTF_8 = "not UTF-8"
# White space, and characters that are not seen.
_BLANK = re.compile("[\\s\u00ad\u200b-\u200f\u2060\ufeff]*")


# Turns or parts of a message that a table has as text, and the key that goes with their first.
_CHAT = re.compile(r"""\s*\[\s*\{\s*['"](?:(role|from|content|value)['"]\s*:|type['"]\s*:\s*['"]text['"])""")
_GOES_WITH = {"role": "content", "content": "role", "from": "value", "value": "from", None: "text"}


# How a prompt ends that is a chat as text, ready for a model; and a reply that has the mark of its end.
_ENDS_AS_PROMPT = re.compile(
    r"(?:\n[^\S\n]*(?:Assistant|ASSISTANT|AI|Bot|GPT):|\[/INST\]|<\|im_start\|>assistant|<\|start_header_id\|>assistant<\|end_header_id\|>"
    r"|<start_of_turn>model|<[|｜](?:assistant|Assistant)[|｜]>|###\s*(?:Response|Assistant):?)\s*\Z"
)
_ENDS_AS_REPLY = re.compile(
    r"(?:</s>|<eos>|<end_of_turn>|<\|(?:im_end|endoftext|end_of_text|eot_id|end)\|>|<｜end▁of▁sentence｜>)\s*\Z"
)


# What tables have for a missing value, as pandas and `datasets` read CSV files; of these, what no other program writes.
MISSING_WORDS = frozenset(
    ("nan", "NaN", "NAN", "-nan", "-NaN", "<NA>", "NaT", "#N/A", "#N/A N/A", "#NA", "1.#IND", "-1.#IND", "1.#QNAN", "-1.#QNAN")
    + ("NA", "N/A", "n/a", "None", "null", "NULL", "Null", "\\N")
    + ("#REF!", "#DIV/0!", "#NAME?", "#VALUE!", "#NUM!", "#NULL!")
)
# Words that stand for a text that is not there, but may be one.
PLACEHOLDERS = MISSING_WORDS | {
    *("[deleted]", "[removed]", "[object Object]", "undefined", "TODO", "...", "…", "-", "?", "none", "NONE", "nil", "Nil"),
}
# Texts of another encoding that were read as UTF-8 or as CP1252, and values as Python prints them.
BROKEN = re.compile("\ufffd|Ã[\u0080-\u00bf]|â€[\u0080-\u00bf\u2018-\u201e\u2122\u02dc\u0153]")
PRINTED = re.compile(
    r"b'[^']*'|b\"[^\"]*\"|\[(?:'[^']*'[ \n]+)+'[^']*'\]|array\(.*\)|<[\w.]+ object at 0x[0-9a-f]+>|\{'text': .*\}", re.DOTALL
)
_NEVER_TEXT = frozenset(("nan", "NaN", "NAN", "-nan", "-NaN", "<NA>", "NaT"))
_LONGEST_MISSING = max(map(len, MISSING_WORDS))
# Marks of chat templates and of media, which do not belong to a turn itself.
_MARKS = re.compile(
    r"<\|(?:im_start|im_end|start_header_id|end_header_id|eot_id|begin_of_text|end_of_text|endoftext|user|assistant|system|end"
    r"|START_OF_TURN_TOKEN|END_OF_TURN_TOKEN|start|message|channel|turn)\|>|<(?:start|end)_of_turn>|\[/?INST\]|<</?SYS>>"
    r"|<｜(?:User|Assistant|begin▁of▁sentence|end▁of▁sentence)｜>|(?m:^###[ ]?(?:Instruction|Response|Human|Assistant|User):)"
    r"|<s>(?= ?\[INST\])|</s>\s*\Z|<(?:image|video|audio)>|<\|(?:image_pad|vision_start|image)\|>"
)
_SPEAKERS = tuple(
    re.compile(rf"(?m)^(?:{names}):") for names in ("Human|User|USER|human|user", "Assistant|ASSISTANT|assistant")
)


class Missing(str):
    """A cell of a CSV or TSV file that holds a word for a missing value: text only where the user states so."""

    __slots__ = ()


class BadRow(ValueError):
    """A row that cannot be used: the reason it is quarantined with, and `raw`, the text of a line that is not a record."""

    def __init__(self, reason: str, raw: str | None = None) -> None:
        super().__init__(reason)
        self.raw = raw


def text_of(record: Record, column: str) -> str:
    """Return the text of a column as it is; "" where it is missing or null. Raises BadRow for a value that is not text."""
    value = record.get(column)
    if value is None or _is_nan(value):
        return ""
    if not isinstance(value, str):
        raise BadRow(f"{column} is not text: {value!r:.80}")
    check_unicode(column, value)
    return value


def cell_of(text: str) -> str:
    """Return the text of a cell, as Missing where it is a word for a missing value."""
    return Missing(text) if len(text) <= 2 * _LONGEST_MISSING and text.strip() in MISSING_WORDS else text


def is_missing(value: Any) -> bool:
    """Whether a value is what programs write where there is none: null, NaN, "nan", and in a CSV file "NA" or "NULL" too."""
    return (
        value is None
        or _is_nan(value)
        or isinstance(value, Missing)
        or (isinstance(value, str) and len(value) < 20 and value.strip() in _NEVER_TEXT)
    )


def optional_text(record: Record, column: str) -> str:
    """Return the text of a column as `text_of` does; "" for a word for a missing value."""
    return "" if is_missing(record.get(column)) else text_of(record, column)


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def marks_in(text: str) -> set[str]:
    """Return the marks of chat templates that a text holds."""
    found = {match[0].strip() for match in _MARKS.finditer(text)}
    speakers = [speaker.search(text) for speaker in _SPEAKERS]
    return found | {speaker[0] for speaker in speakers if speaker} if all(speakers) else found


def check_plain(column: str, text: str) -> None:
    """Raise BadRow for a text that is a list of turns or parts, in JSON or as Python prints it."""
    if (found := _CHAT.match(text)) and text.rstrip().endswith("]"):
        key = _GOES_WITH[found[1]]
        if f'"{key}"' in text or f"'{key}'" in text:
            raise BadRow(f"{column} is a list of turns or parts as text: {text!r:.80}")


def is_rendered(role: str, text: str) -> bool:
    """Whether a turn is more than a turn: a chat as text up to the reply, or a reply with a model's mark of the end."""
    return (_ENDS_AS_PROMPT if role == "user" else _ENDS_AS_REPLY).search(text) is not None


def name_of(value: Any) -> str | None:
    """Return an id or a source as text; None where it is missing or empty."""
    if is_missing(value):
        return None
    if isinstance(value, float) and value.is_integer():  # tables turn whole numbers into these
        value = int(value)
    return None if value == "" else str(value)


def is_blank(text: str) -> bool:
    """Whether nothing of a text is seen."""
    return _BLANK.fullmatch(text) is not None


def check_unicode(column: str, value: str) -> None:
    """Raise BadRow for a text that cannot be encoded."""
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise BadRow(f"{column} is not Unicode: it holds half a surrogate pair") from None
