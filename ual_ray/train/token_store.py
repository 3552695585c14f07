"""The rendered rows, memory-mapped, so that a rank holds only the tokens it is reading."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.ipc

from ual_ray import columns as col
from ual_ray.config.files import refuse_damage
from ual_ray.models.chat import IGNORE_INDEX
from ual_ray.parquet import DONE_FILE, RowFiles, read_table

NO_BIN = -1
IDS_AT_ONCE = 100_000


@dataclass(frozen=True)
class Sample:
    """One rendered row.

    `input_ids` and `labels` are int32 of [length]; a label is IGNORE_INDEX at tokens not trained on. `alpha` is the row's
    smoothing value, in [0, 1). `uncertainty_bin` counts from 0, the least uncertain rows; NO_BIN = unknown uncertainty.
    `weight` is how much the row counts in the loss, 0 or above.
    """

    id: str
    input_ids: np.ndarray
    labels: np.ndarray
    alpha: float
    uncertainty_bin: int = NO_BIN
    weight: float = 1.0


def check_store(folder: Path) -> None:
    """Raise UserError when files of rendered rows are not what was written: a changed bit is another token, or a crash.

    Once per command, before training, and not by the ranks: each of them maps all files, and reads only its own rows.
    Reads all files, at 2 GB/s per core or as fast as the disk is: half a minute for ten million rows of 500 tokens.
    """
    refuse_damage(
        "the store of rendered rows", folder, f"remove {folder.parent / DONE_FILE}: the same command renders the rows again"
    )


class TokenStore:
    """One split of the rendered rows, ordered by id, independent of the files and blocks they were written in.

    `lengths` is int32 of [rows], in tokens; `target_tokens` int32 of [rows] counts the tokens that are predicted and trained
    on, never the first of a row. `ids` is a sequence of the rows' ids. Row numbers are positions in this order.
    `bin_edges` are the bounds of the uncertainty bins, ascending: bin b has edges[b] < uncertainty <= edges[b + 1], and
    bin 0 also its lower bound; empty without bins. `sources` has the source of each row, if it was asked for and is there.
    """

    def __init__(
        self,
        table: pa.Table,
        split: str,
        uncertainty_bins: int = 0,
        arm: pa.Table | None = None,
        most_tokens: int | None = None,
        sources: pa.Table | None = None,
    ) -> None:
        """Take a table with the columns of columns.TOKENS, which may be memory-mapped.

        arm: id, alpha and, where there are any, weight and uncertainty, in place of the table's own: rows that it lacks are
        left out. most_tokens: see `random_subset`; None = all rows. sources: id and source.
        """
        self._table = table
        keys = pa.table({name: table[name] for name in (col.ID, col.ALPHA)})
        order = pa.compute.sort_indices(keys, [(col.ID, "ascending"), (col.ALPHA, "ascending")]).to_numpy()
        rows = order[pa.compute.equal(table[col.SPLIT], split).to_numpy()[order]].astype(np.int64)
        places = rows
        if arm is not None:
            found = pa.compute.index_in(table[col.ID].take(rows), arm[col.ID].combine_chunks()).to_numpy()
            rows, places = rows[~np.isnan(found)], found[~np.isnan(found)].astype(np.int64)
        lengths = pa.compute.list_value_length(table[col.INPUT_IDS]).to_numpy().astype(np.int32)
        if most_tokens is not None and lengths[rows].sum() > most_tokens:
            kept = random_subset(_Ids(_Cells(table), rows), lengths[rows], most_tokens)
            rows, places = rows[kept], places[kept]
        self._rows, values = rows, table if arm is None else arm
        self._cells = _Cells(table)
        self.ids: Sequence[str] = _Ids(self._cells, rows)
        self.lengths = lengths[rows]
        self.target_tokens = table[col.TARGET_TOKENS].to_numpy().astype(np.int32)[rows]
        self.sources: pa.Array | None = None
        if sources is not None:
            found = pa.compute.index_in(table[col.ID].take(rows), sources[col.ID].combine_chunks())
            self.sources = sources[col.SOURCE].cast(pa.string()).combine_chunks().take(found.combine_chunks())
        self._alpha, weight, uncertainty = (
            _numbers(values, name, places) for name in (col.ALPHA, col.LOSS_WEIGHT, col.UNCERTAINTY)
        )
        self._weight = np.where(np.isnan(weight), 1.0, weight)
        self.bin_edges = quantile_edges(uncertainty, uncertainty_bins)
        self._bins = assign_bins(uncertainty, self.bin_edges)

    @classmethod
    def open(
        cls,
        folder: Path,
        split: str,
        uncertainty_bins: int = 0,
        arm: Path | None = None,
        most_tokens: int | None = None,
        *,
        sources: Path | None = None,
    ) -> TokenStore:
        """Map the *.arrow files that `tokenize.render` wrote into `folder`, and take the rows of one split.

        arm: Parquet of an arm's alphas and weights, by id, where the rendered rows are shared by arms. sources: Parquet
        of the rows' sources, by id. The bins are quantiles
        of the split's own uncertainty: about equal numbers of rows, ties in one bin, at most `uncertainty_bins` bins, none
        empty; 0 = no bins. Raises FileNotFoundError when the folder does not exist.
        """
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder} holds no rendered rows")
        files = [pa.ipc.open_file(pa.memory_map(str(path))).read_all() for path in sorted(folder.glob(f"*{col.TOKENS_SUFFIX}"))]
        table = pa.concat_tables(files) if files else col.TOKENS.empty_table()
        return cls(table, split, uncertainty_bins, _values(arm) if arm else None, most_tokens, _sources(sources))

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Sample]:
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, row: int) -> Sample:
        """Read one row. The arrays are views of the mapped file: do not write to them."""
        at = int(self._rows[row])
        input_ids, labels = (self._cells.at(name, at).values.to_numpy() for name in (col.INPUT_IDS, col.LABELS))
        alpha, weight = float(self._alpha[row]), float(self._weight[row])
        return Sample(self.ids[row], input_ids, labels, alpha, int(self._bins[row]), weight)

    def mean_alpha(self, draws: np.ndarray | None = None) -> float:
        """Mean alpha per trained token, by the rows' weights; 0 without any. draws: of each row per epoch, None = once each."""
        tokens = self.target_tokens * self._weight * (1.0 if draws is None else draws)
        return float(self._alpha @ tokens / tokens.sum()) if tokens.sum() else 0.0

    def count_ids(self) -> int:
        """Count the different ids: a row of the data may have several sequences. Holds a part of them at a time."""
        column, count, last = self._table[col.ID], 0, None
        for start in range(0, len(self), IDS_AT_ONCE):
            ids = column.take(pa.array(self._rows[start : start + IDS_AT_ONCE])).combine_chunks()
            count += (pa.compute.sum(pa.compute.not_equal(ids[1:], ids[:-1])).as_py() or 0) + (ids[0].as_py() != last)
            last = ids[-1].as_py()
        return count

    def label_counts(self, vocabulary: int) -> np.ndarray:
        """Count each entry of the vocabulary among the target tokens: int64 of [vocabulary]. Reads all labels once."""
        counts, end = np.zeros(vocabulary, dtype=np.int64), 0
        mine = np.zeros(len(self._table), dtype=bool)
        mine[self._rows] = True
        for batch in self._table.select([col.LABELS]).to_batches():
            start, end = end, end + len(batch)
            rows = batch.filter(pa.array(mine[start:end]))[col.LABELS]
            values, lengths = rows.flatten().to_numpy().copy(), pa.compute.list_value_length(rows).to_numpy()
            # No token predicts the first one of a row.
            values[(np.cumsum(lengths) - lengths)[lengths > 0]] = IGNORE_INDEX
            counts += np.bincount(values[values >= 0], minlength=vocabulary)
        return counts


