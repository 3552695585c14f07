"""From the store of measured rows to the scored rows of one data set: what takes all rows together is computed here.

Runs in a worker: the driver never holds the rows. Only numbers and ids are held for all rows at once; texts pass through.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.dataset
import pyarrow.parquet

from ual_ray import columns as col
from ual_ray.config import ENSEMBLE, DataConfig, ElicitConfig
from ual_ray.data.canonical import QUARANTINE_FOLDER
from ual_ray.data.labels import match_labels, read_labels
from ual_ray.elicit.adjust import calibrate, length_residual, mean_rank
from ual_ray.elicit.scoring import needed, unparsable
from ual_ray.errors import UserError
from ual_ray.parquet import write_table
from ual_ray.stats.score_quality import histogram

# What a row is called and where it belongs, which says nothing about what an engine measures of it.
OF_THE_DATA = (col.SPLIT, col.SOURCE, col.GIVEN_ID)
ROWS_PER_FILE = 50_000


@dataclass(frozen=True)
class Finish:
    """Which rows (the splits of `folder`/rows), measured where (`store`, then `failed`), and what to make of them."""

    folder: Path
    store: Path
    failed: Path
    data: DataConfig
    elicit: ElicitConfig

    def run(self) -> dict[str, Any]:
        """Write `folder`/scored and return the figures. Raises UserError for labels that do not fit."""
        rows = pyarrow.dataset.dataset(self.folder / col.ROWS_FOLDER, format="parquet").to_table(columns=[col.ID, *OF_THE_DATA])
        rows = rows.combine_chunks()
        wanted = rows.filter(self._is_wanted(rows))[col.ID]
        files = [*sorted(self.store.glob("*.parquet")), *sorted(self.failed.glob("*.parquet"))]
        keep = _first_of_each(files, wanted)
        numbers = pa.concat_tables(list(self._parts(files, keep, rows, self._number_columns())))
        extra = self._adjust(numbers)
        self._write(self._parts(files, keep, rows, None), extra)
        return self._describe(rows, numbers, extra)

    def _is_wanted(self, rows: pa.Table) -> pa.ChunkedArray:
        return pa.compute.is_in(rows[col.SPLIT], pa.array(self.elicit.splits))

    def _number_columns(self) -> list[str]:
        scores = [col.uncertainty_column(name) for name in self.elicit.estimators]
        costs = [col.PROMPT_TOKENS, col.GENERATED_TOKENS, col.CALLS]
        return [
            col.ID,
            *OF_THE_DATA,
            *scores,
            col.RESPONSE_LENGTH,
            col.TRUNCATED,
            col.STATUS,
            col.ERROR,
            col.PROMPT_HASH,
            *costs,
        ]

    def _parts(
        self, files: Sequence[Path], keep: Sequence[np.ndarray], rows: pa.Table, columns: list[str] | None
    ) -> Iterator[pa.Table]:
        """Read what was measured of the rows, as it is to be understood here; `columns` None = all."""
        for file, mask in zip(files, keep, strict=True):
            table = pyarrow.parquet.read_table(file, columns=columns).filter(pa.array(mask))
            yield self._judged(_as_in(rows, table))
        if not files:
            nothing = col.measured_schema(self.elicit.estimators).empty_table()
            yield nothing if columns is None else nothing.select(columns)

    def _judged(self, table: pa.Table) -> pa.Table:
        """Quarantine what lacks a score that `elicit.uncertainty` needs: it may be another than when the row was measured."""
        names = needed(self.elicit)
        lacking = [pa.compute.is_null(table[col.uncertainty_column(name)]) for name in names]
        missing = reduce(pa.compute.or_, lacking)
        status = pa.compute.if_else(missing, col.STATUS_QUARANTINED, col.STATUS_OK)
        unexplained = pa.compute.and_(missing, pa.compute.is_null(table[col.ERROR]))
        error = pa.compute.if_else(unexplained, unparsable(names), table[col.ERROR])
        return _with(_with(table, col.STATUS, status), col.ERROR, error)

    def _adjust(self, numbers: pa.Table) -> dict[str, np.ndarray]:
        """Compute the ensemble and the column that smoothing reads."""
        scores: dict[str, np.ndarray] = {
            name: _floats(numbers, col.uncertainty_column(name)) for name in self.elicit.estimators
        }
        ensemble = mean_rank([scores[name] for name in self.elicit.ensemble or self.elicit.estimators])
        chosen = ensemble if self.elicit.uncertainty == ENSEMBLE else scores[self.elicit.uncertainty]
        # Of an ensemble, some members may have scored a row that others failed on.
        chosen = np.where(np.array(numbers[col.STATUS].to_pylist()) == col.STATUS_OK, chosen, np.nan)
        if self.elicit.length_residual:
            chosen = length_residual(chosen, _floats(numbers, col.RESPONSE_LENGTH))
        if self.elicit.calibrate_with is not None:
            chosen = self._calibrated(chosen, numbers)
        return {col.uncertainty_column(ENSEMBLE): ensemble, col.UNCERTAINTY: chosen}

    def _calibrated(self, chosen: np.ndarray, numbers: pa.Table) -> np.ndarray:
        path = Path(self.elicit.calibrate_with or "").expanduser()
        if not len(chosen):
            return chosen
        correct = match_labels(read_labels(path), numbers[col.ID], numbers[col.GIVEN_ID])
        try:
            return calibrate(chosen, correct)
        except ValueError as error:
            raise UserError(
                "elicit.calibrate_with cannot be used", got=f"{path}: {error}", expected="labels of both kinds"
            ) from error

    def _write(self, parts: Iterator[pa.Table], extra: dict[str, np.ndarray]) -> None:
        schema = col.scored_schema(self.elicit.estimators)
        folder = self.folder / col.SCORED_FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("*.parquet"):
            old.unlink()
        done = 0
        for number, table in enumerate(_gathered(parts)):
            for name, values in extra.items():
                part = values[done : done + len(table)]
                table = table.append_column(name, pa.array(part, pa.float64(), mask=np.isnan(part)))
            write_table(table.select(schema.names).cast(schema), folder / f"part-{number:05d}.parquet")
            done += len(table)

    def _describe(self, rows: pa.Table, numbers: pa.Table, extra: dict[str, np.ndarray]) -> dict[str, Any]:
        statuses = zip(numbers[col.STATUS].to_pylist(), numbers[col.ERROR].to_pylist(), strict=True)
        reasons = Counter((error or "unknown").split(":")[0] for status, error in statuses if status == col.STATUS_QUARANTINED)
        columns: dict[str, np.ndarray] = {
            name: _floats(numbers, col.uncertainty_column(name)) for name in self.elicit.estimators
        }
        used: dict[str, np.ndarray] = (
            {ENSEMBLE: extra[col.uncertainty_column(ENSEMBLE)]} if self.elicit.uncertainty == ENSEMBLE else {}
        )
        tokens = {
            name: pa.compute.sum(numbers[name]).as_py() or 0 for name in (col.PROMPT_TOKENS, col.GENERATED_TOKENS, col.CALLS)
        }
        splits = Counter(rows[col.SPLIT].to_pylist())
        return {
            **read_figures(self.folder),
            "total_rows": len(rows),
            "splits": {name: splits[name] for name in col.SPLITS if splits[name]},
            "sources": dict(Counter(rows[col.SOURCE].to_pylist())),
            "rows": len(numbers),
            "lost": pa.compute.sum(self._is_wanted(rows)).as_py() - len(numbers),
            "quarantined": sum(reasons.values()),
            "reasons": dict(reasons),
            "truncated": pa.compute.sum(numbers[col.TRUNCATED]).as_py() or 0,
            **tokens,
            "mean_uncertainty": {name: _mean(values) for name, values in {**columns, **used}.items()},
            "prompt_hashes": sorted(filter(None, numbers[col.PROMPT_HASH].unique().to_pylist())),
            "histograms": _histograms(numbers[col.SOURCE].to_pylist(), extra[col.UNCERTAINTY]),
        }


def read_figures(folder: Path) -> dict[str, Any]:
    """Count the rows that reading set aside, by reason."""
    reasons: Counter[str] = Counter()
    for file in (folder / QUARANTINE_FOLDER).glob("*.jsonl"):
        with file.open(encoding="utf-8") as lines:
            reasons.update(_reason(line) for line in lines)
    return {"bad": sum(reasons.values()), "bad_reasons": dict(reasons)}


def _reason(line: str) -> str:
    return json.loads(line)["reason"].split(":")[0]


def _first_of_each(files: Sequence[Path], wanted: pa.ChunkedArray) -> list[np.ndarray]:
    """Mark, per file, the rows to keep: ids of this data set, each at its first place."""
    counts = [pyarrow.parquet.read_metadata(file).num_rows for file in files]
    ids = pa.chunked_array(
        [chunk for file in files for chunk in pyarrow.parquet.read_table(file, columns=[col.ID])[col.ID].chunks], pa.string()
    )
    mask = np.zeros(len(ids), dtype=bool)
    _, first = np.unique(ids.to_numpy(zero_copy_only=False).astype("U16"), return_index=True)
    mask[first] = True
    mask &= pa.compute.is_in(ids, value_set=wanted.combine_chunks()).to_numpy(zero_copy_only=False)
    return np.split(mask, np.cumsum(counts)[:-1]) if counts else []


def _as_in(rows: pa.Table, table: pa.Table) -> pa.Table:
    """Give measured rows the split, source and given id that they have in this data set; the store may know another's."""
    at = pa.compute.index_in(table[col.ID], value_set=rows[col.ID])
    for name in OF_THE_DATA:
        table = _with(table, name, rows[name].take(at))
    return table


def _with(table: pa.Table, name: str, values: pa.ChunkedArray) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), table.schema.field(name), values.cast(pa.string()))


def _gathered(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Put small tables together into larger ones; one empty table where there is none."""
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        if sum(map(len, waiting)) >= ROWS_PER_FILE:
            yield pa.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting)


def _floats(table: pa.Table, name: str) -> np.ndarray:
    return np.asarray(table[name].to_numpy(zero_copy_only=False), dtype=np.float64)


def _mean(values: np.ndarray) -> float | None:
    return float(np.nanmean(values)) if not np.isnan(values).all() else None


def _histograms(sources: Sequence[str], values: np.ndarray) -> dict[str, list[int]]:
    """Count the uncertainties of each source in equal bins over [0, 1]."""
    names = np.array(sources)
    return {source: histogram(values[names == source]) for source in sorted(set(sources))}
