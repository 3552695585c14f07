"""What the loss is given, and what is refused before any work is done on it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

# hidden, weight, bias, labels, alpha, token_weight, prior, prior_hidden
Inputs = tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]
# How far a prior's sum may be from 1.
PRIOR_TOLERANCE = 1e-3


class Options(NamedTuple):
    """How the loss is computed; `smoothed_linear_cross_entropy` explains each."""

    ignore_index: int
    vocab_size: int | None
    softcap: float | None
    z_loss: float
    chunk_size: int | None
    reduction: str
    grad_enabled: bool = False
    matmul_dtype: torch.dtype = torch.float32
    token_loss: Callable[[Tensor, Tensor], Tensor] | None = None


def check(inputs: Inputs, options: Options) -> None:
    """Raise ValueError, with what was given and what is legal, for an argument outside its range."""
    hidden, weight, bias, labels, alpha, token_weight, prior, prior_hidden = inputs
    _require(hidden.ndim == 2, "shape of hidden", list(hidden.shape), "[N, H]")
    tokens, width = hidden.shape
    _require(weight.ndim == 2 and weight.shape[1] == width, "shape of weight", list(weight.shape), f"[V, {width}]")
    size = len(weight) if options.vocab_size is None else options.vocab_size
    _require(1 <= size <= len(weight), "vocab_size", size, f"1 to V = {len(weight)}")
    lengths = {"labels": tokens, "alpha": tokens, "token_weight": tokens, "bias": len(weight), "prior": len(weight)}
    for (name, length), tensor in zip(lengths.items(), (labels, alpha, token_weight, bias, prior), strict=True):
        if tensor is not None:
            _require(tensor.shape == (length,), f"shape of {name}", list(tensor.shape), f"[{length}]")
    same = weight.dtype == hidden.dtype or torch.is_autocast_enabled(hidden.device.type)
    _require(same, "dtype of weight", weight.dtype, f"{hidden.dtype}, as hidden, unless under autocast")
    _require(labels.dtype == torch.int64, "dtype of labels", labels.dtype, "torch.int64")
    for name, tensor in (("alpha", alpha), ("token_weight", token_weight), ("prior", prior)):
        if tensor is not None:
            _require(tensor.is_floating_point(), f"dtype of {name}", tensor.dtype, "a floating-point dtype")
            _require(not tensor.requires_grad, name, "a tensor that requires grad", "a constant")
    if prior_hidden is not None:
        _require(prior_hidden.shape == hidden.shape, "shape of prior_hidden", list(prior_hidden.shape), list(hidden.shape))
        _require(not prior_hidden.requires_grad, "prior_hidden", "a tensor that requires grad", "a constant")
        _require(prior is None, "prior_hidden", "a prior too", "one of both")
    softcap, z_loss, chunk_size, reduction = options.softcap, options.z_loss, options.chunk_size, options.reduction
    _require(softcap is None or 0 < softcap < math.inf, "softcap", softcap, "None, or above 0 and finite")
    _require(0 <= z_loss < math.inf, "z_loss", z_loss, "0 or above, and finite")
    _require(chunk_size is None or chunk_size >= 1, "chunk_size", chunk_size, "None, or 1 or above")
    _require(reduction in ("sum", "none"), "reduction", repr(reduction), "'sum' or 'none'")
    _check_values(labels, alpha, token_weight, prior, options, size)


def _check_values(
    labels: Tensor, alpha: Tensor, token_weight: Tensor | None, prior: Tensor | None, options: Options, size: int
) -> None:
    legal_labels = ((labels >= 0) & (labels < size)) | (labels == options.ignore_index)
    legal_alpha = (alpha >= 0) & (alpha <= 1)
    legal = legal_labels.all() & legal_alpha.all()
    if token_weight is not None:
        legal &= ((token_weight >= 0) & token_weight.isfinite()).all()
    if prior is not None:
        real = prior[:size].double()
        legal &= (real >= 0).all() & ((real.sum() - 1).abs() <= PRIOR_TOLERANCE)
    # One transfer for all, as each one waits for the GPU.
    if legal:
        return
    outside, expected = labels[~legal_labels][:3], f"0 to {size - 1}, or ignore_index = {options.ignore_index}"
    _require(len(outside) == 0, "labels", outside.tolist(), expected)
    _require(bool(legal_alpha.all()), "alpha", alpha[~legal_alpha][:3].tolist(), "0 to 1")
    if token_weight is not None:
        illegal = token_weight[~((token_weight >= 0) & token_weight.isfinite())]
        _require(len(illegal) == 0, "token_weight", illegal[:3].tolist(), "0 or above, and finite")
    if prior is not None:
        _require(bool((prior[:size] >= 0).all()), "prior", "a negative probability", "0 or above")
        _require(False, "sum of prior over the vocabulary", float(prior[:size].double().sum()), "1")


def _require(holds: bool, name: str, got: object, expected: object) -> None:
    if not holds:
        raise ValueError(f"{name}: got {got}; expected {expected}")
