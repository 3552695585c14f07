"""Batches made ahead are those made when they are needed, in any order, and their errors come where they are taken."""

from __future__ import annotations

import threading
from dataclasses import fields

import numpy as np
import pytest
import torch

from ual_ray.config import TrainConfig
from ual_ray.train.batches import Batch, Prefetch, Sample, StepPlan, collate

RNG = np.random.default_rng(0)
SAMPLES = [Sample(str(n), ids := RNG.integers(4, 99, 3 + n % 7).astype(np.int32), ids, 0.1 * (n % 3)) for n in range(23)]
LENGTHS = np.array([len(sample.input_ids) for sample in SAMPLES])
PLAN = StepPlan(LENGTHS, LENGTHS, TrainConfig(global_batch_size=4, micro_batch_size=2, epochs=2), 0, 2)


def make(step: int) -> list[Batch]:
    return [collate([[SAMPLES[number]] for number in batch]) for batch in PLAN[step].micro_batches[1]]


def equal(one: list[Batch], two: list[Batch]) -> bool:
    def same(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
        return a is b if a is None or b is None else torch.equal(a, b)

    pairs = zip(one, two, strict=True)
    return all(same(getattr(a, field.name), getattr(b, field.name)) for a, b in pairs for field in fields(Batch))


@pytest.mark.parametrize("order", [range(12), range(5, 12), (0, 1, 7, 8, 3, 3, 11, 0)])
def test_they_are_the_batches_of_their_step(order: range | tuple[int, ...]) -> None:
    assert len(PLAN) == 12
    ahead = Prefetch(make, len(PLAN), pin=False)
    for step in order:
        assert equal(ahead.take(step), make(step))


def test_the_next_step_is_made_while_the_current_one_trains() -> None:
    begun, made = [threading.Event() for _ in range(3)], list[str]()

    def slowly(step: int) -> list[Batch]:
        begun[step].set()
        made.append(threading.current_thread().name)
        return []

    ahead = Prefetch(slowly, 3, pin=False)
    ahead.take(0)
    assert begun[1].wait(10), "nobody has asked for it yet"
    assert not begun[2].is_set()
    ahead.take(1)
    ahead.take(2)
    assert len(made) == 3 and all(name.startswith("batches") for name in made)


def test_an_error_comes_with_the_step_that_has_it() -> None:
    def fail(step: int) -> list[Batch]:
        if step == 1:
            raise OSError("the file is gone")
        return []

    ahead = Prefetch(fail, 3, pin=False)
    assert ahead.take(0) == []
    with pytest.raises(OSError, match="the file is gone"):
        ahead.take(1)


def test_what_a_gpu_reads_is_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[torch.Tensor] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor)
    assert equal(Prefetch(make, len(PLAN), pin=True).take(11), make(11))
    assert len(pinned) == sum(getattr(batch, field.name) is not None for batch in make(11) for field in fields(Batch))
