"""A record of the user's data, the reason why one cannot be used, and its texts."""

from __future__ import annotations

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


class BadRow(ValueError):
    """A row that cannot be used: the reason it is quarantined with, and `raw`, the text of a line that is not a record."""

    def __init__(self, reason: str, raw: str | None = None) -> None:
        """Keep the reason, and the raw text."""
        super().__init__(reason)
        self.raw = raw


def text_of(record: Record, column: str) -> str:
    """Return the text of a column as it is; "" where it is missing or null. Raises BadRow for a value that is not text."""
    value = record.get(column)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadRow(f"{column} is not text: {value!r:.80}")
    check_unicode(column, value)
    return value


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
    if isinstance(value, float):  # tables turn whole numbers into these, and null into NaN, where a row has null
        value = int(value) if value.is_integer() else None if math.isnan(value) else value
    return None if value is None or value == "" else str(value)


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
