"""The rows that a run would score or train on, read in this process: for a look at some of them before the workers read all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ual_ray.columns import Messages, content_id
from ual_ray.config import DataConfig
from ual_ray.data.canonical import given_id, grouped, source_of, split_of
from ual_ray.data.formats import BadRow, convert
from ual_ray.data.reading import read_piece
from ual_ray.data.shard import Piece


@dataclass(frozen=True)
class UsableRow:
    """A usable row, as a run would read it."""

    messages: Messages
    identity: str
    given: str | None
    source: str
    split: str


def usable_rows(data: DataConfig, pieces: Sequence[Piece], format_name: str) -> Iterator[UsableRow]:
    """Yield the rows of these shards that a run would score or train on, each once, in data order."""
    known = set()
    for piece in pieces:
        records = read_piece(piece)
        for record, messages in convert(
            records, format_name, data.columns, data.thinking, data.reference, data.format == "auto"
        ):
            if isinstance(messages, BadRow) or (identity := content_id(messages)) in known:
                continue
            known.add(identity)
            split = split_of(grouped(record, identity, data), data)
            yield UsableRow(messages, identity, given_id(record), source_of(record, piece), split)
