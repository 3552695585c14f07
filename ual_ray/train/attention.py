"""Attention sample by sample: a pack's samples never meet, so no mask over the whole pack is built or computed."""

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from ual_ray.config import TrainConfig
from ual_ray.errors import UserError
from ual_ray.models.compat_transformers import takes_any_attention

NAME = "ual_ray_varlen"
KINDS_OF_LAYERS = {"full_attention", "sliding_attention"}
# Settings of models that change which tokens attend to each other, or how, in ways that `varlen_attention` does not compute.
UNSUPPORTED = ("attention_chunk_size", "attn_logit_softcapping", "use_bidirectional_attention", "alibi")


class Lengths:
    """Tokens of each sample of a pack: not a list, as torch.compile would make a graph for every other list.

    `arrived`: whether the model has passed them on to an attention; without them it takes all samples for one.
    """

    def __init__(self, tokens: list[int]) -> None:
        """Take them in the order of the samples."""
        self.tokens, self.arrived = tokens, False


def varlen_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    sample_lengths: Lengths | None = None,
    **other: Any,
) -> tuple[Tensor, None]:
    """Compute causal attention within each sample: [1, heads, tokens, size] to [1, tokens, heads, size]; transformers calls it.

    sample_lengths: tokens of each sample, in their order; None = every row is one sample. sliding_window: a token attends to
    so many tokens, itself included. Raises UserError for what it does not compute.
    """
    unknown = [name for name in ("softcap", "s_aux", "position_bias") if other.get(name) is not None]
    causal = other.get("is_causal")
    if not (getattr(module, "is_causal", True) if causal is None else causal):
        unknown.append("attention to later tokens")
    if unknown or attention_mask is not None:
        raise UserError(
            f"{type(module).__name__} cannot be computed sample by sample",
            got=", ".join(unknown) or "a mask",
            fix="set train.attention=sdpa",
        )
    lengths = [query.shape[2]]
    if sample_lengths is not None:
        lengths, sample_lengths.arrived = sample_lengths.tokens, True
    # A split's gradient is one concatenation; that of slices would be as many sums over the whole pack.
    samples = zip(*(tensor.split(lengths, dim=2) for tensor in (query, key, value)), strict=True)
    grouped = key.shape[1] != query.shape[1]
    outputs = [
        nn.functional.scaled_dot_product_attention(
            *sample, **_pattern(length, sliding_window, query.device), dropout_p=dropout, scale=scaling, enable_gqa=grouped
        ).transpose(1, 2)
        for sample, length in zip(samples, lengths, strict=True)
    ]
    return torch.cat(outputs, dim=1), None


def _pattern(length: int, window: int | None, device: torch.device) -> dict[str, Any]:
    if window is None or length <= window:
        return {"is_causal": True}
    place = torch.arange(length, device=device)
    distance = place[:, None] - place
    return {"attn_mask": (distance >= 0) & (distance < window)}


def sample_lengths(position_ids: Tensor) -> list[int]:
    """List the tokens of every sample of flat position ids, which restart at 0 with each sample."""
    starts = (position_ids.flatten() == 0).nonzero().flatten()
    ends = torch.cat([starts[1:], starts.new_tensor([position_ids.numel()])])
    return (ends - starts).tolist()


def use_varlen(causal_lm: nn.Module, config: TrainConfig, device: torch.device) -> bool:
    """Switch a transformers causal LM to `varlen_attention` if the configuration wants it; return whether it did.

    auto: for packs on a CPU. Raises UserError where train.attention=varlen cannot be had.
    """
    if config.attention == "sdpa" or (config.attention == "auto" and not (config.packing and device.type == "cpu")):
        return False
    if reason := unsupported(causal_lm):
        if config.attention == "varlen":
            raise UserError(
                f"train.attention=varlen does not support {type(causal_lm).__name__}",
                got=reason,
                fix="set train.attention=auto",
            )
        return False
    from transformers import AttentionInterface

    # Not a decorator: that would import torch's compiler, 1 s, wherever this file is imported. transformers has imported it.
    AttentionInterface.register(NAME, torch.compiler.disable(varlen_attention, reason="packs differ in the number of samples"))
    causal_lm.set_attn_implementation(NAME)
    return True


def unsupported(causal_lm: Any) -> str:
    """Name what of a model's attention `varlen_attention` does not compute; empty = nothing."""
    settings, body = causal_lm.config.get_text_config(), causal_lm.get_decoder()
    if causal_lm.config.is_encoder_decoder or not takes_any_attention(causal_lm):
        return "its attention cannot be exchanged"
    parameters = inspect.signature(body.forward).parameters
    if "position_ids" not in parameters or not any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
        return "its decoder takes no position_ids, or no further arguments"
    if named := [name for name in UNSUPPORTED if getattr(settings, name, None)]:
        return ", ".join(named)
    if kinds := set(getattr(settings, "layer_types", None) or ()) - KINDS_OF_LAYERS:
        return f"layers of the kinds {', '.join(sorted(kinds))}"
    return "attention sinks" if any(name.endswith("sinks") for name, _ in causal_lm.named_parameters()) else ""
