"""A frozen base held in bfloat16: the loss and gradients of float32 on the rounded weights, half of the memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor

from ual_ray.config import LoraConfig, TrainConfig
from ual_ray.train.batches import collate
from ual_ray.train.estimate.memory import count_parameters
from ual_ray.train.export import Export, export
from ual_ray.train.lora import adapted_layers
from ual_ray.train.model import SmoothedCausalLM, build
from ual_ray.train.optimizer_step import backward, make_optimizer, train_step
from ual_ray.train.sharding import make_mesh, reshard
from ual_ray.train.token_store import Sample
from ual_ray.train.weights import empty_trained_model

CPU = torch.device("cpu")
SAMPLES = [
    Sample("a", np.arange(30, 42), np.array([-100] * 4 + [*range(34, 42)]), 0.2, 0),
    Sample("b", np.arange(60, 50, -1), np.arange(60, 50, -1), 0.4, 1),
    Sample("c", np.arange(5, 9), np.arange(5, 9), 0.0),
]
TARGET_TOKENS = 8 + 9 + 3
BATCHES = [collate([SAMPLES[:1], SAMPLES[1:2]]), collate([SAMPLES[2:]])]


pytestmark = pytest.mark.usefixtures("group")


def save(source: Path, folder: Path, dtype: torch.dtype) -> Path:
    """Save a model with its weights rounded to bfloat16."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16).to(dtype).save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["llama", "llama_untied"])
