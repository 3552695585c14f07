"""Weights from a model directory or the hub, straight into shards: every rank reads only the rows that it will hold."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ual_ray.config import LoraConfig
from ual_ray.errors import UserError
from ual_ray.models.compat_transformers import (
    Loaded,
    auto_causal_lm,
    finish_loading,
    load_state,
    optional_file,
    rearranged_weights,
)
from ual_ray.models.resolve import INDEX, WEIGHTS
from ual_ray.train.lora import adapted_layers, add_adapters, hold_base, initialize_adapters

# Of two weights that should be the same, at one time.
ROWS_COMPARED = 8192


def empty_model(path: str, trust_remote_code: bool = False) -> nn.Module:
    """Make a causal LM of the right shape, in float32, without any weights (on the meta device)."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        return auto_causal_lm().from_config(config, dtype=torch.float32, trust_remote_code=trust_remote_code)


def empty_trained_model(path: str, lora: LoraConfig, dtype: str, trust_remote_code: bool = False) -> nn.Module:
    """Make a model without weights as it is trained, with adapters where there are any. dtype: train.dtype.

    Raises UserError when adapters cannot go where they should.
    """
    causal_lm = empty_model(path, trust_remote_code)
    if lora.rank:
        add_adapters(causal_lm, lora)
        hold_base(causal_lm, lora, dtype, _stored_dtype(path, trust_remote_code))
    return causal_lm


def empty_frozen_model(path: str, dtype: str, trust_remote_code: bool = False) -> nn.Module:
    """Make a model without weights or gradients, in the precision that it is stored in where that is train.dtype."""
    causal_lm = empty_model(path, trust_remote_code).requires_grad_(False)
    hold_base(causal_lm, LoraConfig(), dtype, _stored_dtype(path, trust_remote_code))
    return causal_lm


def _stored_dtype(path: str, trust_remote_code: bool) -> torch.dtype | None:
    from transformers import AutoConfig

    stored = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    return stored.dtype or stored.get_text_config().dtype


def load_weights(causal_lm: nn.Module, path: str, device: torch.device, home: torch.device | None = None) -> None:
    """Fill a model on the meta device, sharded or not, with the weights at `path`, and its adapters with first values.

    path: directory or hub name with safetensors. device: where the model computes. home: where its weights stay between uses,
    None for `device`. Raises UserError when weights are missing, of another shape, or cannot be read in shards.
    """
    from safetensors import safe_open

    trained = {name for name, parameter in causal_lm.named_parameters() if parameter.requires_grad}
    if rearranged := rearranged_weights(causal_lm):
        raise UserError(
            f"models of the kind {type(causal_lm).__name__} cannot be read in shards",
            got=f"weights that are stored fused or split: {'; '.join(rearranged)}",
            fix="train a model of another kind: this one's weights are rearranged while they are read",
        )
    with ExitStack() as files:
        slices: dict[str, Any] = {}
        for file in weight_files(path):
            opened = files.enter_context(safe_open(file, framework="pt"))
            slices |= {key: opened.get_slice(key) for key in opened.keys()}  # noqa: SIM118
        _refuse_untied(causal_lm, path, slices)
        loaded = load_state(causal_lm, path, slices, home or device, [name for name, _ in adapted_layers(causal_lm)])
    loaded.missing.difference_update(initialize_adapters(causal_lm, home or device))
    _refuse_holes(causal_lm, path, loaded)
    finish_loading(causal_lm, loaded)
    for name, parameter in causal_lm.named_parameters():
        # Loading has replaced the parameters by new ones, all of which require gradients.
        parameter.requires_grad_(name in trained)
    if home is not None and home != device:
        _move_parameters(causal_lm, home)
    for module in causal_lm.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))


def _move_parameters(model: nn.Module, home: torch.device) -> None:
    """Move all parameters, keeping tied ones tied: a shard is loaded to its mesh's device, whatever device was asked for."""
    moved: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter not in moved:
                moved[parameter] = nn.Parameter(parameter.detach().to(home), parameter.requires_grad)
            setattr(module, name, moved[parameter])


def weight_files(path: str) -> list[str]:
    """List the safetensors files of a model directory or hub name; from the hub they are downloaded, once per machine.

    Raises UserError when there are none.
    """
    from transformers.utils.hub import get_checkpoint_shard_files

    if whole := optional_file(path, WEIGHTS):
        return [whole]
    if index := optional_file(path, INDEX):
        return get_checkpoint_shard_files(path, index)[0]
    raise UserError(
        "the model has no safetensors weights",
        got=path,
        expected=f"{WEIGHTS} or {INDEX}",
        fix="convert .bin weights with save_pretrained",
    )


def _refuse_untied(model: Any, path: str, slices: Mapping[str, Any]) -> None:
    """Raise UserError for two weights where config.json has one, which transformers does not tie: here one would be dropped."""
    for pair in model.all_tied_weights_keys.items():
        one, other = (slices.get(name) for name in pair)
        if one is None or other is None:
            continue
        rows = range(0, one.get_shape()[0], ROWS_COMPARED)
        if one.get_shape() != other.get_shape() or not all(
            torch.equal(one[at : at + ROWS_COMPARED], other[at : at + ROWS_COMPARED]) for at in rows
        ):
            raise UserError(
                f"{Path(path).name}: the weights do not match config.json",
                got=f"{' and '.join(pair)} differ, and config.json ties them (tie_word_embeddings)",
                expected="the same values, or one of the two",
                fix='write "tie_word_embeddings": false into config.json, if both are meant to be used',
            )


def _refuse_holes(model: Any, path: str, loaded: Loaded) -> None:
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    # Of a tied pair, either name may be the one in the file.
    found = parameters - loaded.missing
    saved_elsewhere = {a for pair in model.all_tied_weights_keys.items() for a, b in (pair, pair[::-1]) if b in found}
    missing = sorted(loaded.missing & parameters - saved_elsewhere)
    problems = [*(f"{name} is missing" for name in missing), *loaded.mismatched, *loaded.errors]
    if problems:
        raise UserError(
            f"{Path(path).name}: the weights do not match config.json",
            got="; ".join(problems[:5]) + (f" and {len(problems) - 5} more" if len(problems) > 5 else ""),
            fix="check that config.json belongs to these weights; a classifier or an incomplete download has other ones",
        )
