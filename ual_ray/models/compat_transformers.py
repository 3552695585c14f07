"""Parts of transformers that it does not document: how it loads weights into a model, and how it writes them back.

transformers knows how each architecture's checkpoints differ from its modules (renamed, fused or split weights), and reads only
the rows that a rank holds where it finds a parameter already sharded; `from_pretrained` gives no access to this for a
model that exists already.

When tests/unit/models/test_compat_transformers.py fails with another transformers: read `_load_pretrained_model` and
`_finalize_model_loading` of `PreTrainedModel` (transformers/modeling_utils.py) of that version, adapt this file, run
tests/unit/train and tests/integration/test_fsdp.py, and move the bounds of transformers in pyproject.toml.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Loaded:
    """A state dict that is in a model; `missing` names parameters that it lacked. `finish_loading` comes after it."""

    missing: set[str]
    mismatched: list[str]
    errors: list[str]
    _internal: Any


def auto_causal_lm() -> Any:
    """Import AutoModelForCausalLM without scikit-learn, half of the time of that; only assisted generation uses it."""
    from transformers import utils

    available, utils.is_sklearn_available = utils.is_sklearn_available, lambda: False
    try:
        from transformers import AutoModelForCausalLM
    finally:
        utils.is_sklearn_available = available
    return AutoModelForCausalLM


def rearranged_weights(model: nn.Module) -> list[str]:
    """Describe the weights of which a parameter's first rows are not made of the stored tensors' first rows."""
    from transformers.conversion_mapping import get_model_conversion_mapping

    conversions: Any = get_model_conversion_mapping(model)
    return [repr(conversion) for conversion in conversions if not keeps_rows(conversion)]


def keeps_rows(conversion: Any) -> bool:
    """Whether a conversion only joins tensors behind their rows, or only renames."""
    from transformers.core_model_loading import Concatenate, MergeModulelist

    return all(
        isinstance(operation, MergeModulelist) or (isinstance(operation, Concatenate) and operation.dim > 0)
        for operation in getattr(conversion, "operations", ())
    )


def load_state(
    model: nn.Module, path: str, slices: Mapping[str, Any], device: torch.device, adapted: Sequence[str] = ()
) -> Loaded:
    """Load weights from safetensors slices into a model on the meta device, sharded or not, in the dtypes of its parameters.

    path: shown in messages. device: where the weights go. adapted: names of the layers into which peft has put the original
    layer as `base_layer`. Weights without a slice stay on the meta device until `finish_loading`.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, convert_and_load_state_dict_in_model
    from transformers.modeling_utils import LoadStateDictConfig

    own: Any = get_model_conversion_mapping(model)
    names = "|".join(re.escape(name.removeprefix(f"{model.base_model_prefix}.")) for name in adapted)
    parts = ("weight", "bias") if adapted else ()
    config = LoadStateDictConfig(
        pretrained_model_name_or_path=path,
        device_map={"": device},
        dtype=torch.float32,
        weight_mapping=[*own, *(WeightRenaming(rf"({names})\.{part}$", rf"\1.base_layer.{part}") for part in parts)],
    )
    info, _ = convert_and_load_state_dict_in_model(model, dict(slices), config, disk_offload_index=None)
    # What `as_in_checkpoint` undoes. Not the renaming of adapted layers: by then adapters are merged.
    model._weight_conversions = [conversion for conversion in own if conversion.was_used()]
    mismatched = [f"{name[0]}: shape {name[1:]}" for name in info.mismatched_keys]
    errors = [f"{name}: {error}" for name, error in info.conversion_errors.items()]
    return Loaded(info.missing_keys, mismatched, errors, (config, info))


def finish_loading(model: nn.Module, loaded: Loaded) -> None:
    """Tie the head, and compute the buffers that no checkpoint holds, such as rotary frequencies."""
    model._finalize_model_loading(model, *loaded._internal)


def float32_names(model: nn.Module) -> Callable[[str], bool]:
    """Tell by name the weights that transformers holds in float32 also in a model in bfloat16, such as a router's biases."""
    from transformers.core_model_loading import build_glob_alternation

    patterns = [*model._get_dtype_plan(torch.bfloat16)]
    matching = build_glob_alternation(patterns)[0]
    return lambda name: bool(patterns and matching.search(name))


def mark_initialized(parameter: nn.Parameter) -> None:
    """Keep `finish_loading` from initialising a parameter that was in no file."""
    parameter._is_hf_initialized = True


def as_in_checkpoint(model: nn.Module, name: str, tensor: Tensor) -> dict[str, Tensor]:
    """Undo what `load_state` did to a checkpoint's names and shapes, for one parameter."""
    from transformers.core_model_loading import revert_weight_conversion

    return revert_weight_conversion(model, {name: tensor})


def optional_file(source: str, name: str) -> str | None:
    """Return the path of a file of a model directory or hub name, downloaded if need be; None when it has no such file."""
    from transformers.utils.hub import cached_file

    return cached_file(source, name, _raise_exceptions_for_missing_entries=False)


def takes_any_attention(causal_lm: Any) -> bool:
    """Whether a model calls a registered attention function, and would call scaled_dot_product_attention by itself."""
    return bool(getattr(causal_lm, "_supports_attention_backend", False) and getattr(causal_lm, "_supports_sdpa", False))


def pack_masks(causal_lm: Any, position_ids: Tensor, dtype: torch.dtype) -> dict[str, Any] | None:
    """Make the attention masks of packs by kind of layer, from positions [rows, length] that restart with each sample.

    For decoders that make their masks without the positions. None for those with layers of another kind than these two.
    """
    from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

    makers: dict[str, Any] = {"full_attention": create_causal_mask, "sliding_attention": create_sliding_window_causal_mask}
    settings = causal_lm.config.get_text_config()
    kinds = set(getattr(settings, "layer_types", None) or ())
    if not kinds or not kinds <= set(makers):
        return None
    states = position_ids.new_empty((*position_ids.shape, 1), dtype=dtype)
    given = {"config": settings, "inputs_embeds": states, "attention_mask": None, "past_key_values": None}
    return {kind: makers[kind](**given, position_ids=position_ids) for kind in sorted(kinds)}


def attention_implementation(model: nn.Module) -> str:
    """Name the attention implementation that a model runs with, such as sdpa or flash_attention_2."""
    return str(model.config._attn_implementation)


def render_with_marks(
    tokenizer: Any, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]
) -> tuple[str, list[tuple[int, int]]]:
    """Render a conversation; return the text, and the spans of characters that are between its template's generation marks."""
    from transformers.utils.chat_template_utils import render_jinja_template

    settings = {**tokenizer.special_tokens_map, **options}
    template = tokenizer.get_chat_template(None, options.get("tools"))
    found: Any = render_jinja_template([list(messages)], chat_template=template, return_assistant_tokens_mask=True, **settings)
    (text,), (spans,) = found
    return text, [(start, end) for start, end in spans]
