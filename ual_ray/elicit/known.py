"""Scores that the same elicitor gave before, under other settings that do not concern them: they are not asked for again.

The scores of a run are stored under a key of all its settings. Another key leaves the estimators as they were whose requests
and reading are the same: one more estimator, more samples of another one, a longer context, a seed that nothing is sampled
with.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from ual_ray import columns as col
from ual_ray.columns import Messages, digest
from ual_ray.config.files import read_json, write_json
from ual_ray.elicit.estimators import Estimator
from ual_ray.elicit.scoring import RETEST_ATTEMPT
from ual_ray.engines.row_store import RowStore

ESTIMATORS_FILE = "estimators.json"
# What a request depends on shows in the requests about these.
PROBES: tuple[Messages, ...] = (
    [{"role": "user", "content": "Which?"}, {"role": "assistant", "content": "This."}],
    [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Which?"},
        {"role": "assistant", "content": "This."},
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "#### 7"},
    ],
)
# Fields of an estimator that are in its requests as far as it uses them.
SENT = ("prompts", "sampling")
# A row that was scored whole has the same score in a longer context, and however longer rows are treated.
OF_LONG_ROWS = ("max_model_len", "overlong")


def estimator_keys(estimators: Mapping[str, Estimator], measuring: Mapping[str, Any]) -> dict[str, str]:
    """Return for every estimator a hash of all that its scores depend on, besides the row.

    measuring: what all scores of the run depend on together, as in its store's key.
    """
    elicit = {name: measuring["elicit"][name] for name in ("retries", "retest_share")}
    engine = {name: value for name, value in measuring["engine"].items() if name not in OF_LONG_ROWS}
    shared = [col.SCHEMA_VERSION, measuring["model"], measuring["adapter"], measuring["endpoint"], elicit, engine]
    return {name: digest([*map(_plain, shared), name, *_own(estimator)]) for name, estimator in estimators.items()}


def _own(estimator: Estimator) -> list[str]:
    asked = [repr(list(estimator.requests(probe, attempt))) for probe in PROBES for attempt in (0, 1, RETEST_ATTEMPT)]
    return [*asked, *(f"{name}={value!r}" for name, value in sorted(vars(estimator).items()) if name not in SENT)]


def _plain(value: Any) -> str:
    return repr(sorted(value.items())) if isinstance(value, Mapping) else repr(value)


def score_columns(name: str) -> list[str]:
    """List the columns that hold an estimator's result."""
    columns = (col.uncertainty_column, col.raw_column, col.retest_column, col.mass_column, col.finish_column)
    return [column(name) for column in columns]


@dataclass(frozen=True)
class KnownScores:
    """By estimator the ids that have a score, sorted, and their columns in this order."""

    found: Mapping[str, tuple[np.ndarray, pa.Table]]

    def of(self, ids: Sequence[str]) -> list[dict[str, dict[str, Any]]]:
        """Return the known columns of rows, by estimator."""
        known: list[dict[str, dict[str, Any]]] = [{} for _ in ids]
        for name, (stored, table) in self.found.items():
            wanted = np.array(ids, dtype=stored.dtype)
            places = np.minimum(np.searchsorted(stored, wanted), len(stored) - 1)
            hits = np.flatnonzero(stored[places] == wanted)
            for row, values in zip(hits, table.take(places[hits]).to_pylist(), strict=True):
                known[row][name] = values
        return known


def note_estimators(store: Path, keys: Mapping[str, str]) -> None:
    """Write next to a store which estimators it has scores of."""
    store.mkdir(parents=True, exist_ok=True)
    write_json(store / ESTIMATORS_FILE, dict(keys))


def find_known(store: Path, keys: Mapping[str, str]) -> KnownScores:
    """Collect from the other stores next to `store` the scores of whole rows by estimators with the same keys.

    Holds the ids and numbers of all these rows in memory.
    """
    parts: dict[str, list[pa.Table]] = {}
    for file in sorted(store.parent.glob(f"*/{ESTIMATORS_FILE}")):
        theirs = read_json(file) or {}
        other = RowStore(file.parent, col.measured_schema(list(theirs)))
        for name in (name for name, key in keys.items() if file.parent != store and theirs.get(name) == key):
            scored = pyarrow.compute.field(col.uncertainty_column(name)).is_valid()
            whole = ~pyarrow.compute.field(col.TRUNCATED)
            parts.setdefault(name, []).append(other.read([col.ID, *score_columns(name)], scored & whole))
    return KnownScores({name: _sorted(tables) for name, tables in parts.items() if any(map(len, tables))})


def _sorted(tables: Iterable[pa.Table]) -> tuple[np.ndarray, pa.Table]:
    table = pa.concat_tables(tables).sort_by(col.ID).combine_chunks()
    return np.array(table[col.ID].to_pylist()), table.drop_columns(col.ID)
