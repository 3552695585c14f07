"""The learning rate: up, then down, never above its peak, never at nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ual_ray.train.schedule import learning_rate_share


def test_by_hand() -> None:
    shares = [learning_rate_share(step, 10, warmup_share=0.2, floor=0.1) for step in range(10)]
    assert shares[:3] == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert shares[6] == pytest.approx(0.55), "half-way down the cosine"
    assert shares[2:] == sorted(shares[2:], reverse=True)


@given(st.integers(1, 500), st.floats(0, 1), st.floats(0, 1))
def test_it_stays_within_0_and_1(total: int, warmup: float, floor: float) -> None:
    assert all(0 <= learning_rate_share(step, total, warmup, floor) <= 1 for step in range(total))


def test_training_never_starts_at_nothing() -> None:
    assert learning_rate_share(0, 100, warmup_share=0.5, floor=0.0) > 0
    assert learning_rate_share(0, 1, warmup_share=0.0, floor=0.0) == 1.0
