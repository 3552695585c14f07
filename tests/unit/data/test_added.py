"""Formats of other packages: what they make of a record are messages that can be trained on, or an error that names them."""

from __future__ import annotations

from pathlib import Path

import pytest
from added import add

from ual_ray.config.registry import FORMATS
from ual_ray.data.formats import BadRow, convert
from ual_ray.errors import UserError

USER = '{"role": "user", "content": record["ask"]}'
REPLY = '{"role": "assistant", "content": record["say"]}'
RECORD = {"ask": "Why?", "say": "So."}


def convert_with(body: str, folder: Path, patch: pytest.MonkeyPatch) -> object:
    """What the only row becomes in a format of another package whose converter has this body."""
    code = f"""
from ual_ray.data.formats import BadRow, Format

def messages(record):
    {body}

MINE = Format(messages, columns=("ask", "say"))
"""
    add(patch, folder, FORMATS, code, mine="MINE")
    ((_, found),) = convert([RECORD], "mine", {})
    return found


def test_messages_are_used_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = convert_with(f"return [{USER}, {REPLY}]", tmp_path, monkeypatch)
    assert found == [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("raise BadRow('no answer: mine')", "no answer: mine"),
        (f"return [{USER}]", "no response: the last message is not the assistant's"),
        (f"return [{REPLY}]", "no instruction: there is no user message"),
    ],
)
def test_a_row_that_it_cannot_use_is_bad(body: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = convert_with(body, tmp_path, monkeypatch)
    assert isinstance(found, BadRow) and str(found) == reason


@pytest.mark.parametrize(
    ("body", "got"),
    [
        ("return None", "makes no messages of a record\n  got: None\n"),
        ("return []", "makes no messages of a record\n  got: []\n"),
        ("return 'hello'", "makes no messages of a record\n  got: 'hello'\n"),
        ("return ['hello']", "makes no messages of a record\n  got: ['hello']\n"),
        (f"return [{USER}, {{'role': 'assistant'}}]", "makes no messages of a record"),
        (f"return [{USER}, {{'role': 'assistant', 'content': 5}}]", "makes no messages of a record"),
        (f"return [{USER}, {{'role': 'bot', 'content': 'So.'}}]", "ROLE one of system, user, assistant, tool;"),
        (f"return ({USER}, {REPLY})", "makes no messages of a record"),
        ("record['absent']", "fails\n  got: KeyError: 'absent' (line 5 of"),
    ],
)
def test_a_converter_that_is_wrong_is_named(body: str, got: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="the format 'mine'") as error:
        convert_with(body, tmp_path, monkeypatch)
    assert got in str(error.value) and "added_by_others:MINE" in str(error.value)
