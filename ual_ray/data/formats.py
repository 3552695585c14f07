"""Turn a record of any known format into messages, with a reason for every record that has none.

A format is recognised by its columns; `data.columns` maps columns of other names to those that a format expects.
known_formats.py has the formats, config/registry.py lists them.
"""

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from ual_ray import columns as col
from ual_ray.config import DEMO
from ual_ray.config.registry import FORMATS
from ual_ray.data.column_names import (
    ALWAYS_READ,
    ANSWERED,
    ASKED,
    BAD,
    COMMON,
    ERRORS,
    FAULTS,
    FAULTY,
    NO_ERROR,
    OF_THE_ANSWER,
    OF_THE_REPLY,
    PART_OF_A_TEXT,
    SOME_WORDS,
    SYSTEMS,
    THOUGHT_NAME,
    TOOLS,
    VERDICTS,
    WEIGHTS,
)
from ual_ray.data.files import SAVE_AS_UTF_8
from ual_ray.data.records import CONTEXT, NOT_UTF_8, BadRow, Record, check_plain, check_unicode, is_blank, is_missing, text_of
from ual_ray.data.turns import ROLE_NAMES, add_common, checked, unused_keys, with_one_thought, with_reference, without_thoughts
from ual_ray.errors import UserError

__all__ = ["BadRow", "Format", "Record", "convert", "pair", "recognise", "text_of"]


