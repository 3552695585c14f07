"""Turn a record of any known form into messages, with a reason for every record that has none.

A form is recognised by its columns; `data.columns` gives columns of other names the names that a form asks for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ual_ray import columns as col
from ual_ray.columns import Message, Messages
from ual_ray.config import DEMO
from ual_ray.errors import UserError

Record = Mapping[str, Any]

ROLES = {"system": "system", "user": "user", "assistant": "assistant"}
SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "assistant": "assistant",
    "system": "system",
}


class BadRow(ValueError):
    """A row that cannot be used; the text is the reason it is quarantined with, `raw` what stood in the file."""

    def __init__(self, reason: str, raw: str | None = None) -> None:
        """Give the reason, and the raw text where there is no record to show."""
        super().__init__(reason)
        self.raw = raw


@dataclass(frozen=True)
class Format:
    """A form of row: the columns it must have, `one_of` which there must be one, those it may have, and its converter."""

    convert: Callable[[Record], Messages]
    columns: tuple[str, ...]
    one_of: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()

    def fits(self, record: Record) -> bool:
        """Say whether the record has the columns of this form."""
        has_one = not self.one_of or any(column in record for column in self.one_of)
        return has_one and all(column in record for column in self.columns)

    def describe(self) -> str:
        """List the columns for an error message."""
        return ", ".join([*self.columns, *([" or ".join(self.one_of)] if self.one_of else [])])


# --- columns ---------------------------------------------------------------------------------------------------------


def recognise(records: Sequence[Record | BadRow], where: str, columns: Mapping[str, str]) -> str:
    """Name the format whose columns the first rows have. Raises UserError if there is none, or for a bad mapping."""
    check_columns(records, where, columns)
    renamed = [rename(record, columns) for record in records if not isinstance(record, BadRow)]
    for record in renamed:
        for name, form in FORMATS.items():
            if form.fits(record):
                return name
    first_fault = next((f": {record}" for record in records if isinstance(record, BadRow)), "")
    raise UserError(
        f"the format of {where} is unknown",
        got=f"columns {columns_of(renamed)}" if renamed else f"no row that is a JSON object{first_fault}",
        expected="; ".join(f"{name} ({form.describe()})" for name, form in FORMATS.items()),
        fix="say which column is which, such as 'data.columns={instruction: text, output: reply}'",
    )


def check_columns(records: Sequence[Record | BadRow], where: str, columns: Mapping[str, str]) -> None:
    """Raise UserError if `data.columns` names a column that no format has, or one that the first rows lack."""
    for ours, theirs in columns.items():
        if ours not in COLUMNS:
            raise UserError(f"unknown column in data.columns: '{ours}'", got=f"{ours}: {theirs}", expected=", ".join(COLUMNS))
    found = columns_of(record for record in records if not isinstance(record, BadRow))
    for ours, theirs in columns.items():
        if found and theirs not in found:
            raise UserError(
                f"data.columns: {where} has no column '{theirs}' (for {ours})",
                got=f"columns {found}",
                fix="name one of the columns found",
            )


def columns_of(records: Iterable[Record]) -> list[str]:
    """List the columns of the records, in order of name."""
    return sorted({str(column) for record in records for column in record})


def rename(record: Record, columns: Mapping[str, str]) -> Record:
    """Give the columns that `columns` maps (our name to theirs) our names, and leave the others as they are."""
    if not columns:
        return record
    # A column of ours that is mapped comes from theirs alone: where a row lacks it, another's value must not take its place.
    taken = {*columns, *columns.values()}
    kept = {name: value for name, value in record.items() if name not in taken}
    return kept | {ours: record[theirs] for ours, theirs in columns.items() if theirs in record}


# --- rows ------------------------------------------------------------------------------------------------------------


def convert(
    records: Iterable[Record | BadRow], format_name: str, columns: Mapping[str, str]
) -> Iterator[tuple[Record, Messages | BadRow]]:
    """Yield each record, its columns renamed, with its messages or the reason it has none."""
    to_messages = converter(format_name)
    for record in records:
        if isinstance(record, BadRow):
            yield {"raw": record.raw}, record
            continue
        renamed = rename(record, columns)
        try:
            _check_names(renamed)
            yield renamed, to_messages(renamed)
        except BadRow as reason:
            yield renamed, reason


def converter(format_name: str) -> Callable[[Record], Messages]:
    """Find the function that turns a record into messages; the demo's rows are messages. It raises BadRow."""
    return FORMATS["messages" if format_name == DEMO else format_name].convert


def messages_from_alpaca(record: Record) -> Messages:
    """Turn instruction (+ input) and output into a chat, behind an optional system message. Raises BadRow."""
    instruction = _text(record, "instruction")
    extra = _text(record, "input") if record.get("input") else ""
    question = f"{instruction}\n\n{extra}" if instruction and extra else instruction
    return _pair(_text(record, "system"), question, _text(record, "output"), "instruction", "output")


