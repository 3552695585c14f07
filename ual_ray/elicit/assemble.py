"""Turn the store of measured rows into the scored rows of one data set; what needs all rows at once is computed here.

Runs in a Ray task, so that the driver's memory does not grow with the rows. Only numbers and ids are held for all rows at
once; texts pass through in batches.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from ual_ray import columns as col
from ual_ray.config import ENSEMBLE, ElicitConfig
from ual_ray.data.canonical import QUARANTINE_FOLDER
from ual_ray.data.labels import match_labels, read_labels
from ual_ray.elicit.adjust import calibrate, check_labels, length_residual, mean_rank
from ual_ray.elicit.scoring import needed, unparsable
from ual_ray.engines.requests import count_cut
from ual_ray.parquet import RowFiles, write_tables
from ual_ray.stats.score_quality import distribution, histogram, median, score_warnings

if TYPE_CHECKING:
    from ual_ray.engines.row_store import RowStore

# Columns that depend on the data set and not on the messages: rows that two data sets share differ in them.
OF_THE_DATA = (col.SPLIT, col.SOURCE, col.GIVEN_ID)
COSTS = (col.PROMPT_TOKENS, col.GENERATED_TOKENS, col.CALLS)
# Columns computed from all rows, in place of what the store has.
COMPUTED = (*OF_THE_DATA, col.STATUS, col.ERROR, col.uncertainty_column(ENSEMBLE), col.UNCERTAINTY)


@dataclass(frozen=True)
class Assembly:
    """Rows of the configured splits of `folder`/rows, their measurements in `store`, and what to compute from these."""

    folder: Path
    store: RowStore
    elicit: ElicitConfig

    def run(self) -> dict[str, Any]:
        """Write `folder`/scored and return the figures. Raises UserError for unsuitable labels and for missing rows."""
        rows = RowFiles(self.folder / col.ROWS_FOLDER).to_table(columns=[col.ID, *OF_THE_DATA])
        rows = rows.combine_chunks()
        wanted = rows.filter(pa.compute.is_in(rows[col.SPLIT], pa.array(self.elicit.splits)))[col.ID]
        self.store.check_complete(wanted)
        numbers = self._numbers(rows, wanted)
        for name, values in self._adjust(numbers).items():
            numbers = numbers.append_column(name, pa.array(values, pa.float64(), mask=np.isnan(values)))
        schema = col.scored_schema(self.elicit.estimators)
        write_tables(self._scored(wanted, numbers, schema), schema, self.folder / col.SCORED_FOLDER)
        return self._describe(rows, numbers) | {"warnings": self._warnings(wanted, numbers)}

    def _numbers(self, rows: pa.Table, wanted: pa.ChunkedArray) -> pa.Table:
        """Read all columns but the texts, in the order of the store, with split, source, id and status as of this data set."""
        scores = [col.uncertainty_column(name) for name in self.elicit.estimators]
        others = [col.RESPONSE_LENGTH, col.TRUNCATED, col.STATUS, col.ERROR, col.PROMPT_HASH]
        masses = [col.mass_column(name) for name in self.elicit.estimators]
        columns = [col.ID, *OF_THE_DATA, *scores, *masses, *others, *COSTS]
        nothing = self.store.schema.empty_table().select(columns)
        numbers = pa.concat_tables([nothing, *self.store.select(wanted, columns)]).combine_chunks()
        at = pa.compute.index_in(numbers[col.ID], value_set=rows[col.ID])
        # Rows without a score that `elicit.uncertainty` needs: it may have changed since they were measured.
        names = needed(self.elicit)
        lacking = reduce(pa.compute.or_, (pa.compute.is_null(numbers[col.uncertainty_column(name)]) for name in names))
        unexplained = pa.compute.and_(lacking, pa.compute.is_null(numbers[col.ERROR]))
        status = pa.compute.if_else(lacking, col.STATUS_QUARANTINED, col.STATUS_OK)
        error = pa.compute.if_else(unexplained, unparsable(names), numbers[col.ERROR])
        current = {name: rows[name].take(at) for name in OF_THE_DATA} | {col.STATUS: status, col.ERROR: error}
        return pa.table({name: current.get(name, numbers[name]) for name in columns}, schema=numbers.schema)

    def _scored(self, wanted: pa.ChunkedArray, numbers: pa.Table, schema: pa.Schema) -> Iterator[pa.Table]:
        """Read whole rows in the same order, and put the computed columns in."""
        start = 0
        names = [name for name in self.store.schema.names if name != col.REPLIES]
        for table in self.store.select(wanted, names):
            part = numbers.slice(start, len(table))
            yield pa.table({name: (part if name in COMPUTED else table)[name] for name in schema.names}, schema=schema)
            start += len(table)

    def _adjust(self, numbers: pa.Table) -> dict[str, np.ndarray]:
        """Compute the ensemble and the column that smoothing reads."""
        scores: dict[str, np.ndarray] = {
            name: _floats(numbers, col.uncertainty_column(name)) for name in self.elicit.estimators
        }
        ensemble = mean_rank([scores[name] for name in self.elicit.ensemble or self.elicit.estimators])
        chosen = ensemble if self.elicit.uncertainty == ENSEMBLE else scores[self.elicit.uncertainty]
        # Some members of an ensemble may have scored a row that others failed on.
        chosen = np.where(np.array(numbers[col.STATUS].to_pylist()) == col.STATUS_OK, chosen, np.nan)
        if self.elicit.length_residual:
            sources = numbers[col.SOURCE].combine_chunks().dictionary_encode().indices.to_numpy()
            chosen = length_residual(chosen, _floats(numbers, col.RESPONSE_LENGTH), sources)
        if self.elicit.calibrate_with is not None:
            chosen = self._calibrated(chosen, numbers)
        return {col.uncertainty_column(ENSEMBLE): ensemble, col.UNCERTAINTY: chosen}

    def _calibrated(self, chosen: np.ndarray, numbers: pa.Table) -> np.ndarray:
        path = Path(self.elicit.calibrate_with or "").expanduser()
        if not len(chosen):
            return chosen
        correct = match_labels(read_labels(path), numbers[col.ID], numbers[col.GIVEN_ID])
        usable = correct[~np.isnan(chosen)]
        check_labels(int((usable == 1).sum()), int((usable == 0).sum()), f"{path} that match a row with a score")
        return calibrate(chosen, correct, numbers[col.ID].to_pylist())

    def _describe(self, rows: pa.Table, numbers: pa.Table) -> dict[str, Any]:
        statuses = zip(numbers[col.STATUS].to_pylist(), numbers[col.ERROR].to_pylist(), strict=True)
        errors = Counter(error or "unknown" for status, error in statuses if status == col.STATUS_QUARANTINED)
        reasons: Counter[str] = Counter()
        for error, count in errors.items():
            reasons[error.split(":")[0]] += count
        shown = [*self.elicit.estimators, *[ENSEMBLE] * (self.elicit.uncertainty == ENSEMBLE)]
        splits = Counter(rows[col.SPLIT].to_pylist())
        return {
            **read_figures(self.folder),
            "total_rows": len(rows),
            "splits": {name: splits[name] for name in col.SPLITS if splits[name]},
            "sources": dict(Counter(rows[col.SOURCE].to_pylist())),
            "rows": len(numbers),
            "quarantined": sum(reasons.values()),
            "reasons": dict(reasons),
            "commonest_error": errors.most_common(1)[0][0] if errors else None,
            "truncated": pa.compute.sum(numbers[col.TRUNCATED]).as_py() or 0,
            **{name: pa.compute.sum(numbers[name]).as_py() or 0 for name in COSTS},
            "uncertainty": self.elicit.uncertainty,
            "mean_uncertainty": {name: _mean(_floats(numbers, col.uncertainty_column(name))) for name in shown},
            "prompt_hashes": sorted(filter(None, numbers[col.PROMPT_HASH].unique().to_pylist())),
            "histograms": _histograms(numbers[col.SOURCE].to_pylist(), _floats(numbers, col.UNCERTAINTY)),
        }

    def _warnings(self, wanted: pa.ChunkedArray, numbers: pa.Table) -> dict[str, list[str]]:
        """List what to know of each estimator before training on it, and of the uncertainty where it is not a copy of one."""
        finished = [col.finish_column(name) for name in self.elicit.estimators]
        cut, replies = Counter[str](), Counter[str]()
        for table in self.store.select(wanted, finished):
            for name in finished:
                found = count_cut(table[name])
                cut[name] += found[0]
                replies[name] += found[1]
        warnings = {}
        for name, finish in zip(self.elicit.estimators, finished, strict=True):
            share = cut[finish] / replies[finish] if replies[finish] else None
            spread = distribution(_floats(numbers, col.uncertainty_column(name)))
            warnings[name] = [*score_warnings(name, spread, median(_floats(numbers, col.mass_column(name))), share)]
        if self.elicit.uncertainty == ENSEMBLE or self.elicit.length_residual or self.elicit.calibrate_with is not None:
            spread = distribution(_floats(numbers, col.UNCERTAINTY))
            warnings[col.UNCERTAINTY] = [*score_warnings(col.UNCERTAINTY, spread)]
        return warnings


def read_figures(folder: Path) -> dict[str, Any]:
    """Count the bad rows in quarantine, by reason."""
    reasons: Counter[str] = Counter()
    for file in (folder / QUARANTINE_FOLDER).glob("*.jsonl"):
        with file.open(encoding="utf-8") as lines:
            reasons.update(json.loads(line)["reason"].split(":")[0] for line in lines)
    return {"bad": sum(reasons.values()), "bad_reasons": dict(reasons)}


def _floats(table: pa.Table, name: str) -> np.ndarray:
    return np.asarray(table[name].to_numpy(zero_copy_only=False), dtype=np.float64)


def _mean(values: np.ndarray) -> float | None:
    return float(np.nanmean(values)) if not np.isnan(values).all() else None


def _histograms(sources: Sequence[str], values: np.ndarray) -> dict[str, list[int]]:
    """Count the uncertainties of each source in equal bins over [0, 1]."""
    names = np.array(sources)
    return {source: histogram(values[names == source]) for source in sorted(set(sources))}
