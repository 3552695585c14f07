"""What the benchmarks share: real rows, a table on the terminal, and the figures as JSON beside it."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ual_ray import columns as col
from ual_ray.columns import Messages
from ual_ray.config import DataConfig
from ual_ray.data.formats import BadRow, convert
from ual_ray.data.peek import peek
from ual_ray.data.reading import read_piece
from ual_ray.parquet import write_rows

RESULTS = Path(__file__).parent / "results"


# Characters: both peers of ours give up a whole job for one prompt beyond the engine's limit.
LONGEST_ROW = 4000


def read_rows(path: str, count: int) -> list[Messages]:
    """Read the first `count` usable rows of a data file, each content once, none longer than LONGEST_ROW."""
    data = DataConfig(path=path)
    seen = peek(data)
    rows: dict[str, Messages] = {}
    for piece in seen.pieces:
        for _, messages in convert(read_piece(piece), seen.format_name, data.columns):
            if not isinstance(messages, BadRow) and sum(len(message["content"]) for message in messages) <= LONGEST_ROW:
                rows.setdefault(json.dumps(messages), messages)
            if len(rows) == count:
                return list(rows.values())
    raise SystemExit(f"{path} holds {len(rows)} different rows, {count} are needed")


def write_canonical(rows: Sequence[Messages], path: Path) -> None:
    """Write conversations as a Parquet file of `columns.ROWS`."""
    write_rows(
        [{col.ID: col.content_id(messages), col.SOURCE: "bench", col.MESSAGES: messages} for messages in rows], col.ROWS, path
    )


def command(arguments: Sequence[str]) -> str:
    """Write the command that runs, from the repository's root; of files only their names, wherever they lie here."""
    script, *others = arguments
    return " ".join([f"bench/{Path(script).name}", *(Path(word).name if "/" in word else word for word in others)])


def report(name: str, measured: Sequence[Mapping[str, Any]], ratios: Mapping[str, tuple[float, str]], **settings: Any) -> None:
    """Print a table of measurements and the ratios with what was aimed at, and write both to bench/results/NAME.json."""
    console = Console()
    table = Table(title=name)
    for column in measured[0]:
        table.add_column(column, justify="left" if isinstance(measured[0][column], str) else "right")
    for row in measured:
        table.add_row(*[f"{value:,.3g}" if isinstance(value, float) else str(value) for value in row.values()])
    console.print(table)
    for what, (ratio, target) in ratios.items():
        console.print(f"{what}: [bold]{ratio:.2f}[/bold] (aim: {target})", highlight=False)
    RESULTS.mkdir(exist_ok=True)
    content = {
        "name": name,
        "command": command(sys.argv),
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"cores": os.cpu_count(), "processor": platform.machine(), "python": platform.python_version()},
        "settings": settings,
        "measurements": list(measured),
        "ratios": {what: {"value": ratio, "aim": target} for what, (ratio, target) in ratios.items()},
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")
