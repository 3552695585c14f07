"""Weights from a model directory or the hub, straight into shards: every rank reads only the rows that it will hold.

transformers' own loader does the work, as it knows how each architecture's checkpoints differ from its modules (renamed or
fused weights); it reads slices where it finds a parameter already sharded.
"""

from __future__ import annotations

import re
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ual_ray.errors import UserError
from ual_ray.models.resolve import INDEX, WEIGHTS
from ual_ray.train.lora import adapted_layers, initialize_adapters


def empty_model(path: str, trust_remote_code: bool = False) -> nn.Module:
    """Make a causal LM of the right shape, in float32, without any weights (on the meta device)."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=trust_remote_code)


def load_weights(causal_lm: nn.Module, path: str, device: torch.device, home: torch.device | None = None) -> None:
    """Fill a model on the meta device, sharded or not, with the weights at `path`, and its adapters with first values.

    path: directory or hub name with safetensors. device: where the model computes. home: where its weights stay between uses,
    None for `device`. Raises UserError when weights are missing, of another shape, or cannot be read in shards.
    """
    from safetensors import safe_open
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import convert_and_load_state_dict_in_model
    from transformers.modeling_utils import LoadStateDictConfig

    model: Any = causal_lm
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    own = get_model_conversion_mapping(model)
    _refuse_mixed_rows(model, own)
    load_config = LoadStateDictConfig(
        pretrained_model_name_or_path=path,
        device_map={"": home or device},
        dtype=torch.float32,
        weight_mapping=[*own, *_into_adapted_layers(model)],
    )
    with ExitStack() as files:
        slices: dict[str, Any] = {}
        for file in weight_files(path):
            opened = files.enter_context(safe_open(file, framework="pt"))
            slices |= {key: opened.get_slice(key) for key in opened.keys()}  # noqa: SIM118
        info, _ = convert_and_load_state_dict_in_model(model, slices, load_config, disk_offload_index=None)
    # The export undoes these, but adapters are merged by then.
    model._weight_conversions = [conversion for conversion in own if conversion.was_used()]
    info.missing_keys -= initialize_adapters(model, home or device)
    _refuse_holes(model, path, info)
    # Ties the head, and computes the buffers that no checkpoint holds, such as rotary frequencies.
    model._finalize_model_loading(model, load_config, info)
    for name, parameter in model.named_parameters():
        # A loaded parameter is a new one, which is trained, unless told otherwise.
        parameter.requires_grad_(name in trained)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to(device)


def weight_files(path: str) -> list[str]:
    """List the safetensors files of a model directory or hub name; from the hub they are downloaded, once per machine.

    Raises UserError when there are none.
    """
    from transformers.utils.hub import cached_file, get_checkpoint_shard_files

    optional = {"_raise_exceptions_for_missing_entries": False}
    if whole := cached_file(path, WEIGHTS, **optional):
        return [whole]
    if index := cached_file(path, INDEX, **optional):
        return get_checkpoint_shard_files(path, index)[0]
    raise UserError(
        "the model has no safetensors weights",
        got=path,
        expected=f"{WEIGHTS} or {INDEX}",
        fix="convert .bin weights with save_pretrained",
    )


def _into_adapted_layers(model: Any) -> list[Any]:
    """Rename `x.weight` of checkpoints to `x.base_layer.weight` where peft has put a layer x into another."""
    from transformers.core_model_loading import WeightRenaming

    names = [re.escape(name.removeprefix(f"{model.base_model_prefix}.")) for name, _ in adapted_layers(model)]
    if not names:
        return []
    return [WeightRenaming(rf"({'|'.join(names)})\.{part}$", rf"\1.base_layer.{part}") for part in ("weight", "bias")]


def _refuse_mixed_rows(model: Any, conversions: list[Any]) -> None:
    """Refuse checkpoints of which a parameter's first rows are not made of the stored tensors' first rows: shards are rows."""
    from transformers.core_model_loading import Concatenate, MergeModulelist

    def keeps_rows(operation: Any) -> bool:
        return isinstance(operation, MergeModulelist) or (isinstance(operation, Concatenate) and operation.dim > 0)

    mixed = [repr(each) for each in conversions if not all(map(keeps_rows, getattr(each, "operations", ())))]
    if mixed:
        raise UserError(
            f"models of the kind {type(model).__name__} cannot be read in shards",
            got=f"weights that are stored fused or split: {'; '.join(mixed)}",
            fix="train a model of another kind: this one's weights are rearranged while they are read",
        )


def _refuse_holes(model: Any, path: str, info: Any) -> None:
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    tied = model.all_tied_weights_keys
    # Of a tied pair, either name may be the one in the file.
    found = parameters - info.missing_keys
    saved_elsewhere = {a for pair in tied.items() for a, b in (pair, pair[::-1]) if b in found}
    missing = sorted(info.missing_keys & parameters - saved_elsewhere)
    problems = [*(f"{name} is missing" for name in missing), *(f"{name[0]}: shape {name[1:]}" for name in info.mismatched_keys)]
    problems += [f"{name}: {error}" for name, error in info.conversion_errors.items()]
    if problems:
        raise UserError(
            f"{Path(path).name}: the weights do not fill the model",
            got="; ".join(problems[:5]) + (f" and {len(problems) - 5} more" if len(problems) > 5 else ""),
            fix="check that config.json belongs to these weights; a classifier or a half-finished download has other ones",
        )
