"""Read alpaca or messages rows from JSONL, a JSON array or Parquet, recognising both by themselves."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from ual_ray.errors import UserError
from ual_ray.records import Message, Messages

Record = Mapping[str, Any]

FORMATS = {"alpaca": ("instruction", "output"), "messages": ("messages",)}
SUFFIXES = (".jsonl", ".json", ".parquet")
ROLES = ("system", "user", "assistant")


class BadRow(ValueError):
    """A row that cannot be used; the text is the reason it is quarantined with, `raw` what stood in the file."""

    def __init__(self, reason: str, raw: str | None = None) -> None:
        """Give the reason, and the raw text where there is no record to show."""
        super().__init__(reason)
        self.raw = raw


def read_records(path: Path) -> Iterator[Record | BadRow]:
    """Yield the rows of a file one by one; a line that is not JSON is yielded as a BadRow.

    Raises UserError for a file that is missing, unreadable or of an unknown kind.
    """
    if not path.exists():
        raise UserError("data.path does not exist", value=path, legal=f"a file ending in {', '.join(SUFFIXES)}, or 'demo'")
    if not path.is_file() or path.suffix not in SUFFIXES:
        raise UserError("data.path is of an unknown kind", value=path, legal=f"a file ending in {', '.join(SUFFIXES)}")
    try:
        yield from {".jsonl": _read_jsonl, ".json": _read_json, ".parquet": _read_parquet}[path.suffix](path)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, pyarrow.ArrowException) as error:
        raise UserError("data.path cannot be read", value=f"{path}: {error}", fix="check the file and its rights") from error


def recognise_format(records: Sequence[Record | BadRow], path: Path) -> str:
    """Name the format whose columns the first rows have. Raises UserError if there is none."""
    seen: set[str] = set()
    for record in records:
        if isinstance(record, BadRow):
            continue
        for name, columns in FORMATS.items():
            if all(column in record for column in columns):
                return name
        seen.update(record)
    legal = "; ".join(f"{name} ({', '.join(columns)})" for name, columns in FORMATS.items())
    found = f"columns {sorted(seen)}" if seen else "no row that is a JSON object"
    raise UserError(f"the format of {path} is unknown", value=found, legal=legal, fix="rename the columns")


def read_messages(path: Path, format_name: str, limit: int | None) -> tuple[str, Iterator[tuple[Record, Messages | BadRow]]]:
    """Recognise the format and yield each record with its messages, or with the reason it has none."""
    records = read_records(path)
    head = list(islice(records, 20))
    if not head:
        raise UserError("the data set is empty", value=path, legal="at least one row")
    if format_name == "auto":
        format_name = recognise_format(head, path)
    convert = {"alpaca": messages_from_alpaca, "messages": messages_from_chat}[format_name]

    def convert_all() -> Iterator[tuple[Record, Messages | BadRow]]:
        for record in islice(chain(head, records), limit):
            if isinstance(record, BadRow):
                yield {"raw": record.raw}, record
                continue
            try:
                yield record, convert(record)
            except BadRow as reason:
                yield record, reason

    return format_name, convert_all()


def messages_from_alpaca(record: Record) -> Messages:
    """Turn instruction (+ input) and output into one user and one assistant message. Raises BadRow."""
    instruction = _text(record, "instruction")
    response = _text(record, "output")
    extra = record.get("input") or ""
    if not isinstance(extra, str):
        raise BadRow(f"input is not text: {extra!r:.80}")
    if not instruction:
        raise BadRow("no instruction")
    if not response:
        raise BadRow("no response: output is empty")
    question = f"{instruction}\n\n{extra.strip()}" if extra.strip() else instruction
    return [Message(role="user", content=question), Message(role="assistant", content=response)]


def messages_from_chat(record: Record) -> Messages:
    """Check a list of {role, content}: known roles, text in each, an assistant message at the end. Raises BadRow."""
    turns = record.get("messages")
    if not isinstance(turns, list) or not turns:
        raise BadRow("messages is not a list of {role, content}")
    messages: list[Message] = []
    for turn in turns:
        if not isinstance(turn, Mapping) or turn.get("role") not in ROLES:
            raise BadRow(f"a message's role is not one of {', '.join(ROLES)}: {turn!r:.80}")
        content = _text(turn, "content")
        if not content and turn["role"] != "system":
            raise BadRow(
                f"no response: the {turn['role']} message is empty" if turn["role"] == "assistant" else "empty message"
            )
        messages.append(Message(role=turn["role"], content=content))
    if messages[-1]["role"] != "assistant":
        raise BadRow("no response: the last message is not the assistant's")
    if not any(message["role"] == "user" for message in messages):
        raise BadRow("no instruction: there is no user message")
    return messages


def _text(record: Record, column: str) -> str:
    value = record.get(column)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadRow(f"{column} is not text: {value!r:.80}")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise BadRow(f"{column} is not Unicode: it holds half a surrogate pair")
    return value.strip()


def _read_jsonl(path: Path) -> Iterator[Record | BadRow]:
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                yield _object(json.loads(line))
            except json.JSONDecodeError as error:
                yield BadRow(f"not JSON: line {number}: {error}", line.rstrip("\n"))


def _read_json(path: Path) -> Iterator[Record | BadRow]:
    content = json.loads(path.read_text(encoding="utf-8-sig"))
    if not isinstance(content, list):
        raise UserError(
            "data.path is JSON but not an array", value=path, legal="[ {...}, {...} ], or one object a line in .jsonl"
        )
    yield from map(_object, content)


def _read_parquet(path: Path) -> Iterator[Record | BadRow]:
    for batch in pyarrow.parquet.ParquetFile(path).iter_batches():
        yield from batch.to_pylist()


def _object(value: Any) -> Record | BadRow:
    return value if isinstance(value, dict) else BadRow(f"not a JSON object: {value!r:.80}", json.dumps(value))
