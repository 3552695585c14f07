"""Make canonical rows (id, source, split, messages) of one shard of the data.

Runs inside a worker, block by block. Valid rows are written to `rows/`, invalid ones to `quarantine/` with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path, PurePath
from typing import Any

import pyarrow as pa

from ual_ray import columns as col
from ual_ray.columns import Messages
from ual_ray.config import DataConfig
from ual_ray.config.files import write_lines
from ual_ray.data.formats import BadRow, Record, convert
from ual_ray.data.reading import Piece, read_piece
from ual_ray.parquet import write_table

QUARANTINE_FOLDER = "quarantine"
ROWS_PER_BLOCK = 1024
# A position in the data as one number: the shard in the high bits, the row within it in the low bits.
ROWS_PER_PIECE_AT_MOST = 2**40

Claim = Callable[[Sequence[str], Sequence[int]], list[bool]]
Entry = tuple[int, Record, Messages | BadRow]


@dataclass(frozen=True)
class Plan:
    """A worker's instructions for reading a shard: the settings, the format of the rows, and the output folder."""

    data: DataConfig
    format_name: str
    folder: Path


@dataclass(frozen=True)
class Block:
    """Canonical rows as a table of `columns.ROWS`, and the bad rows of the same stretch with their reasons."""

    rows: pa.Table
    quarantined: list[dict[str, Any]]


def blocks_of(piece: Piece, number: int, plan: Plan, claim: Claim) -> Iterator[Block]:
    """Read a shard (the `number`th of the data), write its rows below `plan.folder`, and yield them block by block.

    `claim(ids, positions)` returns which rows are the first with their content, as `Claims.claim` does. Raises UserError
    when the shard cannot be read.
    """
    converted = convert(read_piece(piece), plan.format_name, plan.data.columns)
    start = number * ROWS_PER_PIECE_AT_MOST
    entries = ((start + row, record, messages) for row, (record, messages) in enumerate(converted))
    for count, chunk in enumerate(_chunks(entries)):
        block = _block(chunk, piece, plan.data, claim)
        name = f"{piece.name}-{count:05d}"
        _write(block, plan.folder, name)
        yield block


def split_of(identity: str, data: DataConfig) -> str:
    """Choose a row's split by its content hash alone, so that it is the same in every run and on every machine."""
    position = int(identity, 16) / 16 ** len(identity)
    if position < data.test_share:
        return col.TEST
    return col.VALIDATION if position < data.test_share + data.validation_share else col.TRAIN


def _chunks(entries: Iterator[Entry]) -> Iterator[list[Entry]]:
    while chunk := list(islice(entries, ROWS_PER_BLOCK)):
        yield chunk


def _block(entries: list[Entry], piece: Piece, data: DataConfig, claim: Claim) -> Block:
    bad = [(record, str(messages)) for _, record, messages in entries if isinstance(messages, BadRow)]
    good = [(at, record, messages) for at, record, messages in entries if not isinstance(messages, BadRow)]
    named = [(at, f"given:{given}") for at, record, _ in good if (given := given_id(record)) is not None]
    repeated_ids = _losers(named, claim)
    kept = [entry for entry in good if entry[0] not in repeated_ids]
    identities = {at: col.content_id(messages) for at, _, messages in kept}
    repeated_rows = _losers(list(identities.items()), claim)
    bad += [(record, f"duplicate id: {record[col.ID]}") for at, record, _ in good if at in repeated_ids]
    bad += [(record, "duplicate row: the same messages occurred before") for at, record, _ in kept if at in repeated_rows]
    rows = [
        {
            col.ID: identities[at],
            col.SOURCE: source_of(record, piece),
            col.SPLIT: split_of(identities[at], data),
            col.GIVEN_ID: given_id(record),
            col.MESSAGES: list(messages),
        }
        for at, record, messages in kept
        if at not in repeated_rows
    ]
    return Block(
        pa.Table.from_pylist(rows, schema=col.ROWS), [{"reason": reason, "row": dict(record)} for record, reason in bad]
    )


def _losers(wanted: Sequence[tuple[int, str]], claim: Claim) -> set[int]:
    """Find the positions whose id belongs to another position."""
    won = claim([identity for _, identity in wanted], [at for at, _ in wanted]) if wanted else []
    return {at for (at, _), mine in zip(wanted, won, strict=True) if not mine}


def given_id(record: Record) -> str | None:
    """Return the row's id in the user's data; None if it is missing or empty."""
    value = record.get(col.ID)
    return None if value is None or value == "" else str(value)


def source_of(record: Record, piece: Piece) -> str:
    """Return a row's own source, or else the name of its file."""
    source = record.get(col.SOURCE)
    return source if isinstance(source, str) and source else _stem(piece.path)


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
