"""Turn a record of any known format into messages, with a reason for every record that has none.

A format is recognised by its columns; `data.columns` maps columns of other names to those that a format expects.
known_formats.py has the formats, config/registry.py lists them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from ual_ray import columns as col
from ual_ray.columns import Message, Messages
from ual_ray.config import DEMO
from ual_ray.config.registry import FORMATS
from ual_ray.errors import UserError

Record = Mapping[str, Any]


class BadRow(ValueError):
    """A row that cannot be used: the reason it is quarantined with, and `raw`, the text of a line that is not a record."""

    def __init__(self, reason: str, raw: str | None = None) -> None:
        """Keep the reason, and the raw text."""
        super().__init__(reason)
        self.raw = raw


@dataclass(frozen=True)
class Format:
    """A converter to messages, which raises BadRow, and the columns that tell the format: all of `columns`, one of `one_of`.

    `optional`: further columns that the converter reads.
    """

    convert: Callable[[Record], Messages]
    columns: tuple[str, ...]
    one_of: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()

    def fits(self, record: Record) -> bool:
        """Return whether the record has the columns of this format."""
        has_one = not self.one_of or any(column in record for column in self.one_of)
        return has_one and all(column in record for column in self.columns)

    def describe(self) -> str:
        """List the columns for an error message."""
        return ", ".join([*self.columns, *([" or ".join(self.one_of)] if self.one_of else [])])


# --- columns ---------------------------------------------------------------------------------------------------------


def recognise(records: Sequence[Record | BadRow], where: str, columns: Mapping[str, str]) -> str:
    """Return the first format that fits one of the first rows. Raises UserError if there is none, or for a bad mapping."""
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
        fix="map the columns, such as 'data.columns={instruction: text, output: reply}'",
    )


def check_columns(records: Sequence[Record | BadRow], where: str, columns: Mapping[str, str]) -> None:
    """Raise UserError if `data.columns` names a column that no format has, or one that the first rows lack."""
    for ours, theirs in columns.items():
        if ours not in expected_columns():
            legal = ", ".join(expected_columns())
            raise UserError(f"unknown column in data.columns: '{ours}'", got=f"{ours}: {theirs}", expected=legal)
    found = columns_of(record for record in records if not isinstance(record, BadRow))
    for ours, theirs in columns.items():
        if found and theirs not in found:
            raise UserError(
                f"data.columns: {where} has no column '{theirs}' (for {ours})",
                got=f"columns {found}",
                fix="name one of the columns found",
            )


@cache
def expected_columns() -> tuple[str, ...]:
    """Return the names that `data.columns` may map: the columns of all formats, source and id."""
    own = (name for form in FORMATS.values() for name in (*form.columns, *form.one_of, *form.optional))
    return tuple(dict.fromkeys([*own, col.SOURCE, col.ID]))


def columns_of(records: Iterable[Record]) -> list[str]:
    """List the columns of the records, in order of name."""
    return sorted({str(column) for record in records for column in record})


def rename(record: Record, columns: Mapping[str, str]) -> Record:
    """Rename the columns that `columns` maps (expected to actual name), and keep the others."""
    if not columns:
        return record
    # Where a row lacks the mapped column, a column that has the expected name must not replace it.
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
    """Return the function that turns a record into messages and raises BadRow; the demo's rows are messages."""
    convert: Callable[[Record], Messages] = FORMATS["messages" if format_name == DEMO else format_name].convert
    return convert


# --- what converters share -------------------------------------------------------------------------------------------


def pair(record: Record, question_column: str, response_column: str) -> Messages:
    """Turn two columns of text into one user and one assistant message. Raises BadRow."""
    question, response = text_of(record, question_column), text_of(record, response_column)
    if not question:
        raise BadRow(f"no instruction: {question_column} is empty")
    if not response:
        raise BadRow(f"no response: {response_column} is empty")
    return [Message(role="user", content=question), Message(role="assistant", content=response)]


def text_of(record: Record, column: str) -> str:
    """Return the stripped text of a column; "" where it is missing or null. Raises BadRow for a value that is not text."""
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
