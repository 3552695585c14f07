"""The step plan: every row once per epoch, equal work for all ranks, alpha that cannot slip."""

from __future__ import annotations

from collections import Counter

import torch
from hypothesis import given
from hypothesis import strategies as st

from ual_ray.rendering import IGNORE_INDEX
from ual_ray.train.batches import Sample, collate, padding_share, plan_steps

LENGTHS = st.lists(st.integers(2, 50), min_size=1, max_size=60)


@given(LENGTHS, st.integers(1, 3), st.integers(1, 20), st.integers(1, 5), st.integers(1, 4), st.integers(0, 9))
def test_every_row_comes_once_per_epoch_and_ranks_have_equal_numbers_of_micro_batches(
    lengths: list[int], epochs: int, global_batch: int, micro_batch: int, world_size: int, seed: int
) -> None:
    steps = plan_steps(
        lengths,
        epochs=epochs,
        global_batch_size=global_batch,
        micro_batch_size=micro_batch,
        world_size=world_size,
        seed=seed,
    )
    for epoch in range(epochs):
        seen = Counter(row for step in steps if step.epoch == epoch for row in step.rows)
        assert seen == Counter(range(len(lengths)))
    for step in steps:
        assert len(step.rows) <= global_batch
        assert len(step.micro_batches) == world_size
        assert len({len(rank) for rank in step.micro_batches}) == 1
        assert all(len(batch) <= micro_batch for rank in step.micro_batches for batch in rank)


@given(LENGTHS, st.integers(0, 9))
def test_a_step_holds_the_same_rows_at_any_world_size_and_micro_batch(lengths: list[int], seed: int) -> None:
    layouts = [
        plan_steps(lengths, epochs=2, global_batch_size=8, micro_batch_size=micro, world_size=world, seed=seed)
        for world, micro in ((1, 8), (1, 1), (2, 4), (4, 3))
    ]
    rows = [[sorted(step.rows) for step in layout] for layout in layouts]
    assert all(other == rows[0] for other in rows)


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    def order(seed: int) -> list[list[int]]:
        steps = plan_steps([5] * 64, epochs=2, global_batch_size=8, micro_batch_size=8, world_size=1, seed=seed)
        return [sorted(step.rows) for step in steps]

    assert order(1) == order(1)
    assert order(1) != order(2)
    assert order(1)[:8] != order(1)[8:]


def test_max_steps_cuts_the_plan() -> None:
    plan = plan_steps([5] * 64, epochs=9, global_batch_size=8, micro_batch_size=8, world_size=1, seed=0, max_steps=3)
    assert len(plan) == 3


def test_rows_of_like_length_share_a_micro_batch() -> None:
    lengths = [10, 100] * 8
    steps = plan_steps(lengths, epochs=1, global_batch_size=16, micro_batch_size=4, world_size=2, seed=0)
    assert padding_share(steps, lengths) == 0.0


def test_padding_share_by_hand() -> None:
    (step,) = plan_steps([1, 3], epochs=1, global_batch_size=2, micro_batch_size=2, world_size=1, seed=0)
    assert padding_share([step], [1, 3]) == 1 - 4 / 6


def test_collate_keeps_alpha_with_its_row_and_masks_padding() -> None:
    batch = collate([Sample("a", [5, 6, 7], [-100, 6, 7], 0.3), Sample("b", [8], [-100], 0.1)])
    assert batch.input_ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.labels.tolist() == [[-100, 6, 7], [-100, -100, -100]]
    torch.testing.assert_close(batch.alpha, torch.tensor([[0.3, 0.3, 0.3], [0.1, 0.0, 0.0]]))


def test_no_rows_make_a_batch_without_targets() -> None:
    batch = collate([])
    assert (batch.labels == IGNORE_INDEX).all()
    assert batch.attention_mask.sum() == 1


def test_the_first_token_is_no_target() -> None:
    assert Sample("a", [5, 6, 7], [5, 6, -100], 0.0).target_tokens == 1
