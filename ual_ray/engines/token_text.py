r"""The visible text of a token, however a tokenizer or a server writes it: ' 7', '\n7', '▁7', 'Ġ7' and '<0x37>' are all '7'."""

from __future__ import annotations

import re
from typing import Any

from ual_ray.formatting import nfkc

# SentencePiece's blank, and the blank, line break, carriage return and tab of byte-level BPE.
_BLANKS = str.maketrans({"▁": " ", "Ġ": " ", "Ċ": "\n", "č": "\r", "ĉ": "\t"})
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
# Form in which OpenAI writes tokens that are parts of characters, and some of its copies all tokens.
_BYTES = re.compile(r"bytes:((?:\\x[0-9A-Fa-f]{2})+)")


def plain(token: str) -> str:
    """Return the text of a token of a vocabulary without marks; digits of other widths are plain ones."""
    if whole := _BYTES.fullmatch(token):
        token = bytes.fromhex(whole[1].replace("\\x", "")).decode(errors="replace")
    text = _BYTE.sub(lambda found: chr(int(found[1], 16)), token).translate(_BLANKS)
    return nfkc(text)


def visible(token: str) -> str:
    """Return the same without surrounding white space."""
    return plain(token).strip()


def plain_entry(entry: dict[str, Any]) -> str:
    """Return the text of an entry of a server's log-probabilities; its bytes count before its token."""
    try:
        # Of a number bytes would make as many zeros.
        text = bytes([*entry["bytes"]]).decode()
    except (KeyError, TypeError, ValueError):
        text = str(entry["token"])
    return plain(text) if visible(text) else plain(str(entry.get("token", "")))


def visible_entry(entry: dict[str, Any]) -> str:
    """Return the same without surrounding white space."""
    return plain_entry(entry).strip()
