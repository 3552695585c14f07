"""Checks of the rows that a training is given, before anything is computed: columns, ids, alphas and weights."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset

from ual_ray import columns as col
from ual_ray.errors import UserError
from ual_ray.formatting import plural
from ual_ray.parquet import RowFiles, check_ids, schema_of

LARGEST = float(np.finfo(np.float32).max)


def check_columns(path: Path, needed: Sequence[str]) -> list[str]:
    """Return the columns that training reads of a file. Raises UserError when it lacks one, or has one of another kind."""
    names = schema_of(path).names
    needed = [col.ID, col.SPLIT, col.MESSAGES, *needed]
    if missing := [name for name in needed if name not in names]:
        without_texts = missing == [col.MESSAGES] and col.ALPHA in names
        raise UserError(
            f"{path} lacks columns that training needs",
            got=missing,
            expected=", ".join(needed),
            fix="an arm of a run holds alphas without texts: `ual smooth OUTPUT/elicit/KEY/scored` writes both"
            if without_texts
            else "`ual smooth` writes them",
        )
    return needed


def check_own_ids(path: Path, split: str) -> None:
    """Raise UserError unless every row of a split, training or validation, has an id of its own."""
    files, mine = RowFiles(path), pyarrow.dataset.field(col.SPLIT) == split
    hashes, nulls = [np.empty(0, np.int64)], 0
    # Hashes take 80 MB of ten million rows, and their ids ten times that.
    for batch in files.to_batches(columns=[col.ID], filter=mine):
        hashes.append(np.fromiter(map(hash, batch[col.ID].to_pylist()), np.int64, len(batch)))
        nulls += batch[col.ID].null_count
    found = np.sort(np.concatenate(hashes))
    if nulls or (found[1:] == found[:-1]).any():
        ids = files.to_table(columns=[col.ID], filter=mine)[col.ID]
        check_ids(path, ids, *([] if split == col.TRAIN else [f"{split} row", "those that are measured are chosen"]))


def check_values(path: Path) -> None:
    """Raise UserError when an alpha or a weight of a training row is not in the range that the loss is defined for.

    A row without a weight has one of 1; one without an alpha is an error. Weights that are all 0 are an error too.
    """
    check_own_ids(path, col.TRAIN)
    files = RowFiles(path)
    for name, expected, most in ((col.ALPHA, "a number in [0, 1]", 1.0), (col.LOSS_WEIGHT, "0 or above, and finite", LARGEST)):
        if name not in files.schema.names or (name == col.LOSS_WEIGHT and pa.types.is_null(files.schema.field(name).type)):
            continue
        if not (pa.types.is_floating(kind := files.schema.field(name).type) or pa.types.is_integer(kind)):
            raise UserError(
                f"{path}: the column {name} has no numbers",
                got=kind,
                expected=f"{expected}, in every training row",
                fix="`ual smooth` writes such columns",
            )
        mine = pyarrow.dataset.field(col.SPLIT) == col.TRAIN
        # Not by the filter: a file's statistics, by which whole parts are skipped, know nothing of NaN.
        values = files.to_table(columns=[name], filter=mine)[name].cast(pa.float64()).to_numpy()
        illegal = ~((values >= 0) & (values <= most)) & (~np.isnan(values) | (name == col.ALPHA))
        if illegal.any():
            at = int(illegal.argmax())
            row = files.to_table(columns=[col.ID], filter=mine)[col.ID][at]
            raise UserError(
                f"{path}: the column {name} cannot be trained with",
                got=f"{values[at]:g} in the row {row}, and {plural(int(illegal.sum()) - 1, 'row')} more",
                expected=f"{expected}, in every training row",
                fix="correct these rows or leave them out; `ual smooth` writes such columns",
            )
        if name == col.LOSS_WEIGHT and len(values) and not values.any():
            raise UserError(
                f"{path}: the column {name} leaves nothing to train on",
                got="0 in every training row",
                expected="a weight above 0, or none, in some of them",
                fix="correct the weights, or leave the column out to weigh all rows alike",
            )
