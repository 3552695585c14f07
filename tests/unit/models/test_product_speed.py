"""Which of two dtypes multiplies faster: measured once, apart from whatever the caller has switched on."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ual_ray.config import Config, TrainConfig
from ual_ray.models import product_speed
from ual_ray.models.product_speed import product_rates, slower_than_float32
from ual_ray.run.precision import with_train_dtype

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def unmeasured() -> Iterator[None]:
    product_rates.cache_clear()
    yield
    product_rates.cache_clear()


def test_the_rate_is_that_of_a_product() -> None:
    (rate,) = product_rates((torch.float32,), threads=1, size=256, seconds=0.2)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        a, fastest = torch.ones(256, 256), float("inf")
        for _ in range(50):
            started = time.perf_counter()
            a @ a
            fastest = min(fastest, time.perf_counter() - started)
    finally:
        torch.set_num_threads(threads)
    assert 0.2 < rate / (2 * 256**3 / fastest) < 5


def test_the_slower_dtype_is_the_one_whose_products_take_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {torch.bfloat16: 2.0, torch.float16: 0.5, torch.float32: 1.0}
    monkeypatch.setattr(product_speed, "_measure", lambda dtypes, *_: [seconds[dtype] for dtype in dtypes])
    assert slower_than_float32(torch.bfloat16, CPU)
    assert not slower_than_float32(torch.float16, CPU)


def test_it_is_measured_once_and_only_where_it_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = []
    monkeypatch.setattr(product_speed, "_measure", lambda dtypes, *_: measured.append(dtypes) or [1.0, 2.0])
    assert not any(slower_than_float32(dtype, CPU) for dtype in (torch.float32, torch.float64))
    assert not slower_than_float32(torch.bfloat16, GPU)
    assert measured == []
    assert slower_than_float32(torch.bfloat16, CPU) == slower_than_float32(torch.bfloat16, CPU)
    assert len(measured) == 1


@pytest.mark.slow
def test_the_callers_modes_do_not_reach_the_measurement() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with FlopCounterMode(display=False) as counter, torch.device("meta"), torch.autocast("cpu", torch.bfloat16):
            low, high = product_rates((torch.bfloat16, torch.float32))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert counter.get_total_flops() == 0
    assert 1e7 < low < 1e15 and 1e7 < high < 1e15


@pytest.mark.parametrize(
    ("slow", "train", "dtype"),
    [
        (True, TrainConfig(), "float32"),
        (False, TrainConfig(), "bfloat16"),
        (True, TrainConfig(gpus_per_worker=1), "bfloat16"),
        (True, TrainConfig(dtype="bfloat16"), "bfloat16"),
        (False, TrainConfig(dtype="float32"), "float32"),
    ],
)
def test_auto_is_the_faster_one(slow: bool, train: TrainConfig, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(product_speed, "slower_than_float32", lambda *_: slow)
    assert with_train_dtype(Config(train=train), None).train == train.model_copy(update={"dtype": dtype})
