"""Fuzz targets of what reads data: files of every kind, rows of every format, questions of benchmarks, labels."""

from __future__ import annotations

import csv
import datetime
import decimal
import io
import json
from contextlib import suppress
from typing import Any
from unittest import mock

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet
from fuzz_source import ODD, Source, Target, of_bytes

from ual_ray import columns as col
from ual_ray.benchmarks import make_benchmarks
from ual_ray.columns import Messages, content_id
from ual_ray.config import BenchmarkConfig, DataConfig
from ual_ray.config.registry import FORMATS
from ual_ray.data import canonical, text_files
from ual_ray.data.formats import BadRow, convert, recognise, unused_columns
from ual_ray.data.reading import byte_ranges
from ual_ray.data.shard import Piece
from ual_ray.errors import UserError
from ual_ray.evaluate.questions import _row

TURN_KEYS = (
    *("role", "from", "content", "value", "tool_calls", "function_call", "name", "tool_call_id", "weight", "loss", "mask"),
    *("reasoning_content", "thinking", "type", "text", "function", "arguments", "parameters", "id", "channel", "train"),
)
ROW_KEYS = (
    *("messages", "conversations", "instruction", "input", "output", "prompt", "completion", "question", "answer", "query"),
    *("response", "system", "tools", "functions", "context", "id", "source", "label", "kto_tag", "weight", "chosen", "split"),
    *("solution", "choices", "generator", "dataset", "turns", "endings", "ctx", "activity_label", "answerKey", "problem"),
    *("category", "reference", "group", "passage", "history"),
)
KEYS = (*TURN_KEYS, *ROW_KEYS)
ROLES = ("user", "assistant", "system", "human", "gpt", "tool", "function_call", "observation", "developer", "bot", "User")
PLAIN = ("q", "a", "7", "#### 18", "\\boxed{7}", " ", "\n", "<think>", "</think>", "[", "{", '{"a": 1}', "Blue.", "nan", *ODD)
# What a table may hold and JSON has no value for.
FOREIGN = (b"x", b"\xff", datetime.date(2026, 1, 2), datetime.datetime(2026, 1, 2), decimal.Decimal("1.5"), (("a", 1),))
FORMAT_NAMES = tuple(FORMATS)
SETTINGS = [
    DataConfig(path="x", format="auto" if strict else name, group_by=group, test_share=0.2, thinking=thinking, columns=columns)
    for name in FORMAT_NAMES
    for strict, group, thinking, columns in (
        *((True, None, "keep", {}), (False, "group", "drop", {}), (False, None, "keep", {"context": "passage"})),
        (False, "id", "keep", {"system": "category"}),
    )
]
BENCHMARKS = {
    kind: make_benchmarks({kind: BenchmarkConfig(kind=kind, path="x")})[kind]
    for kind in ("gsm8k", "math", "multiple_choice", "open_ended")
}


# --- rows ------------------------------------------------------------------------------------------------------------


class Rows(Source):
    """Rows as people have them, with something else here and there. foreign: also values that JSON does not have."""

    def __init__(self, data: bytes, foreign: bool = False) -> None:
        super().__init__(data)
        self._foreign = foreign

    def leaf(self) -> Any:
        return self.pick(FOREIGN) if self._foreign and not self.number(8) else super().leaf()

    def other(self) -> Any:
        value = self.value(KEYS, 3)
        return value if self.number(4) else json.dumps(value, default=str)

    def plain(self) -> Any:
        return self.mostly(lambda: self.text(PLAIN, 5), self.other)

    def call(self) -> Any:
        arguments = self.mostly(lambda: {self.pick(KEYS): self.leaf()}, self.other)
        return {"function": {"name": self.plain(), "arguments": arguments}}

    def turn(self) -> Any:
        role, content = self.pick((("role", "content"), ("from", "value"), ("role", "value")))
        turn = {role: self.mostly(lambda: self.pick(ROLES), self.other), content: self.plain()}
        if not self.number(4):
            turn["tool_calls"] = self.mostly(lambda: [self.call()], self.other)
        for _ in range(self.number(3) if not self.number(3) else 0):
            turn[self.key(TURN_KEYS)] = self.mostly(lambda: self.pick((0, 1, True, "final", "", None)), self.other)
        return turn

    def chat(self) -> Any:
        turns = [self.turn() for _ in range(self.number(5))]
        turns.append({"role": "assistant", "content": self.plain()})
        return turns if self.number(8) else json.dumps(turns, default=str)

    def row(self, form: Any) -> dict[str, Any]:
        row = {}
        for name in (*form.columns, *form.one_of[:1]):
            wide = name in ("messages", "conversations") or (name in ("prompt", "completion") and not self.number(3))
            row[name] = self.mostly(self.chat if wide else self.plain, self.other)
        for _ in range(self.number(4)):
            row[self.key(ROW_KEYS)] = self.mostly(self.plain, self.other)
        if not self.number(6):
            row["tools"] = [{"name": self.plain(), "parameters": self.other()}]
        return row


