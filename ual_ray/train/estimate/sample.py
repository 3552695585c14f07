"""The lengths in tokens of a split's rows, of a sample of the rows where they are many, an even one of each source."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.compute

from ual_ray import columns as col
from ual_ray.config import Config
from ual_ray.errors import UserError
from ual_ray.formatting import count_list, plural
from ual_ray.parquet import RowFiles
from ual_ray.train.given_rows import check_columns, check_own_ids, check_values
from ual_ray.train.token_store import TokenStore
from ual_ray.train.tokenize import Render, check_measured, check_vocabulary, most_frequent, remedy

# Size of the sample: larger data is estimated from this many evenly spaced rows.
MAX_SAMPLE = 2000


@dataclass(frozen=True)
class Rows:
    """Tokens per row of a split, `lengths` and `targets`, int32 of [rows], scaled up from `seen` of `total` rows.

    `dropped` (by reason), `truncated` and `endless` (without an end of turn) are counts among those seen. `sources` of the rows
    are only there with train.mixture.
    """

    lengths: np.ndarray
    targets: np.ndarray
    total: int
    seen: int
    dropped: Counter[str]
    truncated: int
    endless: int = 0
    sources: pa.Array | None = None


def sample_rows(config: Config, smoothed: Path) -> Rows:
    """Render the training rows, or an even sample of them, as training does. Raises UserError when no row is left."""
    check_columns(smoothed, [col.ALPHA])
    check_values(smoothed)
    rows, got = _sample(config, smoothed, col.TRAIN, [col.ALPHA], mixed=bool(config.train.mixture))
    if not len(rows.lengths):
        raise UserError("no training row is left", got=got, fix=remedy(rows.dropped, col.TRAIN))
    return rows


def check_validation(path: Path) -> None:
    """Raise UserError for validation rows with columns or ids that training rejects."""
    check_columns(path, [])
    check_own_ids(path, col.VALIDATION)


def sample_validation(config: Config, path: Path) -> Rows:
    """Render the validation rows as `sample_rows` does. Raises UserError when none is left and settings need some."""
    rows, got = _sample(config, path, col.VALIDATION, [])
    if not len(rows.lengths):
        check_measured(config.train, got, rows.dropped)
    return rows


def _sample(config: Config, path: Path, split: str, more: list[str], *, mixed: bool = False) -> tuple[Rows, str]:
    """Render rows of a split; return them, and how many were dropped, and why. more: columns to read."""
    files, wanted = RowFiles(path), pa.compute.field(col.SPLIT) == split
    sources = _sources(files, wanted, mixed=mixed)
    chosen = [_evenly(own, len(sources)) for own in _groups(sources)]
    total, places = len(sources), np.sort(np.concatenate([np.zeros(0, dtype=np.int64), *chosen]))
    table = files.take(pa.array(places), [col.ID, col.SPLIT, col.MESSAGES, *more], wanted)
    with TemporaryDirectory() as folder:
        render = Render(config.model, config.train, config.trust_remote_code, Path(folder))
        (summary,) = render(table).to_pylist()
        store = TokenStore.open(Path(folder), split, sources=path if mixed else None)
        check_vocabulary(summary["dropped"])
        dropped = Counter(row["reason"] for row in summary["dropped"])
        error = most_frequent(row["error"] for row in summary["dropped"] if row["error"])
    lengths, targets, scaled = _scaled(store, sources, places)
    counts = (total, len(places), dropped, summary["truncated_rows"], summary["endless_rows"])
    told = f"of {plural(len(places), 'row')}: {count_list(dropped)}{f' ({error})' if error else ''}"
    return Rows(lengths, targets, *counts, scaled if mixed else None), told


def _sources(rows: RowFiles, wanted: pa.compute.Expression, *, mixed: bool) -> pa.Array:
    """Read the source of every wanted row; without a mixture, or the column, all have the same one."""
    if not mixed or col.SOURCE not in rows.schema.names:
        return pa.repeat(pa.scalar(""), rows.count_rows(wanted))
    return rows.to_table([col.SOURCE], wanted)[col.SOURCE].cast(pa.string()).fill_null("").combine_chunks()


def _groups(sources: pa.Array) -> list[np.ndarray]:
    """Row numbers of each source, the sources in the order of their first rows."""
    codes = sources.dictionary_encode().indices.to_numpy()
    return [np.flatnonzero(codes == code) for code in range(int(codes.max(initial=-1)) + 1)]


def _evenly(rows: np.ndarray, total: int) -> np.ndarray:
    """Choose evenly spaced ones of a source's rows: its share of the sample, and one at least."""
    count = min(len(rows), max(1, round(MAX_SAMPLE * len(rows) / total)))
    return rows[np.linspace(0, len(rows), count, endpoint=False).astype(np.int64)]


def _scaled(store: TokenStore, sources: pa.Array, places: np.ndarray) -> tuple[np.ndarray, np.ndarray, pa.Array]:
    """Repeat the sampled rows' lengths and target tokens up to the number of rows of each source; and its name as often."""
    sampled = sources.take(pa.array(places))
    own = pa.repeat(pa.scalar(""), len(store)) if store.sources is None else store.sources.fill_null("")
    parts: list[tuple[np.ndarray, np.ndarray, list[str]]] = [(np.zeros(0, np.int32), np.zeros(0, np.int32), [])]
    for name in sources.unique().to_pylist():
        mine = np.flatnonzero(pa.compute.equal(own, name).to_numpy(zero_copy_only=False))
        of_it = [pa.compute.sum(pa.compute.equal(values, name)).as_py() for values in (sources, sampled)]
        size = round(of_it[0] * len(mine) / of_it[1])
        parts.append((np.resize(store.lengths[mine], size), np.resize(store.target_tokens[mine], size), [name] * size))
    lengths, targets, names = zip(*parts, strict=True)
    return np.concatenate(lengths), np.concatenate(targets), pa.array([name for some in names for name in some], pa.string())
