r"""The visible text of a token, however a tokenizer or a server writes it: ' 7', '\n7', '▁7', 'Ġ7' and '<0x37>' are all '7'."""

from __future__ import annotations

import re
from typing import Any

# SentencePiece's blank, and the blank, line break, carriage return and tab of byte-level BPE.
_BLANKS = str.maketrans({"▁": " ", "Ġ": " ", "Ċ": "\n", "č": "\r", "ĉ": "\t"})
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def visible(token: str) -> str:
    """Return the text of a token of a vocabulary without marks and surrounding white space."""
    return _BYTE.sub(lambda found: chr(int(found[1], 16)), token).translate(_BLANKS).strip()


def visible_entry(entry: dict[str, Any]) -> str:
    """Return the same for an entry of a server's log-probabilities; its bytes count before its text."""
    try:
        text = bytes(entry["bytes"]).decode()
    except (KeyError, TypeError, ValueError):
        text = str(entry["token"])
    return visible(text) or visible(str(entry.get("token", "")))