@dataclass(frozen=True)
class Format:
    """A converter to messages, which raises BadRow, and the columns that tell the format: all of `columns`, one of `one_of`.

    `optional`: further columns that the converter reads. What every format may have, `convert` adds: COMMON columns.
    """

    convert: Callable[[Record], col.Messages]
    columns: tuple[str, ...]
    one_of: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()

    def fits(self, record: Record) -> bool:
        """Return whether the record has the columns of this format."""
        has_one = not self.one_of or any(column in record for column in self.one_of)
        return has_one and all(column in record for column in self.columns)

    @property
    def reads(self) -> set[str]:
        """Names of the columns that the converter reads."""
        return {*self.columns, *self.one_of, *self.optional}

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the columns that rows of this format make no sense without, where they have them."""
        has_turns = self.columns in (("messages",), ("conversations",))
        return PART_OF_A_TEXT if has_turns else (*PART_OF_A_TEXT, *OF_THE_ANSWER)

    def describe(self) -> str:
        """List the columns for an error message."""
        return ", ".join([*self.columns, *([" or ".join(self.one_of)] if self.one_of else [])])


# --- columns ---------------------------------------------------------------------------------------------------------


def _spelled(name: str) -> str:
    """Write a name without case and separators, unless it is one letter: System Prompt and systemPrompt are system_prompt."""
    plain = re.sub(r"[\W_]+", "", name).lower()
    return plain if len(plain) > 1 else name


@cache
def _all_spelled(names: tuple[str, ...]) -> frozenset[str]:
    return frozenset(map(_spelled, names))


# What a column may be mapped to; any other is a context.
MAPPED_TO = {**dict.fromkeys(map(_spelled, SYSTEMS), "system"), **dict.fromkeys(map(_spelled, TOOLS), "tools")}


def recognise(records: Sequence[Record | BadRow], where: str, columns: Mapping[str, str]) -> str:
    """Return the first format that fits one of the first rows. Raises UserError if there is none, or for a bad mapping."""
    check_columns(records, where, columns)
    renamed = [rename(record, columns) for record in records if not isinstance(record, BadRow)]
    if not renamed:
        fault = next((str(record) for record in records if isinstance(record, BadRow)), "")
        fix = "correct the file, or name it after its kind: .jsonl has one JSON object per line"
        fix = SAVE_AS_UTF_8 if fault.startswith(NOT_UTF_8) else fix
        raise UserError(f"no row of {where} can be read", got=f"no row that can be read: {fault}", fix=fix)
    fitting = next(
        (names for record in renamed if (names := [name for name, form in FORMATS.items() if form.fits(record)])), []
    )
    if not fitting:
        raise UserError(
            f"the format of {where} is unknown",
            got=f"columns {columns_of(renamed)}",
            expected="; ".join(f"{name} ({form.describe()})" for name, form in FORMATS.items()),
            fix=_mapping_for(renamed),
        )
    _check_ambiguous(renamed, fitting, where, columns)
    return fitting[0]


def _mapping_for(records: Sequence[Record]) -> str:
    """Write how columns of these names are mapped."""
    found = columns_of(records)
    if "chosen" not in found:
        if turns := next((name for record in records for name, value in record.items() if _is_chat(value)), None):
            return f"set 'data.columns={{messages: {turns}}}'"
        named = {
            "instruction": _first_of(ASKED, found),
            "output": _first_of(ANSWERED, found),
            "input": _first_of((CONTEXT,), found),
        }
        if named["instruction"] and named["output"]:
            mapped = ", ".join(f"{ours}: {theirs}" for ours, theirs in named.items() if theirs and ours != theirs)
            return f"set 'data.columns={{{mapped}}}'"
        return "map the columns, such as 'data.columns={instruction: text, output: reply}'"
    if not {"prompt", "instruction", "question"} & {*found} and all(
        isinstance(record.get("chosen"), str) for record in records
    ):
        return "preference data: split the dialogues of chosen into lists of {role, content}, in a column messages"
    whole = any(isinstance(record.get("chosen"), list) and not isinstance(record.get("prompt"), list) for record in records)
    mapped = "messages: chosen" if whole else "completion: chosen" if "prompt" in found else "output: chosen"
    return f"preference data: 'data.columns={{{mapped}}}' trains on the chosen responses"


def _first_of(names: Sequence[str], found: Sequence[str]) -> str | None:
    return next((column for name in names for column in found if _spelled(column) == name), None)


def _is_chat(value: Any) -> bool:
    return (
        isinstance(value, list) and bool(value) and isinstance(value[0], Mapping) and bool({"role", "from"} & value[0].keys())
    )


def _check_ambiguous(records: Sequence[Record], fitting: Sequence[str], where: str, columns: Mapping[str, str]) -> None:
    """Raise UserError for rows with columns of two formats, or with one that belongs to a text but is not read."""
    name = fitting[0]
    reads = FORMATS[name].reads
    if others := [other for other in fitting[1:] if not FORMATS[other].reads & reads]:
        raise UserError(
            f"{where} can be read in several formats",
            got=f"columns of {name} and of {', '.join(others)}",
            fix="set data.format",
        )
    # The first rows may have no value where later ones do.
    for record in records:
        if column := unread(record, {*reads, *columns}, FORMATS[name].parts):
            raise UserError(
                f"{where} is of the format {name}, which does not read the column {column}",
                got=f"columns {columns_of(records)}",
                fix=f"{_use_of(column, record[column], FORMATS[name].columns[-1])}data.format={name} leaves it out",
            )
        if column := _marked_bad(record, columns):
            what = "rows of weights other than 1" if column in WEIGHTS else "rows that may not be for training"
            raise UserError(
                f"{where} has {what}: the column {column} is {record[column]!r:.80} in some",
                got=f"columns {columns_of(records)}",
                fix=f"keep the good rows alone, or set data.format={name} to train on all of them alike",
            )


def _plain(value: Any) -> str:
    return "" if is_missing(value) else str(value).lower().removesuffix(".0")


def unread(record: Record, known: Collection[str], parts: tuple[str, ...] = PART_OF_A_TEXT) -> str | None:
    """Name a column of a record that its text makes no sense without, one of `parts`, where nothing reads it."""
    spelled = _all_spelled(parts)
    left = (
        (name, value)
        for name, value in record.items()
        if value and not is_missing(value) and name not in known and name not in ALWAYS_READ
    )
    return next((name for name, value in left if _spelled(str(name)) in spelled or _is_thought(str(name), value)), None)


def _is_thought(name: str, value: Any) -> bool:
    value = value[0] if isinstance(value, list) and value else value
    return isinstance(value, str) and THOUGHT_NAME.search(name) is not None and len(value.split()) >= SOME_WORDS


def _marked_bad(record: Record, known: Collection[str]) -> str | None:
    """Name a column of a record that may mark its response as a bad one, or gives it a weight, where nothing reads it."""
    marks = [(name, _plain(record.get(name))) for name in (*VERDICTS, *WEIGHTS) if name not in known]
    marked = (name for name, value in marks if (value not in ("1", "") if name in WEIGHTS else value in BAD))
    faulty = (name for name in FAULTS if _plain(record.get(name)) in FAULTY)
    failed = (name for name in ERRORS if not NO_ERROR.fullmatch(_plain(record.get(name))))
    return next(marked, None) or next((name for name in (*faulty, *failed) if name not in known), None)


def _use_of(column: str, value: Any, response: str) -> str:
    """Write how a column that is not read can be. response: the column that the format reads the response from."""
    if _spelled(column) in _all_spelled(OF_THE_ANSWER):
        return f"'data.columns={{{response}: {column}}}' trains on it, "
    if ours := MAPPED_TO.get(_spelled(column)):
        return f"'data.columns={{{ours}: {column}}}' uses it, "
    if not isinstance(value, str) or column in OF_THE_REPLY or _is_thought(column, value):
        return ""
    return f"'data.columns={{{CONTEXT}: {column}}}' puts it before the question, "


def check_reads(format_name: str, columns: Mapping[str, str]) -> None:
    """Raise UserError if `data.columns` maps a column that the format does not read."""
    legal = {*_form(format_name).reads, *COMMON, col.SOURCE, col.ID}
    if ignored := [ours for ours in columns if ours not in legal]:
        others = sorted(name for name, form in FORMATS.items() if {*ignored} <= form.reads)
        use = f"set data.format={' or '.join(others)}, which reads it, or " if others else ""
        raise UserError(
            f"data.columns: the format {format_name} does not read {', '.join(ignored)}",
            expected=", ".join(sorted(legal)),
            fix=f"{use}map to one of these, or leave {', '.join(ignored)} out of data.columns",
        )
    texts = Counter(theirs for ours, theirs in columns.items() if ours in _form(format_name).reads)
    if repeated := [name for name, times in texts.items() if times > 1]:
        both = " and ".join(ours for ours, theirs in columns.items() if theirs == repeated[0])
        raise UserError(
            f"data.columns takes {both} from one column",
            got=repeated[0],
            expected="a column for each: a model would learn to repeat its prompt",
            fix=f"name another column for {both.partition(' and ')[2]}",
        )


def unused_columns(rows: Iterable[tuple[Record, Any]], format_name: str, used: Iterable[str | None]) -> list[str]:
    """List the columns of records, and keys of their messages, that nothing reads, in order of name; `used` are known."""
    form = _form(format_name)
    known = {*form.reads, *COMMON, col.SOURCE, col.ID, "raw"} - {CONTEXT} | {*used}
    found: set[str] = set()
    for record, _ in rows:
        found.update(
            _printable(str(name)) or "(without a name)"
            for name, value in record.items()
            if name not in known and value is not None
        )
        for name in form.reads & record.keys():
            turns = record[name] if isinstance(record[name], list) else []
            found.update(
                _printable(f"{name}.{key}") for turn in turns if isinstance(turn, Mapping) for key in unused_keys(turn)
            )
    return sorted(found)


def _printable(name: str) -> str:
    return name.encode(errors="backslashreplace").decode()


def check_columns(records: Sequence[Record | BadRow], where: str, columns: Mapping[str, str]) -> None:
    """Raise UserError if `data.columns` names a column that no format has, or one that the first rows lack."""
    for ours, theirs in columns.items():
        if ours not in expected_columns():
            legal = ", ".join(expected_columns())
            fix = f"map one of these: data.columns={{OURS: {theirs}}}"
            raise UserError(f"unknown column in data.columns: '{ours}'", got=f"{ours}: {theirs}", expected=legal, fix=fix)
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
    return tuple(dict.fromkeys([*own, *COMMON, col.SOURCE, col.ID]))


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
    records: Iterable[Record | BadRow],
    format_name: str,
    columns: Mapping[str, str],
    thinking: str = "keep",
    reference: str | None = None,
    strict: bool = False,
) -> Iterator[tuple[Record, col.Messages | BadRow]]:
    """Yield each record, its columns renamed, with its messages or the reason it has none.

    thinking, reference: as `data.thinking` and `data.reference`. strict: whether a row is bad that has a column
    which changes its meaning and is not read, as where the format was found out by the first rows.
    """
    form = _form(format_name)
    reference = next((ours for ours, theirs in columns.items() if theirs == reference), reference)
    known = form.reads | {*columns} | ({reference} if reference else set())
    for record in records:
        if isinstance(record, BadRow):
            yield {"raw": record.raw}, record
            continue
        renamed = rename(record, columns)
        try:
            for name in (col.ID, col.SOURCE):
                check_unicode(name, str(renamed.get(name)))
            if strict and (column := unread(renamed, known, form.parts) or _marked_bad(renamed, known)):
                raise BadRow(f"a column that is not read: {column} (data.format={format_name} leaves it out)")
            messages = add_common(renamed, converted(renamed, format_name), common_of(columns) - form.reads)
            if strict:
                _check_said(renamed, messages, form, format_name)
            messages = without_thoughts(messages) if thinking == "drop" else with_one_thought(messages)
            yield renamed, messages if reference is None else with_reference(messages, renamed, reference)
        except BadRow as reason:
            yield renamed, reason


def converted(record: Record, format_name: str) -> col.Messages:
    """Return the messages that a format makes of a record. Raises BadRow for a record that it cannot use.

    Raises UserError where the converter of another package fails or makes something else than messages.
    """
    form = _form(format_name)
    if format_name == DEMO or FORMATS.is_own(format_name):
        return form.convert(record)
    with FORMATS.calling(format_name, BadRow):
        found: Any = form.convert(record)
    if not (isinstance(found, list) and found and all(map(_is_message, found))):
        raise UserError(
            f"the format '{format_name}' makes no messages of a record",
            got=f"{found!r:.200}",
            expected=f'[{{"role": ROLE, "content": TEXT}}, ...], ROLE one of {", ".join(ROLE_NAMES)}; or BadRow with a reason',
            fix=f"correct {FORMATS.where(format_name)}",
        )
    return checked(found)


def _is_message(given: Any) -> bool:
    return isinstance(given, Mapping) and given.get("role") in ROLE_NAMES and isinstance(given.get("content"), str)


def _check_said(record: Record, messages: col.Messages, form: Format, format_name: str) -> None:
    """Raise BadRow for a text that is no more than a word for a missing value."""
    said = [(f"a message of {turn['role']}", turn["content"]) for turn in messages if turn["role"] in ("user", "assistant")]
    for name, text in (*((column, record.get(column)) for column in form.columns), *said):
        if isinstance(text, str) and is_missing(text):
            kind = "no instruction" if name == form.columns[0] or name.endswith("user") else "no response"
            raise BadRow(f"{kind}: {name} is {text!r}, a missing value (data.format={format_name} takes it as text)")


def common_of(columns: Collection[str]) -> set[str]:
    """Name the columns that rows of any format may have, where `data.columns` maps these."""
    return {*COMMON} - ({CONTEXT} - {*columns})


def _form(format_name: str) -> Format:
    """Return a format; the demo's rows are messages."""
    return FORMATS["messages" if format_name == DEMO else format_name]


# --- what converters share -------------------------------------------------------------------------------------------


def pair(record: Record, question_column: str, response_column: str) -> col.Messages:
    """Turn two columns of text into one user and one assistant message. Raises BadRow."""
    question, response = text_of(record, question_column), text_of(record, response_column)
    check_plain(question_column, question)
    check_plain(response_column, response)
    if is_blank(question):
        raise BadRow(f"no instruction: {question_column} is empty")
    if is_blank(response):
        raise BadRow(f"no response: {response_column} is empty")
    return [col.Message(role="user", content=question), col.Message(role="assistant", content=response)]
