"""Make canonical rows out of any input: an id, a source, a split and messages.

Bad rows are written to a quarantine file with a reason and counted; above a set share they stop the run.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ual_ray.config import DEMO, DataConfig
from ual_ray.errors import UserError
from ual_ray.records import (
    ID,
    MESSAGES,
    ROWS,
    SOURCE,
    SPLIT,
    SPLITS,
    TEST,
    TRAIN,
    VALIDATION,
    Messages,
    content_id,
    write_rows,
)
from ual_ray.sources.readers import BadRow, Record, read_messages
from ual_ray.sources.sample import sample_rows

ROWS_FILE = "rows.parquet"
QUARANTINE_FILE = "quarantine.jsonl"


@dataclass
class Prepared:
    """Canonical rows, what was set aside and why, and the format that was recognised."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    quarantined: list[dict[str, Any]] = field(default_factory=list)
    format_name: str = ""

    @property
    def bad_share(self) -> float:
        """Share of all rows that was quarantined, in [0, 1]."""
        total = len(self.rows) + len(self.quarantined)
        return len(self.quarantined) / total if total else 0.0

    def describe(self) -> dict[str, Any]:
        """Count rows by split and source, and quarantined rows by reason."""
        return {
            "format": self.format_name,
            "rows": len(self.rows),
            "splits": dict(Counter(row[SPLIT] for row in self.rows)),
            "sources": dict(Counter(row[SOURCE] for row in self.rows)),
            "quarantined": len(self.quarantined),
            "reasons": dict(Counter(row["reason"].split(":")[0] for row in self.quarantined)),
        }


def prepare(config: DataConfig) -> Prepared:
    """Read, check, identify and split the rows of `config.path`. Raises UserError."""
    prepared = Prepared()
    prepared.format_name, entries = _read(config)
    ids: set[str] = set()
    own_ids: set[str] = set()
    for source, record, messages in entries:
        reason = str(messages) if isinstance(messages, BadRow) else _repeated(record, messages, ids, own_ids)
        if isinstance(messages, BadRow) or reason:
            prepared.quarantined.append({"reason": reason, "row": dict(record)})
            continue
        identity = content_id(messages)
        ids.add(identity)
        prepared.rows.append(
            {
                ID: identity,
                SOURCE: source,
                SPLIT: split_of(identity, config),
                MESSAGES: list(messages),
            }
        )
    return prepared


def check(prepared: Prepared, config: DataConfig, quarantine: Path) -> None:
    """Raise UserError when too many rows are bad or a split that later stages need has no rows."""
    described = prepared.describe()
    if prepared.bad_share > config.max_bad_share:
        raise UserError(
            f"{len(prepared.quarantined)} of {len(prepared.quarantined) + len(prepared.rows)} rows of {config.path} are bad",
            value=f"{described['reasons']}; the rows are in {quarantine}",
            legal=f"a share of at most data.max_bad_share = {config.max_bad_share}",
            fix="mend the rows, or raise data.max_bad_share to go on without them",
        )
    needed = {TRAIN: 1.0, VALIDATION: config.validation_share, TEST: config.test_share}
    for split in SPLITS:
        if needed[split] > 0 and not described["splits"].get(split):
            raise UserError(
                f"the {split} split is empty",
                value=f"{len(prepared.rows)} rows in all",
                fix="give more rows, or a larger share",
            )


def write(prepared: Prepared, folder: Path) -> None:
    """Write the rows as Parquet and the quarantined rows as JSONL beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in prepared.quarantined)
    (folder / QUARANTINE_FILE).write_text("".join(lines), encoding="utf-8", errors="backslashreplace")
    write_rows(prepared.rows, ROWS, folder / ROWS_FILE)


def split_of(identity: str, config: DataConfig) -> str:
    """Choose a row's split by its content hash alone, so that it never moves between runs or machines."""
    position = int(identity, 16) / 16 ** len(identity)
    if position < config.test_share:
        return TEST
    return VALIDATION if position < config.test_share + config.validation_share else TRAIN


def _read(config: DataConfig) -> tuple[str, Iterable[tuple[str, Record, Messages | BadRow]]]:
    if config.path == DEMO:
        rows = sample_rows()[: config.max_rows]
        return DEMO, ((source, {}, messages) for source, messages in rows)
    path = Path(config.path).expanduser()
    format_name, entries = read_messages(path, config.format, config.max_rows)

    def with_source() -> Iterator[tuple[str, Record, Messages | BadRow]]:
        for record, messages in entries:
            source = record.get(SOURCE)
            yield source if isinstance(source, str) and source else path.stem, record, messages

    return format_name, with_source()


def _repeated(record: Record, messages: Messages, ids: set[str], own_ids: set[str]) -> str:
    own_id = record.get(ID)
    if own_id is not None:
        if str(own_id) in own_ids:
            return f"duplicate id: {own_id}"
        own_ids.add(str(own_id))
    return "duplicate row: the same messages stand in the file before" if content_id(messages) in ids else ""
