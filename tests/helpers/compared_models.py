"""Results of models that are compared: made-up rows and token statistics, better or worse by a given amount."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from ual_ray import columns as col
from ual_ray.stats.alignment import COLUMNS
from ual_ray.stats.comparison import Comparisons, Role

N = 120
SEEDS = (0, 1, 2)
MATCH = "gsm8k.exact_match_strict"
ROLES: dict[str, Role] = {
    "base": "base",
    "sft": "sft",
    "shuffled": "control",
    "constant": "control",
    "ual": "ual",
    "bad": "ual",
}


def results(shift: float = 0.0, right: float = 0.5, seed: int = 0, n: int = N, skip: tuple[int, ...] = ()) -> pa.Table:
    """Make rows of a model that is `shift` nats per token worse than another, and right this often."""
    shared, own = np.random.default_rng(99), np.random.default_rng(seed)
    tokens, hard, luck = shared.integers(5, 30, n), shared.gamma(4, 0.5, n), shared.random(n)
    rows: list[dict[str, Any]] = []
    for place in range(n):
        held = {"id": f"h{place}", "benchmark": "held_out", "source": "ab"[place % 2], "target_tokens": int(tokens[place])}
        noise = own.normal(shift, 0.05)
        rows.append({**held, "nll_sum": float(tokens[place] * (hard[place] + noise)), "scores": []})
        rows.append(
            {
                "id": f"g{place}",
                "benchmark": "gsm8k",
                "source": "x",
                "scores": [("exact_match_strict", float(luck[place] < right))],
            }
        )
    kept = [row for place, row in enumerate(rows) if place not in skip]
    return pa.Table.from_pylist(kept[::-1] if seed % 2 else kept, schema=col.RESULTS).select(COLUMNS)


def seeds(*arguments: Any, start: int = 0) -> dict[int, pa.Table]:
    """Make the rows of a model that was trained three times."""
    return {number: results(*arguments, seed=start + number) for number in SEEDS}


def by_name(found: Comparisons) -> dict[tuple[str, str, str], Any]:
    return {(entry.arm, entry.reference, entry.metric): entry for entry in found.entries}


def tokens(shift: float, seed: int, skip: tuple[int, ...] = ()) -> pa.Table:
    """Make token statistics of a model that is `shift` nats per token worse: three tokens per question."""
    hard, noise = np.random.default_rng(7).gamma(4, 0.5, 3 * N), np.random.default_rng(seed).normal(shift, 0.05, 3 * N)
    rows = [
        {"id": f"h{place // 3}", "adjusted_nll": hard[place] + noise[place], "brier": 0.5, "correct": place % 2 == 0}
        for place in range(3 * N)
        if place // 3 not in skip
    ]
    return pa.Table.from_pylist(rows, schema=col.TOKEN_STATISTICS)


def ids(table: pa.Table, prefix: str) -> pa.Table:
    """Answer other questions: with other ids."""
    own = pa.array([f"{prefix}{one}" for one in table["id"].to_pylist()])
    return table.set_column(table.schema.get_field_index("id"), "id", own)


def held_alone(table: pa.Table) -> pa.Table:
    """Leave the deterministic questions out."""
    return table.filter(pa.compute.equal(table["benchmark"], "held_out"))
