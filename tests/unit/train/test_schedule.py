"""The learning rate: up, then down as its schedule has it, never above its peak, never at nothing."""

from __future__ import annotations

import typing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ual_ray.config import TrainConfig
from ual_ray.train.optimizer_step import DECAYS, learning_rate_share


def shares(total: int, **settings: Any) -> list[float]:
    config = TrainConfig(**settings)
    return [learning_rate_share(step, total, config) for step in range(total)]


# Ten steps, of which two are warm-up: 1/3, 2/3, and the peak at the third; the floor is a tenth of it.
BY_HAND = {
    "constant": [1.0] * 8,
    # One eighth of the way down per step: 1 - 0.9 n / 8.
    "linear": [1.0, 0.8875, 0.775, 0.6625, 0.55, 0.4375, 0.325, 0.2125],
    # 0.1 + 0.45 (1 + cos(pi n / 8)), with cos(pi / 8) = 0.92388 and cos(pi / 4) = 0.70711.
    "cosine": [1.0, 0.965746, 0.868198, 0.722208, 0.55, 0.377792, 0.231802, 0.134254],
    # The last four of ten steps decay, a quarter of the way each.
    "wsd": [1.0, 1.0, 1.0, 1.0, 1.0, 0.775, 0.55, 0.325],
}


@pytest.mark.parametrize("schedule", DECAYS)
def test_by_hand(schedule: str) -> None:
    found = shares(10, schedule=schedule, warmup_share=0.2, min_learning_rate_share=0.1, decay_share=0.4)
    assert found == pytest.approx([1 / 3, 2 / 3, *BY_HAND[schedule]], abs=1e-6)


def test_every_schedule_that_can_be_set_is_there() -> None:
    assert set(typing.get_args(TrainConfig.model_fields["schedule"].annotation)) == set(DECAYS)


@given(st.integers(1, 500), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.sampled_from(sorted(DECAYS)))
def test_it_stays_within_0_and_1_and_falls_after_the_warm_up(
    total: int, warmup: float, floor: float, decay: float, schedule: str
) -> None:
    found = shares(total, schedule=schedule, warmup_share=warmup, min_learning_rate_share=floor, decay_share=decay)
    assert all(0 <= share <= 1 for share in found)
    after = found[round(warmup * total) :]
    assert after == sorted(after, reverse=True)
    assert all(share >= floor - 1e-9 for share in after)


def test_training_never_starts_at_nothing() -> None:
    assert shares(100, warmup_share=0.5, min_learning_rate_share=0.0)[0] > 0
    assert shares(1, warmup_share=0.0, min_learning_rate_share=0.0) == [1.0]


def test_a_decay_longer_than_what_the_warm_up_leaves_starts_behind_it() -> None:
    found = shares(10, schedule="wsd", warmup_share=0.5, decay_share=1.0, min_learning_rate_share=0.0)
    assert found[5:] == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])
