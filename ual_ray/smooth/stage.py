"""Stage 2: scored rows in, rows with alpha out. No language model is called."""

import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

from ual_ray import columns as col
from ual_ray.columns import Messages
from ual_ray.config import ArmConfig, Config, TrainConfig
from ual_ray.errors import UserError
from ual_ray.models.chat import ChatRenderer, load_renderer
from ual_ray.models.resolve import check_found, resolve_model
from ual_ray.models.truncate import cut, trained_tokens
from ual_ray.parquet import RowFiles, content_digest, mapped, schema_of, writing
from ual_ray.smooth.maps import Array, Rows, assign_alpha, describe
from ual_ray.smooth.weights import assign_weights
from ual_ray.sorting import check_ids, check_splits
from ual_ray.stats.score_quality import FOLLOWS, spearman

SEQUENCES = "sequences"
COUNTED = pa.schema([(col.ID, pa.string()), (col.TARGET_TOKENS, pa.int64()), (SEQUENCES, pa.int64())])
# Raise it when rows of a mixture are matched by other lengths.
MIXTURE_VERSION = 2


def smooth(
    scored: Path,
    spec: ArmConfig,
    seed: int,
    folder: Path,
    scored_digest: str | None = None,
    *,
    tokens: pa.Table | None = None,
    mixture: Mapping[str, float] | None = None,
    texts: bool = True,
) -> dict[str, Any]:
    """Write the training rows with their alpha and weight; return the distribution and the counts of missing and excluded rows.

    Returned too: the rank correlation of alpha and uncertainty (FOLLOWS), None where one of them is the same for all rows.
    tokens: that are trained (COUNTED), over which arms have equal means; without any, over the characters.
    mixture: train.mixture, by which tokens of a source count more than once. texts: whether the rows keep all their columns,
    or only those that alphas depend on. `scored_digest`, if known, is recorded with the map. Numbers of all rows are in memory
    at once, texts are streamed.
    Raises UserError when the scored rows lack the uncertainty column, or contain no training row.
    """
    uncertainty_column = check_columns(scored, spec)
    files = RowFiles(scored)
    check_splits(scored, (batch[col.SPLIT] for batch in files.to_batches(columns=[col.SPLIT])))
    # Sorted by id: the assignment of the control 'shuffled' must not depend on the order of writing.
    reads = [name for name in columns_read(spec) if name in files.schema.names]
    table = files.to_table(reads, pa.compute.field(col.SPLIT) == col.TRAIN)
    if not len(table):
        splits = files.to_table([col.SPLIT])[col.SPLIT].unique().to_pylist()
        got, fix = f"splits: {', '.join(sorted(map(str, splits))) or 'no row'}", "elicit.splits must contain train"
        raise UserError(f"{scored} has no row of the split '{col.TRAIN}'", got=got, fix=fix)
    order = pa.compute.sort_indices(table, [(col.ID, "ascending")])
    table = table.take(order)
    check_ids(scored, [table[col.ID]])
    uncertainty = np.array(table[uncertainty_column].to_numpy(zero_copy_only=False), dtype=np.float64)
    lengths, unit = _lengths(table, tokens)
    sources = _texts(table[col.SOURCE]) if col.SOURCE in table.column_names else None
    rows = Rows.of(uncertainty, lengths, sources, seed)
    weight = assign_weights(rows, spec)
    if mixture:
        kept_rows = (weight > 0) & ~(np.isnan(uncertainty) & (spec.missing == "exclude"))
        rows = _as_drawn(rows, mixture, kept_rows * (_count(table, tokens, SEQUENCES) if tokens else 1))
        weight = assign_weights(rows, spec)
    # A row of weight 0 is left out, not trained on for nothing; means per token are over what counts in the loss.
    alpha = assign_alpha(uncertainty, spec, seed, rows.length, sources, weight)
    if np.isnan(alpha).all():
        raise UserError("no row has a score", fix="set missing: impute, or run elicitation again")
    folder.mkdir(parents=True, exist_ok=True)
    record = {**spec.model_dump(), "seed": seed, col.SCORED_DIGEST: scored_digest or content_digest(scored, reads)}
    added = {col.ALPHA: alpha} | ({col.LOSS_WEIGHT: weight} if spec.weight != "none" else {})
    kept = [name for name in files.schema.names if texts or name in col.SMOOTHING_READS]
    _write(files, kept, order.to_numpy(), added, record, folder / col.SMOOTHED_FILE)
    what = {"map": spec.map, "weight": spec.weight, "loss": spec.loss, "uncertainty": uncertainty_column}
    weights = {"weight_min": float(weight[weight > 0].min()), "weight_max": float(weight.max())}
    return {
        **what,
        "missing": int(np.isnan(uncertainty).sum()),
        "length": unit,
        **describe(alpha, rows.length * weight),
        FOLLOWS: spearman(alpha, uncertainty).spearman,
        **weights,
    }


