"""Readers: every form of file and row, and a reason for every bad row."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from ual_ray.errors import UserError
from ual_ray.sources.readers import (
    BadRow,
    messages_from_alpaca,
    messages_from_chat,
    read_messages,
    read_records,
    recognise_format,
)

Rows = list[dict[str, Any]]


def jsonl(rows: Rows, folder: Path) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def array(rows: Rows, folder: Path) -> Path:
    path = folder / "rows.json"
    path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return path


def parquet(rows: Rows, folder: Path) -> Path:
    path = folder / "rows.parquet"
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)
    return path


WRITERS = [jsonl, array, parquet]

ALPACA: Rows = [
    {"instruction": "Say hi.", "input": "", "output": "Hi."},
    {"instruction": "Translate.", "input": "être", "output": "to be"},
]
CHAT: Rows = [
    {"messages": [{"role": "user", "content": "Say hi."}, {"role": "assistant", "content": "Hi."}]},
    {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "One?"},
            {"role": "assistant", "content": "1"},
            {"role": "user", "content": "Two?"},
            {"role": "assistant", "content": "2"},
        ]
    },
]


def user_and_assistant(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("format_name", ["auto", "alpaca"])
def test_alpaca(write: Callable[[Rows, Path], Path], format_name: str, tmp_path: Path) -> None:
    recognised, entries = read_messages(write(ALPACA, tmp_path), format_name, None)
    assert recognised == "alpaca"
    assert [*entries] == [
        (ALPACA[0], user_and_assistant("Say hi.", "Hi.")),
        (ALPACA[1], user_and_assistant("Translate.\n\nêtre", "to be")),
    ]


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("format_name", ["auto", "messages"])
def test_messages(write: Callable[[Rows, Path], Path], format_name: str, tmp_path: Path) -> None:
    recognised, entries = read_messages(write(CHAT, tmp_path), format_name, None)
    assert recognised == "messages"
    assert [*entries] == [(row, row["messages"]) for row in CHAT]


def test_a_row_may_have_more_columns_than_its_format(tmp_path: Path) -> None:
    path = jsonl([{"instruction": "a", "output": "b", "score": 3}], tmp_path)
    recognised, entries = read_messages(path, "auto", None)
    assert recognised == "alpaca"
    assert [messages for _, messages in entries] == [user_and_assistant("a", "b")]


def test_the_format_is_recognised_behind_bad_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"broken\n\n{"instruction": "a", "output": "b"}\n')
    recognised, entries = read_messages(path, "auto", None)
    (_, bad), (_, good) = entries
    assert recognised == "alpaca"
    assert isinstance(bad, BadRow)
    assert good == user_and_assistant("a", "b")


@pytest.mark.parametrize("limit", [1, 3, 25, 30, 99])
def test_no_more_rows_than_the_limit(limit: int, tmp_path: Path) -> None:
    rows = [{"instruction": f"q{index}", "output": "a"} for index in range(30)]
    _, entries = read_messages(jsonl(rows, tmp_path), "auto", limit)
    assert [record["instruction"] for record, _ in entries] == [f"q{index}" for index in range(min(limit, 30))]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"instruction": "q", "output": ""}, "no response"),
        ({"instruction": "q", "output": "  \n"}, "no response"),
        ({"instruction": "q", "output": None}, "no response"),
        ({"instruction": "q"}, "no response"),
        ({"instruction": "", "output": "a"}, "no instruction"),
        ({"output": "a"}, "no instruction"),
        ({"instruction": 5, "output": "a"}, "instruction is not text: 5"),
        ({"instruction": "q", "output": ["a"]}, r"output is not text: \['a'\]"),
        ({"instruction": "q", "input": ["x"], "output": "a"}, r"input is not text: \['x'\]"),
    ],
)
def test_bad_alpaca_rows(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadRow, match=reason):
        messages_from_alpaca(row)


@pytest.mark.parametrize("extra", ["", None, "  "])
def test_an_empty_input_leaves_the_instruction_alone(extra: str | None) -> None:
    row = {"instruction": " q ", "input": extra, "output": " a\n"}
    assert messages_from_alpaca(row) == user_and_assistant("q", "a")


USER = {"role": "user", "content": "q"}
ASSISTANT = {"role": "assistant", "content": "a"}


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        (None, "not a list"),
        ("hello", "not a list"),
        ([], "not a list"),
        (["hello"], "role is not one of system, user, assistant"),
        ([{"role": "human", "content": "q"}, ASSISTANT], "role is not one of system, user, assistant.*human"),
        ([{"content": "q"}, ASSISTANT], "role is not one of"),
        ([USER], "no response: the last message"),
        ([USER, ASSISTANT, USER], "no response: the last message"),
        ([USER, {"role": "assistant", "content": ""}], "no response: the assistant message is empty"),
        ([USER, {"role": "assistant", "content": None}], "no response: the assistant message is empty"),
        ([USER, {"role": "assistant"}], "no response: the assistant message is empty"),
        ([{"role": "user", "content": " "}, ASSISTANT], "empty message"),
        ([USER, {"role": "assistant", "content": [{"type": "text"}]}], "content is not text"),
        ([ASSISTANT], "no instruction"),
        ([{"role": "system", "content": "s"}, ASSISTANT], "no instruction"),
    ],
)
def test_bad_messages(turns: Any, reason: str) -> None:
    with pytest.raises(BadRow, match=reason):
        messages_from_chat({"messages": turns})


def test_reasons_are_short_however_long_the_value() -> None:
    with pytest.raises(BadRow) as error:
        messages_from_alpaca({"instruction": ["x" * 5000], "output": "a"})
    assert len(str(error.value)) < 150


def test_a_bad_row_is_yielded_between_good_ones(tmp_path: Path) -> None:
    rows = [ALPACA[0], {"instruction": "q", "output": ""}, ALPACA[1]]
    _, entries = read_messages(jsonl(rows, tmp_path), "auto", None)
    outcomes = [(record, messages) for record, messages in entries]
    assert [record for record, _ in outcomes] == rows
    assert [isinstance(messages, BadRow) for _, messages in outcomes] == [False, True, False]


def test_lines_that_are_no_objects(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n\n{oops}\n[1, 2]\n"text"\n')
    good, broken, listed, text = read_records(path)
    assert good == {"a": 1}
    assert "line 3" in str(broken) and "not JSON" in str(broken)
    assert "not a JSON object: [1, 2]" in str(listed) and "not a JSON object: 'text'" in str(text)


def test_an_array_may_hold_what_is_no_object(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text('[{"a": 1}, 7]')
    good, bad = read_records(path)
    assert good == {"a": 1}
    assert isinstance(bad, BadRow)


def unreadable(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("rows.csv", b"a,b\n", "unknown kind"),
        ("rows", b"", "unknown kind"),
        ("rows.json", b'{"instruction": "q"}', "not an array"),
        ("rows.json", b'{"a": 1}\n{"a": 2}\n', "cannot be read"),
        ("rows.json", b"[1, ", "cannot be read"),
        ("rows.jsonl", b'{"a": "\xff"}\n', "cannot be read"),
        ("rows.parquet", b"not parquet", "cannot be read"),
    ],
)
def test_files_that_cannot_be_read_are_named(name: str, content: bytes, says: str, tmp_path: Path) -> None:
    path = unreadable(tmp_path, name, content)
    with pytest.raises(UserError, match=says) as error:
        [*read_records(path)]
    assert str(path) in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"(?s)data\.path does not exist.*no\.jsonl.*'demo'"):
        [*read_records(tmp_path / "no.jsonl")]


def test_a_folder_is_of_an_unknown_kind(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown kind"):
        [*read_records(tmp_path)]


@pytest.mark.parametrize(("name", "content"), [("a.jsonl", ""), ("a.jsonl", "\n \n"), ("a.json", "[]")])
def test_an_empty_data_set_is_refused(name: str, content: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(UserError, match=rf"(?s)the data set is empty.*{name}"):
        read_messages(path, "auto", None)


def test_a_parquet_file_without_rows_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pa.table({"instruction": pa.array([], pa.string())}), path)
    with pytest.raises(UserError, match="the data set is empty"):
        read_messages(path, "auto", None)


def test_unknown_columns_are_shown_with_the_legal_ones(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        read_messages(jsonl([{"question": "q"}, {"answer": "a"}], tmp_path), "auto", None)
    message = str(error.value)
    assert "rows.jsonl is unknown" in message
    assert "found: columns ['answer', 'question']" in message
    assert "alpaca (instruction, output); messages (messages)" in message


def test_rows_that_are_no_objects_have_no_format() -> None:
    with pytest.raises(UserError, match="no row that is a JSON object"):
        recognise_format([BadRow("line 1 is not JSON")], Path("a.jsonl"))


def test_a_byte_order_mark_costs_no_row(tmp_path: Path) -> None:
    """Editors on Windows put one in front."""
    path = unreadable(tmp_path, "rows.jsonl", b'\xef\xbb\xbf{"instruction": "q", "output": "a"}\n')
    _, entries = read_messages(path, "auto", None)
    assert [messages for _, messages in entries] == [user_and_assistant("q", "a")]
