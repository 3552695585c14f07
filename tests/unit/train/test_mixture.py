"""The mixture: each source's share of an epoch, its samples equally often, and the same draws whoever asks for them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ual_ray import columns as col
from ual_ray.config import TrainConfig
from ual_ray.config.load import load
from ual_ray.errors import UserError
from ual_ray.train.batches import StepPlan, validation_steps
from ual_ray.train.mixture import Mixture, quotas
from ual_ray.train.token_store import TokenStore

SIZES = st.lists(st.integers(1, 12), min_size=1, max_size=4)


def sources(*sizes: int) -> pa.Array:
    """Name the sources of rows a, b, ..., mixed among each other."""
    names = [chr(ord("a") + code) for code, size in enumerate(sizes) for _ in range(size)]
    return pa.array(np.random.default_rng(0).permutation(names).tolist(), pa.string())


def plan(own: pa.Array, weights: dict[str, float], seed: int = 0, world_size: int = 1, **settings: Any) -> StepPlan:
    lengths = np.random.default_rng(1).integers(2, 30, len(own)).astype(np.int32)
    settings = {"max_length": 50, "global_batch_size": 4, "micro_batch_size": 2, **settings}
    return StepPlan(lengths, lengths - 1, TrainConfig(mixture=weights, **settings), seed, world_size, own)


def drawn(laid_out: StepPlan) -> list[Counter[int]]:
    """Count how often every row comes, by epoch."""
    steps = list(laid_out)
    return [
        Counter(row for step in steps if step.epoch == epoch for row in laid_out.rows(step))
        for epoch in range(steps[-1].epoch + 1)
    ]


@pytest.mark.slow
@given(SIZES, st.data(), st.booleans(), st.integers(0, 5), st.integers(1, 3))
def test_an_epoch_draws_each_source_by_its_weight_and_its_rows_equally_often(
    sizes: list[int], data: st.DataObject, packing: bool, seed: int, world_size: int
) -> None:
    own = sources(*sizes)
    names = sorted(set(own.to_pylist()))
    weights = {name: data.draw(st.floats(1, 4)) for name in names}
    wanted = dict(zip(names, quotas([weights[name] for name in names], len(own)), strict=True))
    if not all(wanted.values()):
        with pytest.raises(UserError, match="a weight is too small"):
            plan(own, weights)
        return
    laid_out = plan(own, weights, seed, world_size, packing=packing, epochs=3)
    total: Counter[int] = Counter()
    for epoch in drawn(laid_out):
        assert Counter(own[row].as_py() for row in epoch.elements()) == wanted
        total += epoch
        for name in names:
            counts = [total[row] for row in range(len(own)) if own[row].as_py() == name]
            assert max(counts) - min(counts) <= 1, "also over several epochs"


def test_the_draws_follow_from_seed_and_epoch_alone() -> None:
    own, weights = sources(6, 30), {"a": 1.0, "b": 1.0}

    def steps(seed: int = 0, world: int = 1, epochs: int = 2, **settings: Any) -> list[list[int]]:
        laid_out = plan(own, weights, seed, world, epochs=epochs, packing=True, **settings)
        return [sorted(laid_out.rows(step)) for step in laid_out]

    whole = steps()
    assert whole == steps() == steps(world=3) == steps(micro_batch_size=4)
    assert whole != steps(seed=1)
    first = plan(own, weights, epochs=2)
    # A run that is resumed asks for a step by its number, whatever came before.
    assert first[11] == plan(own, weights, epochs=2)[11] and first[3] != first[11]
    assert steps(epochs=1) == whole[: len(steps(epochs=1))]
    assert steps(epochs=9, max_steps=5) == whole[:5]


def test_epochs_end_where_their_last_step_does() -> None:
    laid_out = plan(sources(6, 30), {"a": 1.0, "b": 2.0}, epochs=3, packing=True)
    steps = list(laid_out)
    ends = [number for number in range(1, len(steps) + 1) if laid_out.ends_epoch(number)]
    assert ends == [
        number for number in range(1, len(steps) + 1) if number == len(steps) or steps[number].epoch > steps[number - 1].epoch
    ]
    assert len(ends) == 3


def test_the_digest_tells_mixtures_and_sources_apart() -> None:
    own = sources(6, 30)
    plans = [
        plan(own, {"a": 1.0, "b": 1.0}),
        plan(own, {"a": 1.0, "b": 2.0}),
        plan(own[::-1], {"a": 1.0, "b": 1.0}),
        plan(own, {}),
    ]
    assert len({one.digest for one in plans}) == 4
    assert plan(own, {}).digest == plan(sources(1, 35), {}).digest, "without a mixture, sources do not count"


def test_what_is_drawn_is_told_by_source() -> None:
    laid_out = plan(sources(6, 30), {"a": 1.0, "b": 1.0}, epochs=2)
    found = laid_out.by_source()
    assert {name: (one["samples"], one["passes"]) for name, one in found.items()} == {"a": (18, 3.0), "b": (18, 0.6)}
    first = [step for step in laid_out if step.epoch == 0]
    assert sum(one["tokens"] for one in found.values()) == sum(map(laid_out.tokens, first))
    assert laid_out.tokens_per_step[0] == pytest.approx(sum(map(laid_out.tokens, first)) / len(first))
    assert plan(sources(6, 30), {}).by_source() == {}


def test_the_mean_alpha_is_over_the_tokens_that_are_drawn() -> None:
    """Of three samples an epoch, one is of a, which each of its two rows gives half of the time, and two are of b."""
    names = (col.ID, col.SPLIT, col.ALPHA, col.TARGET_TOKENS, col.INPUT_IDS, col.LABELS)
    rows = [
        dict(zip(names, (name, col.TRAIN, alpha, tokens, [0] * (tokens + 1), [0] * (tokens + 1)), strict=True))
        for name, alpha, tokens in (("0", 0.1, 2), ("1", 0.4, 4), ("2", 0.2, 4))
    ]
    own = pa.table({col.ID: ["0", "1", "2"], col.SOURCE: ["a", "b", "a"]})
    store = TokenStore(pa.Table.from_pylist(rows, col.TOKENS), col.TRAIN, sources=own)
    plans = [
        StepPlan(store.lengths, store.target_tokens, TrainConfig(mixture=weights), 0, 1, store.sources)
        for weights in ({}, {"a": 1.0, "b": 2.0})
    ]
    assert plans[0].draws is None and store.mean_alpha(plans[0].draws) == pytest.approx((0.2 + 1.6 + 0.8) / 10)
    assert plans[1].draws is not None and plans[1].draws.tolist() == [0.5, 2, 0.5]
    assert store.mean_alpha(plans[1].draws) == pytest.approx((0.1 + 3.2 + 0.4) / (1 + 8 + 2))


def test_validation_takes_every_row_once() -> None:
    lengths = np.full(12, 5, dtype=np.int32)
    (step,) = laid_out = validation_steps(lengths, lengths - 1, TrainConfig(mixture={"a": 1.0}), 1)
    assert sorted(laid_out.rows(step)) == list(range(12))


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"a": 1.0}, "no weight for 'b'"),
        ({"a": 1.0, "b": 1.0, "c": 1.0}, "no row to train on is of 'c'"),
        ({"a": 1e-6, "b": 1.0}, "a weight is too small"),
    ],
)
def test_weights_that_do_not_fit_the_sources_are_refused(weights: dict[str, float], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Mixture(weights, sources(6, 30), 0)


def test_rows_without_sources_are_refused() -> None:
    with pytest.raises(UserError, match="no column `source`"):
        Mixture({"a": 1.0}, None, 0)
    with pytest.raises(UserError, match="no weight for ''"):
        Mixture({"a": 1.0}, pa.array(["a", None]), 0)


@pytest.mark.parametrize("weight", ["0", "-1", ".inf", ".nan", "text"])
def test_weights_are_above_zero(weight: str) -> None:
    assert load(None, ["train.mixture={math: 2, chat: 0.5}"]).train.mixture == {"math": 2.0, "chat": 0.5}
    with pytest.raises(UserError, match=r"train\.mixture\.math"):
        load(None, [f"train.mixture.math={weight}"])
