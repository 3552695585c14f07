"""Expand one alpha per row to one per token, with a collator that pads, flattens or packs rows."""

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


class SmoothedCollator:
    """Wraps a collator of causal-LM rows, such as DataCollatorForSeq2Seq, DataCollatorWithFlattening or TRL's own.

    Rows have input_ids, labels and alpha: one number for the row, or one per token, as a pack of several rows needs.
    """

    def __init__(self, collator: Callable[[list[dict[str, Any]]], dict[str, Any]]) -> None:
        """Wrap a collator that returns input_ids and labels of [rows, length]."""
        self._collator = collator

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Collate; add alpha [rows, length] float32, 0 at padding, and the labels under a second name.

        The label of a sample's first token is masked, as no token predicts it, so that Trainer counts targets correctly.
        Raises UserError for rows without alpha, ValueError for an alpha whose length differs from its row's.
        """
        alphas = [_per_token(row) for row in rows]
        batch = dict(self._collator([{name: value for name, value in row.items() if name != col.ALPHA} for row in rows]))
        labels = batch["labels"].clone()
        labels[:, 0] = IGNORE_INDEX
        if "position_ids" in batch:
            labels[batch["position_ids"] == 0] = IGNORE_INDEX
        batch[col.ALPHA] = _placed(torch.cat(alphas), batch)
        return batch | {"labels": labels, TARGETS: labels}


def _per_token(row: Row) -> Tensor:
    if row.get(col.ALPHA) is None:
        raise UserError(
            "a row has no smoothing value",
            got=f"columns {sorted(row)}",
            expected=f"a column '{col.ALPHA}': a number in [0, 1] per row, or a list of one per token",
            fix="add the column (0 = no smoothing); where the trainer has taken it out, set remove_unused_columns=False",
        )
    alpha, length = torch.as_tensor(row[col.ALPHA], dtype=torch.float32), len(row["input_ids"])
    if alpha.ndim == 1 and len(alpha) != length:
        raise ValueError(f"{col.ALPHA} has {len(alpha)} values for a row of {length} tokens; expected {length}, or one number")
    return alpha.expand(length)


def _placed(alpha: Tensor, batch: Mapping[str, Any]) -> Tensor:
    """Put the tokens' alphas, in the order of the rows, where the collator has put the tokens."""
    shape, mask = batch["input_ids"].shape, batch.get("attention_mask")
    # Without a mask the rows are concatenated, followed by padding.
    real = (torch.arange(shape.numel()) < len(alpha)).view(shape) if mask is None else mask.bool()
    if real.sum() != len(alpha) or (mask is None and shape[0] > 1 and shape.numel() != len(alpha)):
        raise ValueError(f"the collator made {int(real.sum())} tokens of {len(alpha)}: their alphas cannot be told apart")
    placed = torch.zeros(shape)
    placed[real] = alpha
    return placed
