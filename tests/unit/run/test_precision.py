"""Which dtype `auto` is: measured on CPUs, once per output folder, and the same for all that its results depend on."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from damage import each_damage

from ual_ray.config import Config, TrainConfig
from ual_ray.config.load import load
from ual_ray.engines.requests import EngineSpec
from ual_ray.engines.vllm_engine import engine_arguments
from ual_ray.errors import UserError
from ual_ray.run.precision import INFERENCE_FILE, TRAIN_FILE, with_inference_dtype, with_train_dtype
from ual_ray.run.side_by_side import side_by_side

SERVER = [
    "engine.kind=openai",
    "engine.endpoint.url=http://h/v1",
    "elicit.estimators=[verbalized_error]",
    "elicit.model=m",
]
SLOWER = "ual_ray.models.product_speed.slower_than_float32"


def test_a_run_keeps_the_dtype_that_its_first_training_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(slow: bool, output: Path, **train: Any) -> str:
        monkeypatch.setattr("ual_ray.models.product_speed.slower_than_float32", lambda *given: slow)
        return with_train_dtype(Config(train=TrainConfig(**train)), output).train.dtype

    (tmp_path / "other").mkdir()
    assert measured(False, tmp_path) == "bfloat16"
    assert measured(True, tmp_path) == "bfloat16", "a second measurement changes nothing"
    assert measured(True, tmp_path / "other") == "float32"
    assert measured(False, tmp_path, dtype="float32") == "float32", "what is set is not measured"


def test_a_damaged_record_of_the_dtype_is_refused_by_name(tmp_path: Path) -> None:
    (file := tmp_path / TRAIN_FILE).write_text("bfloat16")
    assert with_train_dtype(Config(), tmp_path).train.dtype == "bfloat16"
    for _ in each_damage(file, flips=64):
        with pytest.raises(UserError, match=f"{file} is damaged"):
            with_train_dtype(Config(), tmp_path)


def test_trainings_side_by_side_measure_the_dtype_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[bool] = []

    def slow(*_: Any) -> bool:
        measured.append(True)
        time.sleep(0.2)
        return len(measured) > 1

    monkeypatch.setattr("ual_ray.models.product_speed.slower_than_float32", slow)
    found = side_by_side(
        {n: lambda: with_train_dtype(Config(), tmp_path).train.dtype for n in range(4)}, lambda: 4, lambda *_: None, 1
    )
    assert len(measured) == 1 and set(found.values()) == {"bfloat16"}


def inference(overrides: list[str], output: Path, *, keep: bool = True) -> tuple[str, str, str]:
    config = with_inference_dtype(load(None, overrides), output, keep=keep)
    return config.engine.dtype, config.evaluate.dtype, config.judge.dtype


@pytest.mark.parametrize("slow", [True, False])
def test_engines_on_cpus_have_the_dtype_that_the_first_command_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow: bool
) -> None:
    """With AVX2 alone, bfloat16 took 6 times as long as float32 in vLLM, and 50 times in a product of torch."""
    monkeypatch.setattr(SLOWER, lambda *_: slow)
    dtype = "float32" if slow else "bfloat16"
    assert inference([], tmp_path) == (dtype, "float32", dtype)
    monkeypatch.setattr(SLOWER, lambda *_: not slow)
    assert inference([], tmp_path) == (dtype, "float32", dtype), "or scores of two precisions would be in one column"
    assert inference(["evaluate.dtype=auto"], tmp_path) == (dtype, dtype, dtype)
    assert inference(["engine.dtype=float16", "judge.dtype=float32"], tmp_path) == ("float16", "float32", "float32")


def test_a_forecast_records_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SLOWER, lambda *_: True)
    assert inference([], tmp_path, keep=False)[0] == "float32"
    assert not any(tmp_path.iterdir())
    (tmp_path / INFERENCE_FILE).write_text("bfloat16")
    assert inference([], tmp_path, keep=False)[0] == "bfloat16"


@pytest.mark.parametrize(
    ("overrides", "measured"),
    [
        (["engine.gpus_per_actor=1"], False),
        (["engine.kind=fake"], False),
        (SERVER, False),
        ([*SERVER, "evaluate.dtype=auto"], True),
    ],
)
def test_what_does_not_run_on_these_cpus_is_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str], measured: bool
) -> None:
    """And keeps the keys that its scores had."""
    monkeypatch.setattr(SLOWER, lambda *_: True)
    assert inference(overrides, tmp_path)[0] == ("float32" if measured else "bfloat16")
    assert (tmp_path / INFERENCE_FILE).exists() is measured


def test_a_damaged_record_of_inference_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / INFERENCE_FILE).write_text("float8")
    with pytest.raises(UserError, match=rf"{INFERENCE_FILE} is damaged\n.*got: 'float8'"):
        inference([], tmp_path)


@pytest.mark.parametrize(("gpus", "expected"), [("0", "float32"), ("1", "bfloat16")])
def test_an_engine_of_its_own_measures_too(monkeypatch: pytest.MonkeyPatch, gpus: str, expected: str) -> None:
    monkeypatch.setattr(SLOWER, lambda *_: True)
    engine = load(None, [f"engine.gpus_per_actor={gpus}"]).engine
    assert engine_arguments(EngineSpec(engine, "model"))["dtype"] == expected