def columns_read(spec: ArmConfig) -> list[str]:
    """List the columns that an arm's alphas and weights depend on."""
    own = {col.UNCERTAINTY: col.uncertainty_column(spec.uncertainty)} if spec.uncertainty else {}
    return [own.get(name, name) for name in col.SMOOTHING_READS]


def check_columns(scored: Path, spec: ArmConfig) -> str:
    """Return the column of the arm's uncertainty.

    Raises UserError for a table without the columns of scored rows, with one twice, or that has an alpha or a weight already.
    """
    names = schema_of(scored).names
    read = columns_read(spec)[col.SMOOTHING_READS.index(col.UNCERTAINTY)]
    needed = (col.ID, col.SPLIT, read)
    if missing := [name for name in needed if name not in names]:
        fix = (
            f"add '{spec.uncertainty}' to elicit.estimators and elicit again" if missing[0] == read != col.UNCERTAINTY else None
        )
        raise UserError(f"{scored} has no column '{missing[0]}'", got=names, expected="the output of `ual elicit`", fix=fix)
    if there := [name for name in (col.ALPHA, col.LOSS_WEIGHT) if name in names]:
        raise UserError(
            f"{scored} has a column '{there[0]}' already", got=names, fix="rename it: smoothing adds a column of this name"
        )
    return read


def _lengths(table: pa.Table, tokens: pa.Table | None) -> tuple[Array | None, str]:
    """Return the length of every response and its unit; None where a row has none, so that all rows count alike."""
    if tokens:
        return _count(table, tokens, col.TARGET_TOKENS), "trained token"
    if col.RESPONSE_LENGTH not in table.column_names or table[col.RESPONSE_LENGTH].null_count:
        return None, "row"
    return np.array(table[col.RESPONSE_LENGTH].to_numpy(), dtype=np.float64), "character of response"


def _texts(column: pa.ChunkedArray) -> NDArray[Any]:
    """Return texts, each different one in memory once; "" where there is none."""
    encoded = column.cast(pa.string()).fill_null("").combine_chunks().dictionary_encode()
    return np.array(encoded.dictionary.to_pylist(), dtype=object)[encoded.indices.to_numpy()]


def _count(table: pa.Table, tokens: pa.Table, name: str) -> Array:
    """Return a column of COUNTED for every row; 0 for a row that training drops."""
    places = pa.compute.index_in(table[col.ID].cast(pa.string()), value_set=tokens[col.ID])
    return tokens[name].take(places.combine_chunks()).fill_null(0).to_numpy().astype(np.float64)


def _as_drawn(rows: Rows, mixture: Mapping[str, float], sequences: NDArray[Any]) -> Rows:
    """Scale lengths by how often training draws a sequence of the source, up to a common factor.

    sequences: [n], those that training has of each row.
    """
    length = rows.length.copy()
    for source, share in mixture.items():
        own = rows.source == source
        length[own] *= share / max(1, sequences[own].sum())
    return Rows.of(rows.uncertainty, length, rows.source, rows.seed)


