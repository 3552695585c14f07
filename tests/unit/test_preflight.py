"""What is refused before anything expensive: memory by hand, ports, inputs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ual_ray.config import Config, load
from ual_ray.errors import UserError
from ual_ray.preflight import check_input, check_memory

ALL = {"elicit", "train", "evaluate"}


@pytest.fixture
def large(tmp_path: Path) -> Config:
    """Name a model of 2**28 parameters, which is 1 GB of float32 weights, without writing them."""
    import json
    import struct

    header = {"w": {"dtype": "F32", "shape": [2**14, 2**14], "data_offsets": [0, 2**30]}}
    text = json.dumps(header).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    return load(
        None,
        [f"model={tmp_path}", f"elicit.model={tmp_path}", "engine.max_actors=2", "train.num_workers=2", "engine.dtype=float32"],
    )


def test_training_needs_sixteen_bytes_a_parameter_and_a_gigabyte_a_worker(large: Config) -> None:
    check_memory(large, 6.01, {"train"})
    with pytest.raises(UserError, match=r"train does not fit(?s:.*)needs about 6.0 GB, 5.9 GB are free"):
        check_memory(large, 5.9, {"train"})


def test_scoring_needs_weights_cache_and_a_gigabyte_per_actor(large: Config) -> None:
    check_memory(large, 6.01, {"elicit"})
    with pytest.raises(UserError, match=r"elicit does not fit(?s:.*)engine.max_actors"):
        check_memory(large, 5.9, {"elicit"})


def test_gpus_and_stages_that_are_not_run_are_not_judged(large: Config) -> None:
    check_memory(large, 0.1, set())
    gpu = load(None, [f"model={large.model}", "engine.gpus_per_actor=1", "train.gpus_per_worker=1"])
    check_memory(gpu, 0.1, ALL)


def test_parameters_are_counted_without_loading(tmp_path: Path) -> None:
    from ual_ray.sources.models import parameter_count

    (tmp_path / "config.json").write_text("{}")
    save_file({"a": torch.zeros(3, 5), "b": torch.zeros(7)}, tmp_path / "model.safetensors")
    assert parameter_count(str(tmp_path)) == 22


def test_an_input_that_is_not_there_or_no_parquet(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="(?s)does not exist.*ual elicit"):
        check_input(tmp_path / "no.parquet", "ual elicit")
    (tmp_path / "rows.csv").write_text("a")
    with pytest.raises(UserError, match="unknown kind"):
        check_input(tmp_path / "rows.csv", "ual elicit")