def messages_from_sharegpt(record: Record) -> Messages:
    """Turn conversations, a list of {from, value}, into messages, behind an optional system. Raises BadRow."""
    messages = _turns(record, "conversations", "from", "value", SHAREGPT_ROLES)
    system = _text(record, "system")
    if not system or messages[0] == {"role": "system", "content": system}:
        return _checked(messages)
    if messages[0]["role"] == "system":
        raise BadRow("two system messages: the column system is not the first message of conversations")
    return _checked([Message(role="system", content=system), *messages])


def messages_from_chat(record: Record) -> Messages:
    """Check a list of {role, content}: known roles, text in each, an assistant message at the end. Raises BadRow."""
    return _checked(_turns(record, "messages", "role", "content", ROLES))


def messages_from_prompt_completion(record: Record) -> Messages:
    """Join prompt and completion, both text or both lists of {role, content} as TRL has them. Raises BadRow."""
    prompt, completion = record.get("prompt"), record.get("completion")
    if not isinstance(prompt, list) and not isinstance(completion, list):
        return _pair("", _text(record, "prompt"), _text(record, "completion"), "prompt", "completion")
    if not isinstance(prompt, list):
        raise BadRow("prompt is not a list of {role, content}, which completion is")
    if completion is None or completion in ("", []):
        raise BadRow("no response: completion is empty")
    if not isinstance(completion, list):
        raise BadRow("completion is not a list of {role, content}, which prompt is")
    question = _turns(record, "prompt", "role", "content", ROLES)
    return _checked(question + _turns(record, "completion", "role", "content", ROLES))


def messages_from_gsm8k(record: Record) -> Messages:
    """Turn question and answer into one user and one assistant message. Raises BadRow."""
    return _pair("", _text(record, "question"), _text(record, "answer"), "question", "answer")


def messages_from_metamath(record: Record) -> Messages:
    """Turn query and response into one user and one assistant message. Raises BadRow."""
    return _pair("", _text(record, "query"), _text(record, "response"), "query", "response")


def _pair(system: str, question: str, response: str, question_column: str, response_column: str) -> Messages:
    if not question:
        raise BadRow(f"no instruction: {question_column} is empty")
    if not response:
        raise BadRow(f"no response: {response_column} is empty")
    pair = [Message(role="user", content=question), Message(role="assistant", content=response)]
    return [Message(role="system", content=system), *pair] if system else pair


def _turns(record: Record, column: str, role_key: str, content_key: str, roles: Mapping[str, str]) -> list[Message]:
    turns = record.get(column)
    if not isinstance(turns, list) or not turns:
        raise BadRow(f"{column} is not a list of {{{role_key}, {content_key}}}")
    return [_turn(turn, role_key, content_key, roles) for turn in turns]


def _turn(turn: Any, role_key: str, content_key: str, roles: Mapping[str, str]) -> Message:
    given = turn.get(role_key) if isinstance(turn, Mapping) else None
    role = roles.get(given) if isinstance(given, str) else None
    if role is None:
        raise BadRow(f"a message's role is not one of {', '.join(roles)}: {turn!r:.80}")
    content = _text(turn, content_key)
    if not content and role != "system":
        raise BadRow("no response: the assistant message is empty" if role == "assistant" else "empty message")
    return Message(role=role, content=content)


def _checked(messages: list[Message]) -> Messages:
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
    _check_unicode(column, value)
    return value.strip()


def _check_names(record: Record) -> None:
    """Raise BadRow for an id or a source that cannot be written."""
    for column in (col.ID, col.SOURCE):
        _check_unicode(column, str(record.get(column)))


def _check_unicode(column: str, value: str) -> None:
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise BadRow(f"{column} is not Unicode: it holds half a surrogate pair") from None


# The most specific first: the first that fits a row is its format. AlpacaEval's outputs are alpaca rows that name who gave
# them; read by alpaca's rules, so that an alpaca row with a column `dataset` does not lose its input.
FORMATS: dict[str, Format] = {
    "messages": Format(messages_from_chat, ("messages",)),
    "sharegpt": Format(messages_from_sharegpt, ("conversations",), optional=("system",)),
    "alpaca_eval": Format(messages_from_alpaca, ("instruction", "output"), one_of=("generator", "dataset")),
    "alpaca": Format(messages_from_alpaca, ("instruction", "output"), optional=("input", "system")),
    "gsm8k": Format(messages_from_gsm8k, ("question", "answer")),
    "metamath": Format(messages_from_metamath, ("query", "response")),
    "prompt_completion": Format(messages_from_prompt_completion, ("prompt", "completion")),
}

# What data.columns may map.
COLUMNS = tuple(
    dict.fromkeys(
        [*(name for form in FORMATS.values() for name in (*form.columns, *form.one_of, *form.optional)), col.SOURCE, col.ID]
    )
)