def _write(
    files: RowFiles,
    kept: list[str],
    order: NDArray[Any],
    added: Mapping[str, Array],
    record: dict[str, Any],
    path: Path,
) -> None:
    """Copy columns of the training rows that have an alpha, and those added, by batches. order: of the values' rows."""
    schema = pa.schema([*map(files.schema.field, kept), *(pa.field(name, pa.float64()) for name in added)])
    schema = schema.with_metadata({col.MAP_METADATA: json.dumps(record).encode()})
    values, end = {name: np.empty_like(numbers) for name, numbers in added.items()}, 0
    for name, numbers in added.items():
        values[name][order] = numbers
    with writing(path, schema) as writer:
        for batch in files.to_batches(columns=kept, filter=pa.compute.field(col.SPLIT) == col.TRAIN):
            start, end = end, end + len(batch)
            rows = pa.Table.from_batches([batch])
            for name, numbers in values.items():
                rows = rows.append_column(name, pa.array(numbers[start:end], pa.float64()))
            writer.write_table(rows.filter(pa.array(~np.isnan(values[col.ALPHA][start:end]))).cast(writer.schema))


def histogram(smoothed: Path, bins: int = 10) -> list[tuple[float, float, int]]:
    """Count rows per interval of alpha: (from, to, rows), for the terminal and for plots."""
    with mapped(smoothed, [col.ALPHA]) as table:
        alpha = table[col.ALPHA].to_numpy()
        counts, edges = np.histogram(alpha, bins=bins if np.ptp(alpha) > 0 else 1)
    return [(float(low), float(high), int(count)) for low, high, count in zip(edges, edges[1:], counts, strict=False)]


@lru_cache(maxsize=1)
def stored_tokens(folder: Path) -> pa.Table:
    """Read the trained tokens (COUNTED) from the rendered rows, which the arms of a command share."""
    files = [pa.ipc.open_file(pa.memory_map(str(path))).read_all() for path in sorted(folder.glob(f"*{col.TOKENS_SUFFIX}"))]
    sequences = pa.concat_tables(files) if files else col.TOKENS.empty_table()
    # Not the tokens themselves, of which a filter makes a copy.
    training = sequences.select(COUNTED.names[:2]).filter(pa.compute.equal(sequences[col.SPLIT], col.TRAIN))
    found = training.group_by(col.ID).aggregate([(col.TARGET_TOKENS, "sum"), (col.TARGET_TOKENS, "count")])
    return found.rename_columns(COUNTED.names).cast(COUNTED)


def rendered_tokens(scored: Path, config: Config) -> pa.Table:
    """Count the trained tokens (COUNTED) of rows that nobody rendered yet; about 2,000 rows a second."""
    if col.MESSAGES not in (names := RowFiles(scored).schema.names):
        raise UserError(
            f"{scored} has no column '{col.MESSAGES}'",
            got=names,
            expected="the output of `ual elicit`",
            fix="add the texts of the rows: arms are matched over their tokens",
        )
    check_found(config.model, "model")
    renderer = load_renderer(resolve_model(config.model), config.trust_remote_code)
    training = pa.compute.field(col.SPLIT) == col.TRAIN
    counted = []
    for batch in RowFiles(scored).to_batches(columns=[col.ID, col.MESSAGES], filter=training):
        rows = [(row[col.ID], row[col.MESSAGES]) for row in batch.to_pylist() if row[col.MESSAGES]]
        tokens = [[*filter(None, _counts(renderer, messages, config.train))] for _, messages in rows]
        columns = [identity for identity, _ in rows], [*map(sum, tokens)], [*map(len, tokens)]
        counted.append(pa.record_batch([*columns], schema=COUNTED))
    return pa.Table.from_batches(counted, COUNTED)


def _counts(renderer: ChatRenderer, messages: Messages, settings: TrainConfig) -> Iterator[int]:
    try:
        rendered = renderer.sequences(messages)
    except ValueError:  # a row that training drops
        return
    yield from (trained_tokens(kept) for one in rendered if (kept := cut(one, settings)) is not None)