def rows_of(data: bytes, foreign: bool = False) -> Any:
    source = Rows(data, foreign)
    settings = SETTINGS[source.number(len(SETTINGS))]
    name = FORMAT_NAMES[SETTINGS.index(settings) // 4]
    return [source.row(FORMATS[name]) for _ in range(1 + source.number(3))], name, settings


def check_rows(given: tuple[list[dict[str, Any]], str, DataConfig]) -> None:
    """Every row is kept or bad and counted, its texts stay as they are, and both can be written."""
    records, name, settings = given
    read = [as_read(record) for record in records]
    with suppress(UserError):
        recognise(read, "x", settings.columns)
    strict = settings.format == "auto"
    seen = list(convert(read, name, settings.columns, settings.thinking, None, strict))
    assert len(seen) == len(records)
    ", ".join(unused_columns(seen, name, [])).encode()
    entries = [(at, record, messages) for at, (record, messages) in enumerate(seen)]
    block = canonical._block(entries, Piece("x", "x.jsonl", "jsonl"), settings, first_of)
    assert len(block.rows) + len(block.quarantined) + block.duplicates == len(records)
    kept = iter(block.rows.to_pylist())
    for row in block.quarantined:
        json.dumps(row, ensure_ascii=False, default=str).encode(errors="backslashreplace")
    ids = set()
    for record, messages in seen:
        if isinstance(messages, BadRow):
            assert str(messages)
        elif (identity := content_id(messages)) not in ids:
            ids.add(identity)
            row = next(kept)
            assert row[col.ID] == identity and row[col.SPLIT] in col.SPLITS
            assert [one["content"] for one in row[col.MESSAGES]] == [one["content"] for one in messages]
            if settings.thinking == "keep":
                check_texts(record, name, messages)


def as_read(record: dict[str, Any]) -> Any:
    """Return a record as the reader of JSON lines makes it; as it is where JSON has no such values."""
    try:
        line = json.dumps(record).encode()
    except TypeError:
        return record
    (row,) = text_files.map_lines([line], 0)
    return row


def first_of(identities: Any, positions: Any) -> list[bool]:
    found: set[str] = set()
    return [not (identity in found or found.add(identity)) for identity in identities]  # type: ignore[func-returns-value]


def check_texts(record: Any, name: str, messages: Messages) -> None:
    """Look for the texts of a row in its messages, character by character."""
    texts = [record.get(column) for column in FORMATS[name].columns]
    given = [text for text in texts if isinstance(text, str)] if name in ("gsm8k", "metamath", "alpaca") else []
    for turns in texts:
        for turn in turns if isinstance(turns, list) and name in ("messages", "sharegpt") else ():
            if turn.get("role", turn.get("from")) in ("user", "assistant", "human", "gpt"):
                given += [turn[key] for key in ("content", "value") if isinstance(turn.get(key), str)]
    for text in given:
        assert any(text in message["content"] for message in messages), f"{text!r} is not in {messages!r}"


def check_questions(given: tuple[list[dict[str, Any]], str, DataConfig]) -> None:
    """Every record is a question or bad; questions have ids, are written, and the answer to choices is one of them."""
    records, *_ = given
    for kind, benchmark in BENCHMARKS.items():
        found = list(benchmark.questions(map(as_read, records), "x"))
        assert len(found) == len(records)
        rows = [_row(kind, benchmark, one) for one in found if not isinstance(one, BadRow)]
        table = pa.Table.from_pylist(rows, col.QUESTIONS)
        for question, row in zip((one for one in found if not isinstance(one, BadRow)), table.to_pylist(), strict=True):
            assert benchmark.requests(question) and row[col.ID]
            assert not question.choices or question.choices[int(question.answer or "")]


def questions_of(data: bytes) -> Any:
    source = Rows(data)
    record = source.row(FORMATS[source.pick(FORMAT_NAMES)]) if source.number(2) else {}
    if not source.number(3):
        record |= {"ctx": source.plain(), "endings": source.mostly(lambda: ["x", source.plain(), "y"], source.other)}
        record["label"] = source.pick((0, "1", "2", "\u00b2", "9" * 5000, -1, 1.0, True, None, "\u0661"))
    elif not source.number(2):
        choices = {"text": [source.plain(), "b"], "label": source.mostly(lambda: ["A", "B"], source.other)}
        record |= {"question": source.plain(), "choices": source.mostly(lambda: choices, source.other), "answerKey": "B"}
    else:
        record |= {source.pick(("problem", "prompt", "turns", "instruction")): source.plain(), "solution": source.plain()}
    return [record], "", SETTINGS[0]


# --- files -----------------------------------------------------------------------------------------------------------

ROW_BYTES = (
    *(b'{"messages": [', b'{"role": "user", "content": "', b'{"role": "assistant", "content": "', b'"}', b", ", b"]}", b"\n"),
    *(b"\r\n", b"{", b"}", b"[", b"]", b'"a": ', b'"a": 1', b"1", b"-", b".5", b"e9", b"NaN", b"Infinity", b"null", b"true"),
    *(
        b'"',
        b"\\",
        b"\\ud83d",
        b"\\ude00",
        b"\xf0\x9f\x98\x80",
        b"\xff",
        b"\xef\xbb\xbf",
        b" ",
        b"\t",
        b"9" * 5000,
        b"[" * 2000,
    ),
    *(
        b"a,b",
        b"a;b",
        b"sep=;\n",
        b'"x\ny"',
        b'""',
        b"\x00",
        b"\r",
        b"x",
        b"\xc2\xa0",
        b'"b": "c"',
        b",",
        b"\x85",
        b"\xe2\x80\xa8",
    ),
)


def lines_of(data: bytes) -> Any:
    source = Source(data)
    step = 1 + source.number(60)
    return b"".join([ROW_BYTES[byte % len(ROW_BYTES)] for byte in source.rest()]), step


def check_lines(given: tuple[bytes, int]) -> None:
    """Every line that is not blank gives one row, and cut at any byte a file gives the same rows."""
    content, step = given
    whole = list(text_files.map_lines(content_lines(content, 0, None), 0))
    wanted = [line for line in content.split(b"\n") if line.removeprefix(text_files.BOM).decode(errors="replace").strip()]
    assert len(whole) == len(wanted)
    parts = [
        row
        for first, last in byte_ranges(len(content), step)
        for row in text_files.map_lines(content_lines(content, first, last), first)
    ]
    assert [shown(row) for row in parts] == [shown(row) for row in whole]


def content_lines(content: bytes, first: int, last: int | None) -> Any:
    return text_files.lines_of(io.BufferedReader(io.BytesIO(content)), first, last)  # type: ignore[arg-type]


def shown(row: Any) -> Any:
    return ("bad", row.raw) if isinstance(row, BadRow) else repr(row)


def check_array(given: tuple[bytes, int]) -> None:
    """An array read block by block has the values that json reads at once, or is refused."""
    content, step = given
    text = f"[{content.decode(errors='replace')}]"
    with mock.patch.object(text_files, "BLOCK", step):
        found = refused(lambda: list(text_files.array_items(io.StringIO(text), "x")))
    wanted = refused(lambda: text_files.DECODER.decode(text))
    # Of more digits Python reads no whole number, but where it is cut it may be the start of another one.
    assert "9" * 4300 in text or repr(found) == repr(wanted if isinstance(wanted, list) else None)


def refused(read: Any) -> Any:
    try:
        return read()
    except (ValueError, RecursionError):
        return None


def check_cells(given: tuple[bytes, int]) -> None:
    """Cells are read as they were written, and lines of any text are rows or bad rows."""
    content, step = given
    cells = content.decode(errors="replace").split("x")
    rows = [cells[at : at + 2] for at in range(0, len(cells) - 1, 2)]
    written = io.StringIO(newline="")
    writer = csv.writer(written, quoting=csv.QUOTE_ALL if step % 2 else csv.QUOTE_MINIMAL)
    writer.writerows([["question", "answer"], *rows])
    read = list(text_files.TEXT_PARSERS["csv"](io.StringIO(written.getvalue(), newline=""), "x"))
    good = [[*row.values()] for row in read if not isinstance(row, BadRow)]
    assert [row for row in rows if row in good] == good, "other cells than were written"
    assert step % 2 == 0 or good == rows, "where all cells are quoted, none is lost"
    with suppress(UserError, csv.Error):
        for kind in ("csv", "tsv"):
            for row in text_files.TEXT_PARSERS[kind](io.StringIO(content.decode(errors="replace"), newline=""), "x"):
                assert str(row)


TARGETS: dict[str, Target] = {
    "rows": of_bytes(rows_of, check_rows, size=300),
    "foreign rows": of_bytes(lambda data: rows_of(data, foreign=True), check_rows, size=300),
    "questions": of_bytes(questions_of, check_questions),
    "lines": of_bytes(lines_of, check_lines, size=60),
    "array": of_bytes(lines_of, check_array, size=60),
    "cells": of_bytes(lines_of, check_cells, size=60),
}
