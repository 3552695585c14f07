"""The step plan, computed before training, and the tensors of a micro-batch; those of the next step are collated in a thread.

A *sequence* is one row of a micro-batch: one sample, or several with packing. The sequences of every rank in every step are
a function of the rows' lengths, the configuration, the seed and the world size: every rank computes the same plan, so all
ranks have equally many micro-batches, no row is dropped, and the number of the next step is a checkpoint's entire data
cursor.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from ual_ray.columns import digest
from ual_ray.config import TrainConfig
from ual_ray.config.keys import affecting
from ual_ray.models.chat import IGNORE_INDEX
from ual_ray.train.mixture import Mixture
from ual_ray.train.packing import Sequences, pack
from ual_ray.train.token_store import NO_BIN, Sample

MicroBatch = tuple[int, ...]


@dataclass(frozen=True)
class Step:
    """One optimizer step: `micro_batches[rank]` lists that rank's micro-batches as sequence numbers; some may be empty.

    All ranks have equally many. Within a rank the longest sequences come first, so that running out of memory shows early.
    """

    epoch: int
    micro_batches: tuple[tuple[MicroBatch, ...], ...]

    @property
    def sequences(self) -> list[int]:
        """All sequences of the step, of all ranks."""
        return [sequence for rank in self.micro_batches for batch in rank for sequence in batch]


class StepPlan:
    """The steps of a run, computed on access: `sequences[s]` are the row numbers of sequence s.

    Every sequence of an epoch comes once, in an order that depends only on seed and epoch. All epochs have the same sequences,
    with every row once, unless `mixture` draws other rows in each. The set of sequences of a step does not depend on world size
    or micro-batch size; only their assignment to ranks and micro-batches does.
    """

    def __init__(
        self,
        store_lengths: np.ndarray,
        target_tokens: np.ndarray,
        config: TrainConfig,
        seed: int,
        world_size: int,
        sources: pa.Array | None = None,
    ) -> None:
        """Take both token counts per row, [rows]; with packing, rows are at most `config.max_length` long.

        sources: of each row, needed with `config.mixture`. Raises UserError when they do not fit its weights.
        """
        self._config, self._seed, self._world_size = config, seed, world_size
        self._row_tokens = store_lengths, target_tokens
        self.mixture = Mixture(config.mixture, sources, seed) if config.mixture else None
        self.sequences = Sequences.alone(np.zeros(0, dtype=np.int64))
        # By epoch: the numbers of its sequences, and how many steps end with it.
        self.epochs: list[range] = []
        self._ends: list[int] = []
        while len(self.epochs) < config.epochs and len(self) < (config.max_steps or math.inf):
            self._add_epoch(store_lengths)
        self._tokens, self._target_tokens = self.sequences.sums(store_lengths), self.sequences.sums(target_tokens)

    def _add_epoch(self, lengths: np.ndarray) -> None:
        if self.mixture is None and self.epochs:
            numbers = self.epochs[0]
        else:
            rows = np.arange(len(lengths)) if self.mixture is None else self.mixture.epoch(len(self.epochs))
            start = len(self.sequences)
            packed = self._config.packing
            self.sequences += pack(lengths[rows], self._config.max_length).of(rows) if packed else Sequences.alone(rows)
            numbers = range(start, len(self.sequences))
        self.epochs.append(numbers)
        self._ends.append(sum(self._ends[-1:]) + -(-len(numbers) // self._config.global_batch_size))

    def ends_epoch(self, steps: int) -> bool:
        """Whether an epoch is complete after so many steps."""
        return steps in self._ends

    def __len__(self) -> int:
        """Number of optimizer steps of the run: those of all epochs, or max_steps if lower."""
        steps = self._ends[-1] if self._ends else 0
        return steps if self._config.max_steps is None else min(steps, self._config.max_steps)

    def __getitem__(self, number: int) -> Step:
        """Compute the step of this number, counted from 0. Raises IndexError beyond the last."""
        if not 0 <= number < len(self):
            raise IndexError(f"step {number} of {len(self)}")
        epoch = bisect_right(self._ends, number)
        position, numbers = number - (self._ends[epoch - 1] if epoch else 0), self.epochs[epoch]
        size = self._config.global_batch_size
        chosen = numbers.start + _order(self._seed, epoch, len(numbers))[position * size : (position + 1) * size]
        longest_first = chosen[np.lexsort((chosen, -self._tokens[chosen]))]
        parts = np.array_split(longest_first, self._micro_batch_count(len(chosen)))
        micro_batches = [tuple(part.tolist()) for part in parts]
        return Step(epoch, tuple(tuple(micro_batches[rank :: self._world_size]) for rank in range(self._world_size)))

    def __iter__(self) -> Iterator[Step]:
        return (self[number] for number in range(len(self)))

    def rows(self, step: Step) -> list[int]:
        """Row numbers of a step, of all ranks."""
        return [row for sequence in step.sequences for row in self.sequences[sequence]]

    def tokens(self, step: Step) -> int:
        """Number of tokens of a step over all ranks, without padding."""
        return int(self._tokens[step.sequences].sum())

    def target_tokens(self, step: Step) -> int:
        """Number of target tokens of a step over all ranks: the divisor of its summed loss."""
        return int(self._target_tokens[step.sequences].sum())

    @cached_property
    def padding_share(self) -> float:
        """Share of padding in the first epoch's micro-batches, in [0, 1); each is padded to its longest sequence."""
        order = _order(self._seed, 0, len(self.epochs[0]))
        size = self._config.global_batch_size
        whole = len(order) - len(order) % size
        padded = sum(
            self._padded_tokens(steps) for steps in (order[:whole].reshape(-1, size), order[None, whole:]) if steps.size
        )
        return 1 - int(self._tokens[: len(order)].sum()) / padded if padded else 0.0

    @property
    def longest_sequence(self) -> int:
        """Number of tokens of the longest sequence; 0 without any."""
        return int(self._tokens.max(initial=0))

    @property
    def tokens_per_step(self) -> tuple[float, float]:
        """Mean numbers of tokens, without padding, and of target tokens of the first epoch's steps, over all ranks."""
        first = slice(len(self.epochs[0]))
        return int(self._tokens[first].sum()) / self._ends[0], int(self._target_tokens[first].sum()) / self._ends[0]

    def by_source(self) -> dict[str, dict[str, float]]:
        """Describe the first epoch by source: samples and tokens drawn, and how often each of the source's samples comes.

        Empty without a mixture.
        """
        if self.mixture is None:
            return {}
        drawn = np.bincount(self.mixture.epoch(0), minlength=len(self._row_tokens[0]))
        return {
            name: {"samples": quota, "tokens": int(drawn[own] @ self._row_tokens[0][own]), "passes": quota / len(own)}
            for name, own, quota in zip(self.mixture.names, self.mixture.own, self.mixture.quotas, strict=True)
        }

    @property
    def draws(self) -> np.ndarray | None:
        """How often an epoch draws each row on average, [rows]; None without a mixture, which draws each once."""
        if self.mixture is None:
            return None
        draws = np.zeros(len(self._row_tokens[0]))
        for own, quota in zip(self.mixture.own, self.mixture.quotas, strict=True):
            draws[own] = quota / len(own)
        return draws

    @cached_property
    def digest(self) -> str:
        """Hash of all that determines the rows of each step; the same at every world size. Part of the data cursor."""
        settings = affecting(self._config, "batches")
        rows = hashlib.sha256()
        for numbers in (*self._row_tokens, *(self.mixture.own if self.mixture else ())):
            rows.update(numbers.astype("<i8").tobytes())
        return digest([settings, self._seed, rows.hexdigest()])

    def _micro_batch_count(self, sequences: int) -> int:
        """Number of micro-batches of a step over all ranks: the fewest possible, equally many for every rank."""
        return -(-sequences // (self._config.micro_batch_size * self._world_size)) * self._world_size

    def _padded_tokens(self, steps: np.ndarray) -> int:
        """Number of tokens with padding of steps of equal size, [steps, sequences], split as in `__getitem__`."""
        lengths = -np.sort(-self._tokens[steps], axis=1)
        parts = np.array_split(lengths, self._micro_batch_count(lengths.shape[1]), axis=1)
        return sum(int(part[:, 0].sum()) * part.shape[1] for part in parts if part.size)


def validation_steps(store_lengths: np.ndarray, target_tokens: np.ndarray, config: TrainConfig, world_size: int) -> StepPlan:
    """Plan a validation pass: one step with every row once, whatever the mixture; no step without rows.

    Packed like training. Uses the fewest possible micro-batches, which are empty for a rank without sequences left.
    """
    once: dict[str, Any] = {"epochs": 1, "max_steps": None, "mixture": {}, "global_batch_size": max(1, len(store_lengths))}
    return StepPlan(store_lengths, target_tokens, config.model_copy(update=once), seed=0, world_size=world_size)


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(count)


@dataclass(frozen=True)
class Batch:
    """A micro-batch, padded on the right: tensors of [rows, length]; `labels` are shifted by the model, not here.

    `input_ids`, `position_ids`, `labels`, `uncertainty_bin` are int64, `alpha` and `weight` float32. `weight` is how much a
    token counts in the loss; None = all alike. `labels` is IGNORE_INDEX and `alpha`
    0 at tokens not trained on; `uncertainty_bin` is NO_BIN where unknown. Positions restart at each sample.

    `attention_mask` is int64, 0 at padding; None for packed sequences. A transformers decoder called with
    `attention_mask=None`, these `position_ids`, `use_cache=False` and no `past_key_values` attends only within each sample
    (transformers.masking_utils.find_packed_sequence_indices), row by row, with the attention implementations eager, sdpa and
    flex. Flash attention uses positions only if the batch has one row: flatten both tensors to [1, rows * length] for it.
    Padding at the end of a pack restarts at position 0, so it is separate samples.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    attention_mask: torch.Tensor | None
    labels: torch.Tensor
    alpha: torch.Tensor
    uncertainty_bin: torch.Tensor
    weight: torch.Tensor | None = None

    def to(self, device: torch.device | str) -> Batch:
        """Move every tensor from host memory to a device, without waiting for it where the memory is pinned."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> Batch:
        """Copy every tensor to pinned memory, which a GPU reads by itself."""
        return self._each(torch.Tensor.pin_memory)

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        tensors = (getattr(self, field.name) for field in fields(self))
        return Batch(*(None if tensor is None else change(tensor) for tensor in tensors))


def collate(sequences: Sequence[Sequence[Sample]], *, length: int | None = None, packed: bool = False) -> Batch:
    """Collate sequences of samples, padded to `length` or to the longest of them.

    Without sequences, returns one row without targets, so that a rank with none left runs the same collectives as the others.
    A sample's first token is never a label, as no earlier token of the sample predicts it. Raises ValueError when a sequence
    is longer than `length`, or has several samples and is not `packed`.
    """
    if not packed and any(len(sequence) > 1 for sequence in sequences):
        raise ValueError("several samples in one sequence attend to each other unless packed=True")
    # At least two tokens: with one there is no position to predict, a special case in the loss.
    longest = max([2, *(sum(len(sample.input_ids) for sample in sequence) for sequence in sequences)])
    length = longest if length is None else length
    if longest > length:
        raise ValueError(f"a sequence of {longest} tokens does not fit into {length}")
    longest_sample = max((len(sample.input_ids) for sequence in sequences for sample in sequence), default=1)
    shape = (max(1, len(sequences)), length)
    input_ids, attention_mask = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    position_ids = np.tile(np.arange(length), (shape[0], 1))
    labels = np.full(shape, IGNORE_INDEX, dtype=np.int64)
    alpha = np.zeros(shape, dtype=np.float32)
    uncertainty_bin = np.full(shape, NO_BIN, dtype=np.int64)
    weight = np.ones(shape, dtype=np.float32)
    attention_mask[len(sequences) :, 0] = 1
    for row, sequence in enumerate(sequences):
        end = 0
        for sample in sequence:
            start, end = end, end + len(sample.input_ids)
            input_ids[row, start:end] = sample.input_ids
            attention_mask[row, start:end] = 1
            position_ids[row, start:] -= position_ids[row, start]
            labels[row, start + 1 : end] = sample.labels[1:]
            alpha[row, start:end] = sample.alpha
            uncertainty_bin[row, start:end] = sample.uncertainty_bin
            weight[row, start:end] = sample.weight
        if packed:
            # Padding has no position that no sample has: a model with a table of positions may have no entry for it.
            position_ids[row, end:] = np.arange(length - end) % longest_sample
    arrays = (input_ids, position_ids, attention_mask, labels, alpha, uncertainty_bin)
    tensors = [torch.from_numpy(array) for array in arrays]
    weights = torch.from_numpy(weight) if (weight != 1).any() else None
    mask = None if packed else tensors[2]
    return Batch(tensors[0], tensors[1], mask, tensors[3], tensors[4], tensors[5], weights)


class Prefetch:
    """Gives a rank's micro-batches by number of step; steps that are taken in order are ready before they are asked for."""

    def __init__(self, collate: Callable[[int], list[Batch]], steps: int, *, pin: bool) -> None:
        """Take what collates a step of `steps`, from 0. pin: put batches into pinned memory."""
        self._collate, self._steps, self._pin = collate, steps, pin
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._next: tuple[int, Future[list[Batch]]] | None = None

    def take(self, step: int) -> list[Batch]:
        """Return the micro-batches of a step, and begin with those of the next one. Raises what collating them raised."""
        waiting, self._next = self._next, None
        ready = waiting[1] if waiting and waiting[0] == step else self._thread.submit(self._make, step)
        if step + 1 < self._steps:
            self._next = step + 1, self._thread.submit(self._make, step + 1)
        return ready.result()

    def _make(self, step: int) -> list[Batch]:
        batches = self._collate(step)
        return [batch.pinned() for batch in batches] if self._pin else batches
