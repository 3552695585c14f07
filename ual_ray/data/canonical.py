"""Make canonical rows (id, source, split, messages) of one shard of the data.

Runs inside a worker, block by block. Valid rows are written to `rows/`, invalid ones to `quarantine/` with the reason.
`usable_rows` are those that a run would score or train on, read in this process, before the workers read all.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path, PurePath
from typing import Any

import pyarrow as pa

from ual_ray import columns as col
from ual_ray.config import DataConfig
from ual_ray.config.files import write_lines
from ual_ray.data.formats import BadRow, Record, convert
from ual_ray.data.reading import read_piece
from ual_ray.data.records import name_of
from ual_ray.data.shard import Piece
from ual_ray.errors import UserError
from ual_ray.formatting import plural
from ual_ray.parquet import write_table

QUARANTINE_FOLDER = "quarantine"
ROWS_PER_BLOCK = 1024
# A position in the data as one number: the shard in the high bits, the row within it in the low bits.
ROWS_PER_PIECE_AT_MOST = 2**40

Claim = Callable[[Sequence[str], Sequence[int]], list[bool]]
Entry = tuple[int, Record, col.Messages | BadRow]


@dataclass(frozen=True)
class ReadOptions:
    """A worker's instructions for reading a shard: the settings, the format of the rows, and the output folder."""

    data: DataConfig
    format_name: str
    folder: Path


@dataclass(frozen=True)
class Block:
    """Canonical rows as a table of `columns.ROWS`, the bad rows of the same stretch with their reasons, and its duplicates."""

    rows: pa.Table
    quarantined: list[dict[str, Any]]
    duplicates: int


def blocks_of(piece: Piece, number: int, plan: ReadOptions, claim: Claim) -> Iterator[Block]:
    """Read a shard (the `number`th of the data), write its rows below `plan.folder`, and yield them block by block.

    `claim(ids, positions)` returns which rows are the first with their content, as `Deduplicator.claim` does. Raises UserError
    when the shard cannot be read.
    """
    data = plan.data
    strict = data.format == "auto"
    converted = convert(read_piece(piece), plan.format_name, data.columns, data.thinking, data.reference, strict)
    start = number * ROWS_PER_PIECE_AT_MOST
    entries = ((start + row, record, messages) for row, (record, messages) in enumerate(converted))
    for count, chunk in enumerate(_chunks(entries)):
        block = _block(chunk, piece, plan.data, claim)
        name = f"{piece.name}-{count:05d}"
        _write(block, plan.folder, name)
        yield block


def split_of(identity: str, data: DataConfig) -> str:
    """Choose a row's split by a hash alone (see `grouped`), so that it is the same in every run and on every machine."""
    position = int(identity, 16) / 16 ** len(identity)
    if position < data.test_share:
        return col.TEST
    return col.VALIDATION if position < data.test_share + data.validation_share else col.TRAIN


def check_splits(found: Collection[str], rows: int, data: DataConfig) -> None:
    """Raise UserError for a split of the configuration that none of the `rows` fell into."""
    for split, share in data.split_shares().items():
        if share > 0 and split not in found:
            more = f"add rows or raise data.max_rows={data.max_rows}" if data.max_rows else "add rows"
            fix = f"{more}, or raise data.{split}_share" if split != col.TRAIN else f"{more}, or lower the other shares"
            raise UserError(f"the {split} split is empty", got=f"{plural(rows, 'row')} in all", fix=fix)


def grouped(record: Record, identity: str, data: DataConfig) -> str:
    """Return the hash that decides a row's split: of its value in the column data.group_by, else its content id."""
    mapped = {theirs: ours for ours, theirs in data.columns.items()}
    value = name_of(record.get(mapped.get(data.group_by, data.group_by))) if data.group_by else None
    return identity if value is None else col.digest(["group", value.encode(errors="backslashreplace").decode()])


def _chunks(entries: Iterator[Entry]) -> Iterator[list[Entry]]:
    while chunk := list(islice(entries, ROWS_PER_BLOCK)):
        yield chunk


def _block(entries: list[Entry], piece: Piece, data: DataConfig, claim: Claim) -> Block:
    bad = [(record, str(messages)) for _, record, messages in entries if isinstance(messages, BadRow)]
    good = [(at, record, messages) for at, record, messages in entries if not isinstance(messages, BadRow)]
    identities = [col.content_id(messages) for _, _, messages in good]
    first = claim(identities, [at for at, _, _ in good]) if good else []
    rows = [
        _row(record, messages, identity, piece, data)
        for (_, record, messages), identity, mine in zip(good, identities, first, strict=True)
        if mine
    ]
    quarantined = [{"reason": reason, "row": dict(record)} for record, reason in bad]
    return Block(pa.Table.from_pylist(rows, schema=col.ROWS), quarantined, len(good) - len(rows))


def _row(record: Record, messages: col.Messages, identity: str, piece: Piece, data: DataConfig) -> dict[str, Any]:
    """Make a row of `columns.ROWS`."""
    return {
        col.ID: identity,
        col.SOURCE: source_of(record, piece),
        col.SPLIT: split_of(grouped(record, identity, data), data),
        col.GIVEN_ID: given_id(record),
        col.MESSAGES: list(messages),
    }


def given_id(record: Record) -> str | None:
    """Return the row's id in the user's data; None if it is missing or empty."""
    return name_of(record.get(col.ID))


def source_of(record: Record, piece: Piece) -> str:
    """Return a row's own source, or else the name of its file."""
    return name_of(record.get(col.SOURCE)) or _stem(piece.path)


@lru_cache
def _stem(path: str) -> str:
    return PurePath(path).name.split(".")[0]


def _write(block: Block, folder: Path, name: str) -> None:
    """Write valid and invalid rows atomically, under names that are the same when the shard is read again."""
    (folder / col.ROWS_FOLDER).mkdir(parents=True, exist_ok=True)
    write_table(block.rows, folder / col.ROWS_FOLDER / f"{name}.parquet")
    if block.quarantined:
        (folder / QUARANTINE_FOLDER).mkdir(parents=True, exist_ok=True)
        write_lines(folder / QUARANTINE_FOLDER / f"{name}.jsonl", block.quarantined)


def usable_rows(data: DataConfig, pieces: Sequence[Piece], format_name: str) -> Iterator[dict[str, Any]]:
    """Yield the canonical rows of these shards that a run would score or train on, each once, in data order."""
    known, strict = set(), data.format == "auto"
    for piece in pieces:
        for record, messages in convert(read_piece(piece), format_name, data.columns, data.thinking, data.reference, strict):
            if isinstance(messages, BadRow) or (identity := col.content_id(messages)) in known:
                continue
            known.add(identity)
            yield _row(record, messages, identity, piece, data)