def stored(request: pytest.FixtureRequest, family_folder: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Have a model in float32, rounded to bfloat16 and kept in float32, and in bfloat16."""
    source, root = family_folder(request.param), tmp_path_factory.mktemp("stored")
    rounded = {
        name: save(source, root / name, dtype) for name, dtype in (("rounded", torch.float32), ("bfloat16", torch.bfloat16))
    }
    return {"float32": source, **rounded}


def make(folder: Path, base: str, dtype: str = "float32") -> tuple[SmoothedCausalLM, torch.optim.Optimizer]:
    lora: dict[str, Any] = {"rank": 4, "base_dtype": base}
    config = TrainConfig(dtype=dtype, uncertainty_bins=2, lora=lora)  # type: ignore[arg-type]
    torch.manual_seed(0)
    model = build(str(folder), config, make_mesh(config, CPU), CPU)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, layer in adapted_layers(model):
            weight = layer.lora_B["default"].weight
            local(weight).copy_(0.1 * torch.randn(weight.shape, generator=generator))
    return model, make_optimizer(model, config)


def local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gradients(model: SmoothedCausalLM) -> tuple[float, dict[str, torch.Tensor]]:
    torch.manual_seed(2)  # some models have dropout
    loss = float(sum(one.loss for one in backward(model.train(), BATCHES, TARGET_TOKENS, CPU)))
    found = {name: local(value.grad) for name, value in model.named_parameters() if value.grad is not None}
    return loss, found


def dtypes(model: SmoothedCausalLM) -> set[tuple[torch.dtype, bool]]:
    reshard(model)
    return {(parameter.dtype, parameter.requires_grad) for parameter in model.parameters()}


@pytest.mark.slow
def test_it_computes_in_float32_what_the_rounded_weights_give(stored: dict[str, Path]) -> None:
    low, exact = make(stored["float32"], "bfloat16")[0], make(stored["rounded"], "float32")[0]
    assert dtypes(low) == {(torch.bfloat16, False), (torch.float32, True)}
    assert dtypes(exact) == {(torch.float32, False), (torch.float32, True)}
    (loss, found), (expected, wanted) = gradients(low), gradients(exact)
    assert loss == expected and set(found) == set(wanted) and found
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
    assert {value.dtype for value in found.values()} == {torch.float32}


@pytest.mark.slow
def test_it_is_near_a_base_that_was_not_rounded(stored: dict[str, Path]) -> None:
    (loss, found), (expected, wanted) = (gradients(make(stored["float32"], base)[0]) for base in ("bfloat16", "float32"))
    # Eight bits of a weight's fraction are kept: an error of at most 0.4% in each.
    assert loss == pytest.approx(expected, rel=4e-3) and loss != expected
    distance = torch.stack([(found[name] - value).norm() for name, value in wanted.items()]).norm()
    assert distance < 0.02 * torch.stack([value.norm() for value in wanted.values()]).norm()


@pytest.mark.slow
def test_in_bfloat16_arithmetic_no_bit_depends_on_how_the_base_is_held(stored: dict[str, Path]) -> None:
    both = [make(stored["bfloat16"], base, "bfloat16") for base in ("auto", "float32")]
    assert dtypes(both[0][0]) == {(torch.bfloat16, False), (torch.float32, True)}
    assert dtypes(both[1][0]) == {(torch.float32, False), (torch.float32, True)}
    (loss, found), (expected, wanted) = (gradients(model) for model, _ in both)
    assert loss == expected and all(torch.equal(found[name], value) for name, value in wanted.items())
    for model, optimizer in both:
        model.zero_grad(set_to_none=True)
        train_step(model, optimizer, BATCHES, TARGET_TOKENS, 1e-2, 1.0, CPU)
    ours, theirs = (dict(model.named_parameters()) for model, _ in both)
    assert all(torch.equal(local(ours[name]).float(), local(value)) for name, value in theirs.items())


@pytest.mark.slow
def test_so_it_is_for_every_family(any_family: str, family_folder: Any, tmp_path: Path) -> None:
    folder = save(family_folder(any_family), tmp_path / "model", torch.bfloat16)
    low, exact = (make(folder, base, "bfloat16")[0] for base in ("auto", "float32"))
    assert dtypes(low) != dtypes(exact)
    (loss, found), (expected, wanted) = gradients(low), gradients(exact)
    assert loss == expected and all(torch.equal(found[name], value) for name, value in wanted.items()) and wanted
    low.zero_grad(set_to_none=True)
    assert float(backward(low, [collate([])], 0, CPU)[0].loss) == 0, "a rank with no sequence left takes part, too"
    assert not any(local(value.grad).any() for value in low.parameters() if value.requires_grad)


@pytest.mark.parametrize(
    ("base", "dtype", "folder", "held"),
    [
        ("auto", "bfloat16", "bfloat16", torch.bfloat16),
        ("auto", "bfloat16", "float32", torch.float32),
        ("auto", "float32", "bfloat16", torch.float32),
        ("float32", "bfloat16", "bfloat16", torch.float32),
        ("bfloat16", "float32", "float32", torch.bfloat16),
    ],
)
def test_auto_rounds_nothing(stored: dict[str, Path], base: Any, dtype: str, folder: str, held: torch.dtype) -> None:
    model = empty_trained_model(str(stored[folder]), LoraConfig(rank=4, base_dtype=base), dtype)
    assert {parameter.dtype for parameter in model.parameters() if not parameter.requires_grad} == {held}
    assert {parameter.dtype for parameter in model.parameters() if parameter.requires_grad} == {torch.float32}
    counted = count_parameters(model, 1)
    assert counted.shard_bytes == sum(parameter.numel() * parameter.itemsize for parameter in model.parameters())
    assert counted.has_low_precision == (held == torch.bfloat16)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("folder", "dtype", "held"),
    [
        ("bfloat16", "bfloat16", torch.bfloat16),
        ("float32", "bfloat16", torch.float32),
        ("bfloat16", "float32", torch.float32),
    ],
)
def test_no_bit_depends_on_how_the_copy_for_full_fine_tuning_is_held(
    stored: dict[str, Path], folder: str, dtype: Any, held: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrainConfig(dtype=dtype, uncertainty_bins=2, prior="base")
    results = []
    for as_float32 in (False, True):
        if as_float32:
            monkeypatch.setattr("ual_ray.train.weights.hold_base", lambda *given: None)
        model = build(str(stored[folder]), config, make_mesh(config, CPU), CPU)
        loss, found = gradients(model)
        (copy,) = model._copies
        assert dtypes(model) == {(torch.float32, True)}
        assert dtypes(copy) == {(torch.float32 if as_float32 else held, False)}
        assert {isinstance(parameter, DTensor) for parameter in copy.parameters()} == {True}
        results.append((loss, found))
    (loss, found), (expected, wanted) = results
    assert loss == expected and all(torch.equal(found[name], value) for name, value in wanted.items()) and wanted


@pytest.mark.slow
def test_adapters_are_merged_into_what_was_held(stored: dict[str, Path], tmp_path: Path) -> None:
    merged = []
    for number, (folder, base) in enumerate([("float32", "bfloat16"), ("rounded", "float32")]):
        model = make(stored[folder], base)[0]
        export(model, Export(str(stored[folder]), "# a card"), tmp_path / str(number))
        merged.append(load_file(tmp_path / str(number) / "model.safetensors"))
    assert {value.dtype for value in merged[0].values()} == {torch.float32}
    assert (
        all(torch.equal(merged[0][name], value) for name, value in merged[1].items()) and merged[0].keys() == merged[1].keys()
    )


def test_full_fine_tuning_has_no_frozen_base() -> None:
    with pytest.raises(ValidationError, match=r"set lora\.rank, or lora\.base_dtype=auto"):
        TrainConfig(lora={"base_dtype": "bfloat16"})  # type: ignore[arg-type]


def test_a_router_that_is_float32_in_any_precision_stays_so(family_folder: Any) -> None:
    folder = str(family_folder("ernie4_5_moe"))
    low = empty_trained_model(folder, LoraConfig(rank=2, base_dtype="bfloat16"), "bfloat16")
    exact = {name for name, value in low.named_parameters() if value.dtype == torch.float32 and not value.requires_grad}
    assert {name.partition(".mlp.gate.")[2] for name in exact} == {"weight", "moe_statics.e_score_correction_bias"}
