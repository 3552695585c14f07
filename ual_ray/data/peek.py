"""Inspect a data set before a run starts: its format, its size and its first rows."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice

from ual_ray.columns import Messages, content_id
from ual_ray.config import DEMO, DataConfig
from ual_ray.config.redact import redact_uri
from ual_ray.data.formats import BadRow, Record, check_columns, check_reads, columns_of, convert, recognise, unused_columns
from ual_ray.data.reading import Piece, find_pieces, read_piece
from ual_ray.data.records import BROKEN, PLACEHOLDERS, PRINTED, is_rendered, marks_in
from ual_ray.data.turns import THOUGHT_OPEN, is_closed
from ual_ray.errors import UserError
from ual_ray.formatting import plural, shorten, shorten_list

Seen = list[tuple[Record, Messages | BadRow]]


@dataclass(frozen=True)
class DataPeek:
    """Summary of a data set: its format, its shards, the estimated number of rows (None = unknown), and the first rows."""

    format_name: str
    pieces: list[Piece]
    estimated_rows: int | None
    records: Seen
    complete: bool
    unused: tuple[str, ...] = ()

    def describe(self, path: str) -> str:
        """Write the size, the format, the duplicates, and the columns that nothing reads."""
        among = f"{'all' if self.complete else 'the first'} {plural(len(self.records), 'row')}"
        repeated = f"; {plural(self.duplicates, 'duplicate')} among {among}" if self.duplicates else ""
        unused = f"; columns not used: {shorten_list(self.unused)}" if self.unused else ""
        return f"{self.size()} of {path} (format: {self.format_name}){repeated}{unused}"

    @property
    def remarks(self) -> list[str]:
        """State what is trained on as text, and may not be meant as such: words for missing values, marks of templates."""
        good = [messages for _, messages in self.records if not isinstance(messages, BadRow)]
        among = f"{'all' if self.complete else 'the first'} {plural(len(self.records), 'row')}"
        return [
            f"{count} of {among}: {what}{_listed(found)}; {so}"
            for what, so, look in _REMARKS
            if (count := sum(map(bool, found := [look(messages) for messages in good])))
        ]

    @cached_property
    def duplicates(self) -> int:
        """Count the first rows whose messages an earlier one has: they are scored and trained on once."""
        good = [content_id(messages) for _, messages in self.records if not isinstance(messages, BadRow)]
        return len(good) - len(set(good))

    @property
    def hub(self) -> dict[str, str | None] | None:
        """What is read of a data set on the hub, in the names of `datasets`; None for files."""
        first = self.pieces[0]
        if first.kind != "hub":
            return None
        return {"config_name": first.subset, "split": first.split, "revision": first.revision}

    def size(self) -> str:
        """Format the number of rows, such as "200 rows", "about 10,000 rows", or "an unknown number of rows"."""
        if self.estimated_rows is None:
            return "an unknown number of rows"
        return f"{'' if self.complete else 'about '}{plural(self.estimated_rows, 'row')}"


def _placeholders(messages: Messages) -> set[str]:
    return {message["content"].strip() for message in messages if message["role"] != "tool"} & PLACEHOLDERS


def _broken(messages: Messages) -> set[str]:
    return {found[0] for message in messages for found in BROKEN.finditer(message["content"])}


def _printed(messages: Messages) -> set[str]:
    texts = (message["content"].strip() for message in messages if message["role"] != "tool")
    return {shorten(text, 40) for text in texts if PRINTED.fullmatch(text)}


def _marks(messages: Messages) -> set[str]:
    return set().union(*(marks_in(message["content"]) for message in messages))


def _open_thoughts(messages: Messages) -> set[str]:
    replies = (message["content"] for message in messages if message["role"] == "assistant")
    return {found[0] for text in replies if (found := THOUGHT_OPEN.match(text.lstrip())) and not is_closed(text)}


def _listed(found: Sequence[set[str]]) -> str:
    most = Counter(word for words in found for word in words).most_common(3)
    return f" ({', '.join(repr(word) for word, _ in most)})"


# What is trained on as text, and may not be meant so: what rows have, what becomes of them, and the words found in a row.
_REMARKS: tuple[tuple[str, str, Callable[[Messages], set[str]]], ...] = (
    ("a turn is a word for a missing value", "it is taken as text", _placeholders),
    ("a text has marks of a chat template or of media", "the model's template is put around them", _marks),
    ("a text has characters that were read in another encoding than its own", "they are trained on", _broken),
    ("a turn is a value as Python prints it", "it is taken as text", _printed),
    ("the thought of a reply does not end", "it is trained on as it is", _open_thoughts),
)


def peek(config: DataConfig, rows: int = 1000) -> DataPeek:
    """Read the first rows and detect their format. Raises UserError for data without a usable row."""
    where = redact_uri(config.path)
    pieces = find_pieces(config)
    stream = chain.from_iterable(map(read_piece, pieces))
    records = list(islice(stream, rows))
    complete = next(stream, None) is None
    if not records:
        fix = "write rows into it, or give another data.path"
        raise UserError("the data set is empty", got=where, expected="at least one row", fix=fix)
    format_name = _format_of(config, records, where)
    check_reads(format_name, config.columns)
    seen = list(convert(records, format_name, config.columns, config.thinking, config.reference, config.format == "auto"))
    named = _named_columns(config, seen, where)
    _check_usable(seen, where, format_name)
    if config.format == "auto":
        _check_not_rendered(seen, where, format_name)
    unused = tuple(unused_columns(seen, format_name, [*config.columns, *named]))
    return DataPeek(format_name, pieces, len(seen) if complete else _estimate(pieces, len(seen)), seen, complete, unused)


def _named_columns(config: DataConfig, seen: Seen, where: str) -> list[str]:
    """List the columns that data.group_by and data.reference name. Raises UserError for one that the first rows lack."""
    found = columns_of(record for record, _ in seen)
    named = {"data.group_by": config.group_by, "data.reference": config.reference}
    for key, name in named.items():
        if name is not None and name not in {*found, *config.columns.values()}:
            raise UserError(
                f"{key}: {where} has no column '{name}'", got=f"columns {found}", fix=f"set {key} to one of them, or to null"
            )
    return [name for name in named.values() if name is not None]


def _format_of(config: DataConfig, records: Sequence[Record | BadRow], where: str) -> str:
    if config.path == DEMO or config.format != "auto":
        check_columns(records, where, config.columns)
        return DEMO if config.path == DEMO else config.format
    return recognise(records, where, config.columns)


def _estimate(pieces: Sequence[Piece], seen: int) -> int | None:
    known = [piece.rows for piece in pieces if piece.rows is not None]
    return max(sum(known), seen + 1) if len(known) == len(pieces) else None


def _check_not_rendered(seen: Seen, where: str, format_name: str) -> None:
    """Raise UserError where half of the rows have a chat as text in a turn: a model would be trained on marks within marks."""
    good = [messages for _, messages in seen if not isinstance(messages, BadRow)]
    found = [turn for messages in good for turn in messages[-2:] if is_rendered(turn["role"], turn["content"])]
    if 2 * len(found) < len(good):
        return
    raise UserError(
        f"{where} has chats as text, with the marks of a template, where a turn is expected",
        got=f"a turn of {found[0]['role']} that ends in {found[0]['content'][-40:]!r}",
        fix=f"split them into lists of {{role, content}}, or set data.format={format_name} to train on the text as it is",
    )


def _check_usable(seen: Seen, where: str, format_name: str) -> None:
    reasons = [str(messages) for _, messages in seen if isinstance(messages, BadRow)]
    if len(reasons) < len(seen):
        return
    # The text after the colon differs from row to row.
    kind, count = Counter(reason.split(":")[0] for reason in reasons).most_common(1)[0]
    reason = next(reason for reason in reasons if reason.startswith(kind))
    raise UserError(
        f"no row of {where} can be used as {format_name}",
        got=f"{count} of the first {len(seen)} rows: {reason}; columns {columns_of(record for record, _ in seen)}",
        fix="fix the rows, or set data.format or data.columns",
    )
