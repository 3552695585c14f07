"""The step plan and its batches: every row once per epoch, equal work for ranks, packed samples that do not see each other."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ual_ray.config import TrainConfig
from ual_ray.models.chat import IGNORE_INDEX
from ual_ray.train.attention import sample_lengths
from ual_ray.train.batches import Batch, StepPlan, collate, validation_steps
from ual_ray.train.model import SmoothedCausalLM
from ual_ray.train.token_store import NO_BIN, Sample

LENGTHS = st.lists(st.integers(2, 50), min_size=1, max_size=60)
PACKING = st.booleans()


def plan(lengths: list[int], *, seed: int = 0, world_size: int = 1, **settings: Any) -> StepPlan:
    array = np.array(lengths, dtype=np.int32)
    return StepPlan(array, array - 1, TrainConfig(max_length=50, **settings), seed, world_size)


def sample(name: str, ids: list[int], labels: list[int], alpha: float, uncertainty_bin: int = NO_BIN) -> Sample:
    return Sample(name, np.array(ids, dtype=np.int32), np.array(labels, dtype=np.int32), alpha, uncertainty_bin)


@pytest.mark.slow
@given(LENGTHS, st.integers(1, 3), st.integers(1, 20), st.integers(1, 5), st.integers(1, 4), st.integers(0, 9), PACKING)
def test_every_row_comes_once_per_epoch_and_ranks_have_equal_numbers_of_micro_batches(
    lengths: list[int], epochs: int, global_batch: int, micro_batch: int, world_size: int, seed: int, packing: bool
) -> None:
    laid_out = plan(
        lengths,
        epochs=epochs,
        global_batch_size=global_batch,
        micro_batch_size=micro_batch,
        world_size=world_size,
        seed=seed,
        packing=packing,
    )
    steps = list(laid_out)
    assert len(steps) == len(laid_out)
    for epoch in range(epochs):
        seen = Counter(row for step in steps if step.epoch == epoch for row in laid_out.rows(step))
        assert seen == Counter(range(len(lengths)))
    for step in steps:
        assert 0 < len(step.sequences) <= global_batch
        assert len(step.micro_batches) == world_size
        assert len({len(rank) for rank in step.micro_batches}) == 1
        assert all(len(batch) <= micro_batch for rank in step.micro_batches for batch in rank)
        assert laid_out.tokens(step) == sum(lengths[row] for row in laid_out.rows(step))
        assert laid_out.target_tokens(step) == sum(lengths[row] - 1 for row in laid_out.rows(step))


@pytest.mark.slow
@given(LENGTHS, st.integers(0, 9), PACKING)
def test_a_step_holds_the_same_sequences_at_any_world_size_and_micro_batch(
    lengths: list[int], seed: int, packing: bool
) -> None:
    layouts = [
        plan(lengths, epochs=2, global_batch_size=8, micro_batch_size=micro, world_size=world, seed=seed, packing=packing)
        for world, micro in ((1, 8), (1, 1), (2, 4), (4, 3))
    ]
    rows = [[sorted(layout.rows(step)) for step in layout] for layout in layouts]
    assert all(other == rows[0] for other in rows)
    assert len({layout.digest for layout in layouts}) == 1


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    def order(seed: int) -> list[list[int]]:
        return [sorted(step.sequences) for step in plan([5] * 64, epochs=2, global_batch_size=8, seed=seed)]

    assert order(1) == order(1)
    assert order(1) != order(2)
    assert order(1)[:8] != order(1)[8:]


def test_the_digest_changes_with_what_decides_the_rows_of_a_step() -> None:
    lengths = [5] * 30 + [7]
    digests = [
        plan(lengths).digest,
        plan(lengths, seed=1).digest,
        plan(lengths[::-1]).digest,
        *(plan(lengths, **change).digest for change in ({"epochs": 2}, {"global_batch_size": 4}, {"packing": True})),
    ]
    assert len(set(digests)) == len(digests)
    assert plan(lengths, learning_rate=1.0).digest == digests[0]


def test_max_steps_cuts_the_plan() -> None:
    laid_out = plan([5] * 64, epochs=9, global_batch_size=8, max_steps=3)
    assert len(laid_out) == len(list(laid_out)) == 3
    with pytest.raises(IndexError, match="step 3 of 3"):
        laid_out[3]
    assert len(plan([5] * 8, global_batch_size=8, max_steps=3)) == 1


def test_no_rows_make_no_steps() -> None:
    for packing in (False, True):
        empty = plan([], packing=packing)
        assert list(empty) == list(empty.sequences) == []
        assert empty.padding_share == 0.0


def test_the_longest_come_first_and_rows_of_like_length_share_a_micro_batch() -> None:
    lengths = [10, 50] * 8
    laid_out = plan(lengths, global_batch_size=16, micro_batch_size=4, world_size=2)
    assert laid_out.padding_share == 0.0
    for first, second in laid_out[0].micro_batches:
        assert {lengths[row] for row in first} == {50} and {lengths[row] for row in second} == {10}


@given(LENGTHS, st.integers(1, 20), st.integers(1, 5), st.integers(1, 3), PACKING)
def test_padding_share_is_that_of_the_batches(
    lengths: list[int], global_batch: int, micro_batch: int, world_size: int, packing: bool
) -> None:
    laid_out = plan(
        lengths, global_batch_size=global_batch, micro_batch_size=micro_batch, world_size=world_size, packing=packing
    )
    padded = 0
    for batch in (batch for step in laid_out for rank in step.micro_batches for batch in rank if batch):
        padded += len(batch) * max(sum(lengths[row] for row in laid_out.sequences[sequence]) for sequence in batch)
    assert laid_out.padding_share == pytest.approx(1 - sum(lengths) / padded)


def test_packing_fills_sequences_to_max_length() -> None:
    laid_out = plan([30, 20, 10, 40], packing=True)
    assert [*laid_out.sequences] == [(3, 2), (0, 1)]
    assert laid_out.padding_share == 0.0


@given(LENGTHS, st.integers(1, 5), st.integers(1, 4), PACKING)
def test_a_validation_pass_holds_every_row_once_in_as_few_rounds_as_can_be(
    lengths: list[int], micro_batch: int, world_size: int, packing: bool
) -> None:
    array = np.array(lengths, dtype=np.int32)
    config = TrainConfig(max_length=50, micro_batch_size=micro_batch, max_steps=1, epochs=3, packing=packing)
    passes = validation_steps(array, array - 1, config, world_size)
    (step,) = passes
    assert sorted(passes.rows(step)) == list(range(len(lengths)))
    rounds = -(-len(passes.sequences) // (micro_batch * world_size))
    assert all(len(rank) == rounds for rank in step.micro_batches)
    assert list(validation_steps(array[:0], array[:0], config, world_size)) == []


def test_collate_keeps_alpha_and_bin_with_their_row_and_masks_padding() -> None:
    batch = collate([[sample("a", [5, 6, 7], [-100, 6, 7], 0.3, 2)], [sample("b", [8], [-100], 0.1)]])
    assert batch.input_ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch.attention_mask is not None and batch.attention_mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.labels.tolist() == [[-100, 6, 7], [-100, -100, -100]]
    assert batch.position_ids.tolist() == [[0, 1, 2]] * 2
    assert batch.uncertainty_bin.tolist() == [[2, 2, 2], [-1, -1, -1]]
    torch.testing.assert_close(batch.alpha, torch.tensor([[0.3, 0.3, 0.3], [0.1, 0.0, 0.0]]))


def test_collate_lays_packed_samples_side_by_side() -> None:
    first, second = sample("a", [5, 6], [5, 6], 0.3, 0), sample("b", [7, 8, 9], [-100, 8, 9], 0.1)
    batch = collate([[first, second], [second]], length=7, packed=True)
    assert batch.attention_mask is None
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9, 0, 0], [7, 8, 9, 0, 0, 0, 0]]
    assert batch.position_ids.tolist() == [[0, 1, 0, 1, 2, 0, 1], [0, 1, 2, 0, 1, 2, 0]]
    assert batch.labels.tolist() == [[-100, 6, -100, 8, 9, -100, -100], [-100, 8, 9, -100, -100, -100, -100]]
    assert batch.uncertainty_bin.tolist() == [[0, 0, -1, -1, -1, -1, -1], [-1] * 7]
    torch.testing.assert_close(batch.alpha[0], torch.tensor([0.3, 0.3, 0.1, 0.1, 0.1, 0.0, 0.0]))


def test_a_batch_has_the_types_the_model_takes_and_moves_whole() -> None:
    batch = collate([[sample("a", [5, 6, 7], [-100, 6, 7], 0.3, 2)]])
    assert batch.alpha.dtype == torch.float32
    for tensor in (batch.input_ids, batch.position_ids, batch.attention_mask, batch.labels, batch.uncertainty_bin):
        assert tensor is not None and tensor.dtype == torch.int64 and tensor.shape == (1, 3)
    moved = batch.to("meta")
    assert isinstance(moved, Batch) and moved.labels.device.type == "meta"
    assert collate([], packed=True).to("meta").attention_mask is None


@pytest.mark.parametrize("packed", [False, True])
def test_no_sequences_make_a_batch_without_targets(packed: bool) -> None:
    batch = collate([], packed=packed)
    assert batch.input_ids.shape[0] == 1
    assert (batch.labels == IGNORE_INDEX).all()
    assert batch.attention_mask is None or batch.attention_mask.sum() == 1


def test_collate_refuses_what_would_be_silently_wrong() -> None:
    one = sample("a", [5, 6, 7], [5, 6, 7], 0.0)
    with pytest.raises(ValueError, match="packed=True"):
        collate([[one, one]])
    with pytest.raises(ValueError, match="6 tokens does not fit into 5"):
        collate([[one, one]], length=5, packed=True)


SHAPE = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "pad_token_id": 0}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64, "head_dim": 8}
# A window shorter than the samples, on every other layer or on all: it must be cut at a sample's start as well.
MODELS = {
    "llama": {},
    "mistral": {"sliding_window": 4},
    "gemma2": {"sliding_window": 4, "query_pre_attn_scalar": 8},
    "qwen2": {},
}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", MODELS)
def test_packed_and_unpacked_losses_and_gradients_are_equal(kind: str, attention: str) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **SHAPE, **HEADS, **MODELS[kind], attn_implementation=attention)
    model = SmoothedCausalLM(AutoModelForCausalLM.from_config(config).eval(), uncertainty_bins=2)
    ids = np.random.default_rng(0).integers(1, 40, size=(6, 12))
    lengths, alphas = [12, 7, 1, 9, 5, 8], [0.0, 0.1, 0.2, 0.3, 0.05, 0.4]
    # The first token is a label in some: unpacked nothing predicts it, packed the sample before must not.
    samples = [
        sample(str(n), ids[n, :length].tolist(), ids[n, :length].tolist(), alpha, n % 3 - 1)
        for n, (length, alpha) in enumerate(zip(lengths, alphas, strict=True))
    ]

    def measure(batch: Batch) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        model.zero_grad()
        sums = model(batch)
        sums.loss.backward()
        return sums.loss.detach(), sums.by_bin, [p.grad.clone() for p in model.parameters() if p.grad is not None]

    alone = measure(collate([[one] for one in samples]))
    packed = measure(collate([samples[:3], samples[3:]], length=25, packed=True))
    torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-5)
    assert alone[1][:, -1].sum() == sum(length - 1 for length in lengths)
    seen = measure(Batch(**{**vars(collate([samples[:3], samples[3:]], packed=True)), "attention_mask": torch.ones(2, 22)}))
    assert not torch.isclose(seen[0], alone[0], rtol=1e-4)  # the test can tell: samples that see each other differ


def test_no_position_is_beyond_those_of_the_samples() -> None:
    # A model with a table of positions has no entry for others.
    long, short = (Sample("a", np.arange(size), np.arange(size), 0.0) for size in (5, 2))
    batch = collate([[long, long, long], [short], []], packed=True)
    assert int(batch.position_ids.max()) == 4
    assert batch.position_ids[1].tolist() == [0, 1, *range(5), *range(5), 0, 1, 2]
    assert sum(sample_lengths(batch.position_ids)) == 45
