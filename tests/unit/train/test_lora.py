"""Adapters: on all linear layers but the head, first values from the seed alone, and a product that is peft's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ual_ray.config import LoraConfig
from ual_ray.errors import UserError
from ual_ray.train.lora import ADAPTER, adapted_layers, add_adapters, delta, initialize_adapters, linear_layers
from ual_ray.train.weights import empty_model, load_weights

CPU = torch.device("cpu")


def adapted(folder: Any, **settings: Any) -> Any:
    model = empty_model(str(folder))
    add_adapters(model, LoraConfig(**{"rank": 2, **settings}))
    return model


@pytest.mark.slow
def test_all_linear_layers_but_the_head_get_an_adapter(any_family: str, family_folder: Any) -> None:
    linear = set(linear_layers(empty_model(str(family_folder(any_family)))))
    model = adapted(family_folder(any_family))
    assert {name for name, _ in adapted_layers(model)} == linear
    assert linear
    assert not any("head" in name for name in linear)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {f"{name}.{part}.{ADAPTER}.weight" for name in linear for part in ("lora_A", "lora_B")}


def test_target_modules_narrow_it_down(family_folder: Any) -> None:
    model = adapted(family_folder("llama"), target_modules=("q_proj", "v_proj"))
    assert {name.rpartition(".")[2] for name, _ in adapted_layers(model)} == {"q_proj", "v_proj"}


@pytest.mark.parametrize(("family", "targets"), [("llama", ("no_such",)), ("mixtral", ("w1", "w2", "w3"))])
def test_targets_that_are_no_linear_layers_are_refused(family: str, targets: tuple[str, ...], family_folder: Any) -> None:
    with pytest.raises(UserError, match=r"lora\.target_modules.*\n.*\n.*q_proj"):
        adapted(family_folder(family), target_modules=targets)


def test_layers_that_peft_takes_for_experts_are_refused_with_those_that_can_be_named(family_folder: Any) -> None:
    with pytest.raises(UserError, match=r"experts' among them\n.*\n.*name some of these: \[k_proj, o_proj, q_proj, v_proj\]"):
        adapted(family_folder("glm4_moe"))
    named = adapted(family_folder("glm4_moe"), target_modules=("k_proj", "o_proj", "q_proj", "v_proj"))
    assert len([*adapted_layers(named)]) == 8


def test_first_values_follow_from_the_seed_and_the_name_alone(family_folder: Any) -> None:
    values = []
    for seed, targets in ((3, None), (3, ("q_proj",)), (4, None)):
        torch.manual_seed(seed)
        model = adapted(family_folder("llama"), target_modules=targets)
        torch.rand(seed)  # what else was drawn does not matter
        names = initialize_adapters(model, CPU)
        values.append({name: value for name, value in model.named_parameters() if name in names})
    whole, part, other = values
    assert all(torch.equal(whole[name], value) for name, value in part.items())
    assert not any(torch.equal(other[name], value) for name, value in whole.items() if "lora_A" in name)
    firsts = [value for name, value in whole.items() if "lora_A" in name]
    # Kaiming-uniform with a = sqrt(5), as peft: uniform within 1 / sqrt(in).
    assert all(0.5 < value.abs().max().item() * value.shape[1] ** 0.5 <= 1 for value in firsts)
    assert not any(value.any() for name, value in whole.items() if "lora_B" in name)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_product_is_pefts_own(family: str, family_folder: Any) -> None:
    model = adapted(family_folder(family), alpha=6)
    load_weights(model, str(family_folder(family)), CPU)
    for name, layer in adapted_layers(model):
        a, b = (getattr(layer, part)[ADAPTER].weight.data for part in ("lora_A", "lora_B"))
        b.normal_()
        torch.testing.assert_close(delta(layer, a, b), layer.get_delta_weight(ADAPTER).data, msg=name)
