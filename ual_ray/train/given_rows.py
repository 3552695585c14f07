"""Checks of the rows that a training is given, before anything is computed: columns, ids, alphas and weights."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset

from ual_ray import columns as col
from ual_ray.errors import UserError
from ual_ray.formatting import plural
from ual_ray.parquet import RowFiles, schema_of
from ual_ray.sorting import by_id, check_ids, check_splits

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
    """Raise UserError unless every row is in a split, and every one of this split, training or validation, has its own id."""
    files = RowFiles(path)
    check_splits(path, (batch[col.SPLIT] for batch in files.to_batches(columns=[col.SPLIT])))
    mine = files.to_batches(columns=[col.ID], filter=pyarrow.dataset.field(col.SPLIT) == split)
    parts = (part[col.ID] for part in by_id(mine))
    check_ids(path, parts, *([] if split == col.TRAIN else [f"{split} row", "those that are measured are chosen"]))


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
        mine, count, first, zero = pyarrow.dataset.field(col.SPLIT) == col.TRAIN, 0, "", True
        # Not by the filter: a file's statistics, by which whole parts are skipped, know nothing of NaN.
        for batch in files.to_batches(columns=[col.ID, name], filter=mine):
            values = batch[name].cast(pa.float64()).to_numpy(zero_copy_only=False)
            illegal = ~((values >= 0) & (values <= most)) & (~np.isnan(values) | (name == col.ALPHA))
            if illegal.any() and not count:
                first = f"{values[at := int(illegal.argmax())]:g} in the row {batch[col.ID][at]}"
            count, zero = count + int(illegal.sum()), zero and not values.any()
        if count:
            raise UserError(
                f"{path}: the column {name} cannot be trained with",
                got=f"{first}, and {plural(count - 1, 'row')} more",
                expected=f"{expected}, in every training row",
                fix="correct these rows or leave them out; `ual smooth` writes such columns",
            )
        if name == col.LOSS_WEIGHT and zero and files.count_rows(mine):
            raise UserError(
                f"{path}: the column {name} leaves nothing to train on",
                got="0 in every training row",
                expected="a weight above 0, or none, in some of them",
                fix="correct the weights, or leave the column out to weigh all rows alike",
            )