def _values(arm: Path) -> pa.Table:
    """Read an arm's numbers by id: no texts."""
    names = RowFiles(arm).schema.names
    return read_table(arm, [col.ID, col.ALPHA, *(name for name in (col.LOSS_WEIGHT, col.UNCERTAINTY) if name in names)])


def _sources(rows: Path | None) -> pa.Table | None:
    if rows is None or col.SOURCE not in RowFiles(rows).schema.names:
        return None
    return read_table(rows, [col.ID, col.SOURCE])


def _numbers(table: pa.Table, name: str, places: np.ndarray) -> np.ndarray:
    """Take some rows of a column as float64; NaN = no value, or no such column."""
    if name not in table.column_names:
        return np.full(len(places), np.nan)
    return np.asarray(table[name].to_numpy(), dtype=np.float64)[places]


class _Cells:
    """The cells of a table. Arrow looks for a row in every chunk before its own, of which ten million rows have thousands."""

    def __init__(self, table: pa.Table) -> None:
        self._batches = table.to_batches()
        self._starts = [0, *accumulate(map(len, self._batches))]

    def at(self, name: str, row: int) -> Any:
        """Return the value of a column in a row, as Arrow holds it."""
        number = bisect_right(self._starts, row) - 1
        return self._batches[number].column(name)[row - self._starts[number]]


class _Ids(Sequence[str]):
    """The ids in the order of `rows`, converted to Python strings on access."""

    def __init__(self, cells: _Cells, rows: np.ndarray) -> None:
        self._cells, self._rows = cells, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            return [self[number] for number in range(*row.indices(len(self)))]
        return self._cells.at(col.ID, int(self._rows[row])).as_py()


def random_subset(ids: Sequence[str], lengths: np.ndarray, most_tokens: int) -> np.ndarray:
    """Positions, ascending, of rows of at most `most_tokens` tokens together, and of one row at least.

    Rows are taken by the hash of their id, so that the subset is the same for every seed, arm and number of ranks.
    """
    order = np.array(sorted(range(len(ids)), key=lambda row: hashlib.sha256(ids[row].encode()).digest()), dtype=np.int64)
    count = int(np.searchsorted(np.cumsum(lengths[order], dtype=np.int64), most_tokens, side="right"))
    return np.sort(order[: max(1, count)])


def quantile_edges(values: np.ndarray, bins: int) -> list[float]:
    """Bounds of at most `bins` bins of about equal numbers of values; NaN = missing, in no bin. Every bin holds a value.

    The inner bounds are values themselves, each the last of its bin, so that equal values share a bin.
    """
    known = np.sort(values[~np.isnan(values)])
    if not bins or not len(known):
        return []
    inner = np.quantile(known, np.arange(1, bins) / bins, method="inverted_cdf")
    return [float(known[0]), *np.unique(inner[inner < known[-1]]).tolist(), float(known[-1])]


def assign_bins(values: np.ndarray, edges: Sequence[float]) -> np.ndarray:
    """Number of each value's bin, int32 of [rows]: NO_BIN where the value is NaN or there are no bins."""
    if not edges:
        return np.full(len(values), NO_BIN, dtype=np.int32)
    return np.where(np.isnan(values), NO_BIN, np.searchsorted(edges[1:-1], values, side="left")).astype(np.int32)
