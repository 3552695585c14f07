"""What is due when: pure, and the whole of what a resumed training has to know."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ual_ray.config import TrainConfig
from ual_ray.train.progress import Progress

START = Progress("plan", 0)


def after(step: int, **fields: float) -> Progress:
    return Progress("plan", 0, step=step, **fields)  # type: ignore[arg-type]


def test_a_step_is_counted() -> None:
    assert START.stepped(4, 100).stepped(3, 50) == Progress("plan", 0, step=2, samples=7, tokens=150)


def test_the_lowest_nll_is_the_best_and_the_first_of_equals() -> None:
    progress = START
    for step, nll in enumerate([3.0, 2.0, 2.0, 2.5, math.nan, math.inf], start=1):
        progress = progress.stepped(1, 1).validated(nll)
        assert progress.step == step
    assert (progress.best_loss, progress.best_step, progress.validations_since_best) == (2.0, 2, 4)


def test_a_first_nll_that_is_no_number_is_not_the_best() -> None:
    assert START.stepped(1, 1).validated(math.nan).best_step is None


@given(st.lists(st.floats(allow_nan=True), min_size=1, max_size=30))
def test_the_best_is_the_minimum_of_the_finite(values: list[float]) -> None:
    progress = START
    for value in values:
        progress = progress.stepped(1, 1).validated(value)
    finite = [value for value in values if math.isfinite(value)]
    assert progress.best_loss == (min(finite) if finite else None)
    assert progress.validations_since_best < len(values) or not finite


@pytest.mark.parametrize(("patience", "since", "over"), [(None, 99, False), (2, 1, False), (2, 2, True), (1, 1, True)])
def test_early_stopping(patience: int | None, since: int, over: bool) -> None:
    config = TrainConfig(early_stopping=patience)
    assert after(5, best_loss=1.0, best_step=1, validations_since_best=since).over(config, 10) is over


def test_it_is_over_after_the_last_step() -> None:
    assert not after(9).over(TrainConfig(), 10)
    assert after(10).over(TrainConfig(), 10)
    assert START.over(TrainConfig(), 0)


def test_validation_comes_every_so_many_steps_or_every_epoch_and_at_the_end() -> None:
    every, by_epoch = TrainConfig(validate_every=3), TrainConfig()
    assert [step for step in range(1, 11) if after(step).validation_due(every, 10, ends_epoch=step % 4 == 0)] == [3, 6, 9, 10]
    assert [step for step in range(1, 11) if after(step).validation_due(by_epoch, 10, ends_epoch=step % 4 == 0)] == [4, 8, 10]


def test_checkpoints_come_every_so_many_steps_at_the_end_and_at_the_best() -> None:
    config = TrainConfig(checkpoint_every=4)
    assert [step for step in range(1, 11) if after(step, best_step=3).checkpoint_due(config, 10)] == [3, 4, 8, 10]
    at_the_end = TrainConfig(checkpoint_every=None)
    assert [step for step in range(1, 11) if after(step).checkpoint_due(at_the_end, 10)] == [10]
