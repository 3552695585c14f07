"""The questions on which two models differ most. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset

from ual_ray import columns as col
from ual_ray.config import BASE
from ual_ray.formatting import shorten_message
from ual_ray.parquet import RowFiles
from ual_ray.report.findings import Findings
from ual_ray.stats.comparison import Comparison
from ual_ray.stats.metrics import likelihoods

ROWS = 3
MAX_CHARACTERS = 500
ROWS_PER_BATCH = 1000


@dataclass(frozen=True)
class Example:
    """A question with the unsmoothed NLL per token (nats) of both models on its reference answer; texts are shortened."""

    id: str
    source: str
    arm: str
    reference: str
    nll: float
    reference_nll: float
    messages: list[dict[str, str]]

    @property
    def difference(self) -> float:
        """NLL per token of the arm minus the reference's, in nats; below 0 = the arm is better."""
        return self.nll - self.reference_nll


def examples_of(findings: Findings, root: Path) -> list[Example]:
    """Find the rows on which an arm gains and loses most likelihood, best first, of the first comparison that has such rows.

    Primary comparisons come first; a benchmark of answers alone has no likelihoods.
    """
    compared = [entry for entry in findings.comparisons.entries if entry.reference != BASE]
    candidates = (_examples(entry, findings, root) for entry in sorted(compared, key=lambda entry: not entry.primary))
    return next(filter(None, candidates), [])


def _examples(chosen: Comparison, findings: Findings, root: Path) -> list[Example]:
    evaluated = findings.folders.get("evaluated", {})
    places = [root / evaluated[name][0] / col.RESULTS_FOLDER for name in (chosen.arm, chosen.reference) if evaluated.get(name)]
    if len(places) < 2 or not all(place.is_dir() for place in places):
        return []
    return _most_different(chosen, *places)


def _most_different(entry: Comparison, mine: Path, theirs: Path) -> list[Example]:
    ids, nll = _losses(mine, entry.benchmark)
    other = dict(zip(*_losses(theirs, entry.benchmark), strict=True))
    pairs = [(value - other[key], key, value) for key, value in zip(ids, nll, strict=True) if key in other]
    order = sorted(pairs)
    chosen = order if len(order) <= 2 * ROWS else order[:ROWS] + order[-ROWS:]
    texts = _texts(mine, [key for _, key, _ in chosen])
    return [
        Example(key, texts[key][0], entry.arm, entry.reference, value, value - difference, texts[key][1])
        for difference, key, value in chosen
    ]


def _losses(folder: Path, benchmark: str) -> tuple[list[str], list[float]]:
    files = RowFiles(folder)
    table = files.to_table(
        columns=[col.ID, col.NLL_SUM, col.TARGET_TOKENS], filter=pyarrow.dataset.field(col.BENCHMARK) == benchmark
    )
    sums, tokens = likelihoods(table)
    there = np.isfinite(sums)
    return table.filter(there)[col.ID].to_pylist(), (sums[there] / tokens[there]).tolist()


def _texts(folder: Path, ids: list[str]) -> dict[str, tuple[str, list[dict[str, str]]]]:
    files = RowFiles(folder)
    # Read texts in small batches without read-ahead: Arrow would hold many files in memory.
    batches = files.to_batches(
        columns=[col.ID, col.SOURCE, col.MESSAGES],
        filter=pyarrow.dataset.field(col.ID).isin(pa.array(ids, pa.string())),
        batch_size=ROWS_PER_BATCH,
        batch_readahead=1,
        fragment_readahead=1,
    )
    rows = [row for batch in batches for row in batch.to_pylist()]
    return {
        row[col.ID]: (str(row[col.SOURCE]), [shorten_message(message, MAX_CHARACTERS) for message in row[col.MESSAGES] or []])
        for row in rows
    }
