"""Compiled decoder layers, without the compiler: the same results, weights of the same names, and no graph for a new shape."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from ual_ray.config import TrainConfig
from ual_ray.config.load import load
from ual_ray.errors import UserError
from ual_ray.preflight import check
from ual_ray.train.batches import Batch, Sample, collate
from ual_ray.train.model import SmoothedCausalLM, build
from ual_ray.train.sharding import make_mesh

CPU = torch.device("cpu")
# Two kinds of layers in turn, with windows that rows exceed; experts.
FAMILIES = ("llama", "gemma3_text", "qwen3_moe")


@pytest.fixture(autouse=True)
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Record graphs from the start, and run them as they are: what the C++ compiler makes of them is tested over real ranks."""
    torch._dynamo.reset()
    counters.clear()
    torch.compiler.set_default_backend("eager")
    yield
    torch.compiler.set_default_backend(None)  # type: ignore[arg-type]
    torch._dynamo.reset()


def model_of(folder: Path, **train: Any) -> SmoothedCausalLM:
    config = TrainConfig(dtype="float32", num_workers=1, uncertainty_bins=0, **train)
    torch.manual_seed(0)
    return build(str(folder), config, make_mesh(config, CPU), CPU).train()


def batch_of(*rows: tuple[int, ...], packed: bool = False) -> Batch:
    """Make a batch of rows of samples of so many tokens."""
    generator = np.random.default_rng(0)
    ids = [[generator.integers(4, 600, length).astype(np.int32) for length in row] for row in rows]
    return collate([[Sample("", x, x, 0.1) for x in row] for row in ids], packed=packed)


PADDED = [batch_of(*[(length,) for length in row]) for row in ((5, 40, 7), (21, 22), (44, 9, 10, 11), (6, 8), (30, 12, 13))]
PACKS = [batch_of(row, packed=True) for row in ((5, 40), (3, 4, 33, 2), (44,), (7, 8, 9), (20, 21), (6, 5, 4, 3, 2))]


@pytest.mark.parametrize("settings", [{}, {"packing": True, "activation_checkpointing": True}])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.slow
def test_compiled_layers_compute_the_same(family: str, settings: Any, family_folder: Any, group: None) -> None:
    plain, compiled = (model_of(family_folder(family), compile=each, **settings) for each in (False, True))
    assert [*compiled.state_dict()] == [*plain.state_dict()]
    for batch in (PACKS if settings else PADDED)[:3]:
        expected, found = plain(batch).loss, compiled(batch).loss
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        expected.backward()
        found.backward()
    assert counters["stats"]["unique_graphs"] > 0
    for (name, one), other in zip(plain.named_parameters(), compiled.parameters(), strict=True):
        if one.grad is not None:
            torch.testing.assert_close(other.grad.full_tensor(), one.grad.full_tensor(), rtol=2e-4, atol=1e-4, msg=name)


@pytest.mark.parametrize(("batches", "settings"), [(PADDED, {}), (PACKS, {"packing": True})])
@pytest.mark.parametrize("lora", [None, 4])
@pytest.mark.slow
def test_batches_of_new_shapes_make_no_new_graphs(
    batches: list[Batch], settings: Any, lora: int | None, family_folder: Any, group: None
) -> None:
    model = model_of(family_folder("llama"), compile=True, lora={"rank": lora}, **settings)
    made = []
    for batch in batches:
        model(batch).loss.backward()
        made.append(counters["stats"]["unique_graphs"])
    assert made[0] > 0 and made[1] == made[-1], made
    model.eval()
    with torch.no_grad():
        model(batches[0])
    assert counters["stats"]["unique_graphs"] == made[-1], "validation is not compiled"


@pytest.mark.parametrize("lacking", ["compiler", "headers"])
@pytest.mark.parametrize("gpus", [0, 1])
def test_a_machine_that_cannot_compile_is_refused_at_once(
    lacking: str, gpus: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, family_folder: Any, group: None
) -> None:
    # Kernels for GPUs are Triton's, which builds what starts them with a C compiler.
    own, others = ("CC", "CXX") if gpus else ("CXX", "CC")
    if lacking == "compiler":
        monkeypatch.setenv(own, "no-such-compiler")
    else:
        monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    said = "no-such-compiler is not in PATH" if lacking == "compiler" else f"{tmp_path}/Python.h does not exist"
    settings = ["train.compile=true", f"model={family_folder('llama')}", "runtime.check_memory=false"]
    config = load(None, [*settings, f"train.gpus_per_worker={gpus}"])
    device = torch.device("cuda" if gpus else "cpu")

    def begin() -> None:
        build(str(tmp_path / "nothing"), config.train, make_mesh(config.train, CPU), device)

    for start in (lambda: check(config, {"train"}), begin):
        with pytest.raises(UserError, match=r"train\.compile=true cannot compile on this machine") as error:
            start()
        assert said in str(error.value) and "train.compile=false" in str(error.value) and f"in {own}" in str(error.value)
    monkeypatch.undo()
    monkeypatch.setenv(others, "no-such-compiler")
    check(config, {"train"})
