"""The step plan, computed before training: which rows every rank sees in every step, and how many target tokens a step has.

Pure and deterministic: every rank computes the same plan from the same lengths, so no rank waits for a batch that another
does not have, nothing is dropped, and the plan's step number is the whole data cursor of a checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ual_ray.rendering import IGNORE_INDEX


@dataclass(frozen=True)
class Sample:
    """One rendered row; `alpha` is its smoothing value."""

    id: str
    input_ids: Sequence[int]
    labels: Sequence[int]
    alpha: float

    @property
    def target_tokens(self) -> int:
        """Number of tokens that are predicted and trained on; the first token has nothing before it."""
        return sum(label != IGNORE_INDEX for label in self.labels[1:])


@dataclass(frozen=True)
class Step:
    """One optimizer step: `micro_batches[rank]` lists that rank's micro-batches as row numbers; some may be empty."""

    epoch: int
    micro_batches: tuple[tuple[tuple[int, ...], ...], ...]

    @property
    def rows(self) -> list[int]:
        """All rows of the step."""
        return [row for rank in self.micro_batches for batch in rank for row in batch]


@dataclass(frozen=True)
class Batch:
    """A micro-batch, padded on the right: all tensors are [rows, length]; `labels` are shifted by the model, not here."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor
    alpha: torch.Tensor

    def to(self, device: torch.device) -> Batch:
        """Move every tensor."""
        return Batch(*(tensor.to(device) for tensor in (self.input_ids, self.attention_mask, self.labels, self.alpha)))


def plan_steps(
    lengths: Sequence[int],
    *,
    epochs: int,
    global_batch_size: int,
    micro_batch_size: int,
    world_size: int,
    seed: int,
    max_steps: int | None = None,
) -> list[Step]:
    """Lay out all steps; every row comes once per epoch, in an order decided by seed and epoch alone.

    Within a step, rows are sorted by length and dealt out so that micro-batches hold rows of like length (little padding)
    and ranks get the same number of micro-batches.
    """
    steps: list[Step] = []
    for epoch in range(epochs):
        order = np.random.default_rng([seed, epoch]).permutation(len(lengths))
        for start in range(0, len(order), global_batch_size):
            rows = sorted(order[start : start + global_batch_size].tolist(), key=lambda row: (lengths[row], row))
            steps.append(Step(epoch, _deal(rows, micro_batch_size, world_size)))
    return steps[:max_steps]


def _deal(rows: Sequence[int], micro_batch_size: int, world_size: int) -> tuple[tuple[tuple[int, ...], ...], ...]:
    rounds = -(-len(rows) // (micro_batch_size * world_size))
    parts = [tuple(part.tolist()) for part in np.array_split(np.asarray(rows, dtype=np.int64), rounds * world_size)]
    return tuple(tuple(parts[rank::world_size]) for rank in range(world_size))


def collate(samples: Sequence[Sample]) -> Batch:
    """Pad rows to the longest of them; no row gives one masked token, so that every rank runs the same collectives."""
    length = max((len(sample.input_ids) for sample in samples), default=2)
    rows = max(1, len(samples))
    input_ids = torch.zeros(rows, length, dtype=torch.long)
    attention_mask = torch.zeros(rows, length, dtype=torch.long)
    labels = torch.full((rows, length), IGNORE_INDEX, dtype=torch.long)
    alpha = torch.zeros(rows, length)
    attention_mask[len(samples) :, 0] = 1
    for row, sample in enumerate(samples):
        size = len(sample.input_ids)
        input_ids[row, :size] = torch.as_tensor(sample.input_ids)
        attention_mask[row, :size] = 1
        labels[row, :size] = torch.as_tensor(sample.labels)
        alpha[row, :size] = sample.alpha
    return Batch(input_ids, attention_mask, labels, alpha)


def padding_share(steps: Sequence[Step], lengths: Sequence[int]) -> float:
    """Share of the tokens of all micro-batches that is padding, in [0, 1)."""
    real = padded = 0
    for step in steps:
        for batch in (batch for rank in step.micro_batches for batch in rank if batch):
            real += sum(lengths[row] for row in batch)
            padded += len(batch) * max(lengths[row] for row in batch)
    return 1 - real / padded if padded else 0.0
