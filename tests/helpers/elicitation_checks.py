"""The rows of elicitations that are killed, and what is checked of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# The requests are those of verbalized_error, p_true and nll for one row.
ROWS, ROWS_PER_BLOCK, ACTORS, REQUESTS_PER_ROW = 240, 8, 2, 4
# What a block that died with its engine costs at most, and what dies with the driver: per actor, the block that it is at
# and another whose results were not written yet.
BLOCK_CALLS = ROWS_PER_BLOCK * REQUESTS_PER_ROW
UNWRITTEN_CALLS = 2 * ACTORS * BLOCK_CALLS
SCORES = ("uncertainty", "uncertainty_verbalized_error", "uncertainty_p_true", "uncertainty_nll", "uncertainty_ensemble")


def write_rows(path: Path, pairs: Sequence[tuple[str, str]]) -> Path:
    """Write alpaca rows."""
    rows = [{"instruction": instruction, "input": "", "output": output} for instruction, output in pairs]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def assert_equal(run: Any, undisturbed: Any, without: frozenset[str] = frozenset()) -> None:
    """Compare rows and scores, exactly; the ensemble is a rank among all rows, and not compared where some have no score."""
    scored, expected = run.scored(), undisturbed.scored()
    assert scored.keys() == expected.keys()
    names = SCORES[:-1] if without else SCORES
    for identity, row in scored.items():
        if identity not in without:
            assert row["status"] == "ok"
            assert {name: row[name] for name in names} == {name: expected[identity][name] for name in names}


def redone(run: Any) -> int:
    """Count the requests that were sent more than once per row."""
    return sum(max(0, count - REQUESTS_PER_ROW) for count in run.sent().values())


def transcript(title: str, **figures: object) -> None:
    """Print what happened, for `pytest -s`."""
    print(f"\n  {title}: " + ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in figures.items()))


def sent_again(run: Any, since: int, until: int | None = None) -> int:
    """Count the requests from the `since`th call on that are of rows which had been sent before it."""
    before = run.sent(until=since)
    return sum(count for row, count in run.sent(since, until).items() if row in before)


def assert_resumed(run: Any, finished: frozenset[str], since: int, until: int | None = None) -> None:
    """Check what was sent after an end: no row that was finished by then, and no more than what was under way."""
    assert not finished & run.sent(since, until).keys(), "a finished row was sent again"
    assert sent_again(run, since, until) <= UNWRITTEN_CALLS
