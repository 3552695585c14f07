"""Low-rank adapters (LoRA, arXiv 2106.09685) by peft: put in before sharding, exported alone and merged into the weights."""

import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from ual_ray.config import LoraConfig
from ual_ray.errors import UserError
from ual_ray.models.compat_transformers import float32_names, mark_initialized

ADAPTER = "default"


def add_adapters(causal_lm: nn.Module, config: LoraConfig) -> None:
    """Freeze a model on the meta device and add adapters, also on meta, to its linear layers, in place.

    Without `config.target_modules`, all linear layers but the head get one. Raises UserError when the target modules match
    no linear layer of the model.
    """
    import peft

    linear = linear_layers(causal_lm)
    # peft's annotation is int, but it accepts any number.
    strength: dict[str, Any] = {"r": config.rank, "lora_alpha": config.alpha, "lora_dropout": config.dropout}
    settings = peft.LoraConfig(**strength, target_modules=list(config.target_modules or linear))
    try:
        peft.inject_adapter_in_model(settings, causal_lm, ADAPTER, low_cpu_mem_usage=True)
    except ValueError as error:
        raise _no_such_layers(config, linear) from error
    # In a mixture of experts, peft takes the names of other layers for those of the experts' fused weights, which cannot be
    # merged like layers.
    if not (adapted := {name for name, _ in adapted_layers(causal_lm)}) <= set(linear):
        raise _no_such_layers(config, [name for name in linear if name in adapted] or linear)


def hold_base(causal_lm: nn.Module, config: LoraConfig, dtype: str, stored: torch.dtype | None) -> None:
    """Let a model, on the meta device, hold its frozen weights in `config.base_dtype`; adapters stay float32.

    So do weights that transformers holds in float32 whatever the model's precision.
    dtype: train.dtype. stored: of the weights that are going to be loaded, None if unknown.
    """
    same_bits = dtype == "bfloat16" and stored == torch.bfloat16
    if config.base_dtype == "bfloat16" or (config.base_dtype == "auto" and same_bits):
        is_float32 = float32_names(causal_lm)
        for name, parameter in causal_lm.named_parameters():
            if not (parameter.requires_grad or is_float32(name.replace(".base_layer.", "."))):
                parameter.data = parameter.data.to(torch.bfloat16)


def linear_layers(causal_lm: nn.Module) -> list[str]:
    """Name a model's linear layers, without its head."""
    from transformers.pytorch_utils import Conv1D

    head = causal_lm.get_output_embeddings()
    kinds = (nn.Linear, Conv1D)
    return [name for name, module in causal_lm.named_modules() if isinstance(module, kinds) and module is not head]


def _no_such_layers(config: LoraConfig, possible: list[str]) -> UserError:
    names = ", ".join(sorted({name.rpartition(".")[2] for name in possible}))
    return UserError(
        "train.lora.target_modules: adapters cannot go there",
        got=list(config.target_modules) if config.target_modules else "null: all linear layers, experts' among them",
        expected=f"names of linear layers: {names}",
        fix=f"name some of these{', or leave it out for all of them' if config.target_modules else f': [{names}]'}",
    )


def adapted_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the name and module of each layer that has an adapter; none without LoRA."""
    for name, module in model.named_modules():
        # Not by class, as importing peft takes seconds, which a model without adapters need not wait for.
        if hasattr(module, "lora_A"):
            yield name, module


def scale_of(model: nn.Module) -> float | None:
    """Return what adapters' products are multiplied by, alpha / rank; None without LoRA."""
    return next((layer.scaling[ADAPTER] for _, layer in adapted_layers(model)), None)


@contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """Let a model compute what it computed before training, while the block runs."""
    layers = [layer for _, layer in adapted_layers(model)]
    scales = [layer.scaling[ADAPTER] for layer in layers]
    try:
        for layer in layers:
            layer.scaling[ADAPTER] = 0.0
        yield
    finally:
        for layer, scale in zip(layers, scales, strict=True):
            layer.scaling[ADAPTER] = scale


@torch.no_grad()
def initialize_adapters(causal_lm: nn.Module, device: torch.device) -> set[str]:
    """Give every adapter its first values, as peft does (A Kaiming-uniform, B zero); return their parameters' names.

    The values follow from torch's seed, which has to be the same on all ranks, and from the name: not from the ranks.
    """
    names = set()
    for layer_name, layer in adapted_layers(causal_lm):
        for part in ("lora_A", "lora_B"):
            name, linear = f"{layer_name}.{part}.{ADAPTER}.weight", getattr(layer, part)[ADAPTER]
            whole = torch.zeros(linear.weight.shape, dtype=linear.weight.dtype)
            if part == "lora_A":
                generator = torch.Generator().manual_seed(zlib.crc32(name.encode()) ^ torch.initial_seed())
                nn.init.kaiming_uniform_(whole, a=math.sqrt(5), generator=generator)
            linear.weight = nn.Parameter(_placed_like(whole, linear.weight).to(device))
            mark_initialized(linear.weight)
            names.add(name)
    return names


def _placed_like(whole: Tensor, parameter: Tensor) -> Tensor:
    if not isinstance(parameter, DTensor):
        return whole
    return distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)


def write_adapter_settings(causal_lm: nn.Module, source: str, folder: Path) -> None:
    """Write adapter_config.json for a model with adapters; source: the model that they belong to."""
    settings = copy(causal_lm.peft_config[ADAPTER])
    settings.base_model_name_or_path, settings.task_type, settings.inference_mode = source, "CAUSAL_LM", True
    settings.save_pretrained(folder)


def delta(layer: Any, lora_a: Tensor, lora_b: Tensor) -> Tensor:
    """Compute what a layer's adapter adds to its weight, from the whole A [rank, in] and B [out, rank]."""
    product = (lora_b @ lora_a) * layer.scaling[ADAPTER]
    return product.T if layer.fan_in_fan_out else product
