"""Expand one alpha, and one weight, per row to one per token, with a collator that pads, flattens or packs rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ual_ray import columns as col
from ual_ray.errors import UserError
from ual_ray.integrations.forward import TARGETS
from ual_ray.models.chat import IGNORE_INDEX

Row = Mapping[str, Any]

OWN = (col.ALPHA, col.LOSS_WEIGHT)
NEUTRAL = {col.ALPHA: "0 = no smoothing", col.LOSS_WEIGHT: "1 = as the others"}


class SmoothedCollator:
    """Wraps a collator of causal-LM rows, such as DataCollatorForSeq2Seq, DataCollatorWithFlattening or TRL's own.

    Rows have input_ids, labels and alpha: one number for the row, or one per token, as a pack of several rows needs; and,
    alike, a loss_weight where rows count differently.
    """

    def __init__(self, collator: Callable[[list[dict[str, Any]]], dict[str, Any]]) -> None:
        """Wrap a collator that returns input_ids and labels of [rows, length]."""
        self._collator = collator

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Collate; add alpha, and loss_weight if rows have it, [rows, length] float32, and the labels under a second name.

        The label of a sample's first token is masked, as no token predicts it, so that Trainer counts targets correctly.
        Raises UserError for rows without alpha, ValueError for an alpha whose length differs from its row's.
        """
        alphas = [_per_token(row, col.ALPHA) for row in rows]
        weights = [_per_token(row, col.LOSS_WEIGHT) for row in rows] if any(col.LOSS_WEIGHT in row for row in rows) else []
        plain = [{name: value for name, value in row.items() if name not in OWN} for row in rows]
        batch = dict(self._collator(plain))
        labels = batch["labels"].clone()
        labels[:, 0] = IGNORE_INDEX
        if "position_ids" in batch:
            labels[batch["position_ids"] == 0] = IGNORE_INDEX
        batch[col.ALPHA] = _placed(torch.cat(alphas), batch)
        if weights:
            batch[col.LOSS_WEIGHT] = _placed(torch.cat(weights), batch)
        return batch | {"labels": labels, TARGETS: labels}


def _per_token(row: Row, name: str) -> Tensor:
    if row.get(name) is None:
        raise UserError(
            f"a row has no {'smoothing value' if name == col.ALPHA else 'weight, and others have one'}",
            got=f"columns {sorted(row)}",
            expected=f"a column '{name}': a number per row, or a list of one per token",
            fix=f"add the column ({NEUTRAL[name]}); where the trainer has taken it out, set remove_unused_columns=False",
        )
    values, length = torch.as_tensor(row[name], dtype=torch.float32), len(row["input_ids"])
    if values.ndim == 1 and len(values) != length:
        raise ValueError(f"{name} has {len(values)} values for a row of {length} tokens; expected {length}, or one number")
    return values.expand(length)


def _placed(values: Tensor, batch: Mapping[str, Any]) -> Tensor:
    """Put the tokens' values, in the order of the rows, where the collator has put the tokens."""
    shape, mask = batch["input_ids"].shape, batch.get("attention_mask")
    # Without a mask the rows are concatenated, followed by padding.
    real = (torch.arange(shape.numel()) < len(values)).view(shape) if mask is None else mask.bool()
    if real.sum() != len(values) or (mask is None and shape[0] > 1 and shape.numel() != len(values)):
        raise ValueError(f"the collator made {int(real.sum())} tokens of {len(values)}: their values cannot be told apart")
    placed = torch.zeros(shape)
    placed[real] = values
    return placed
