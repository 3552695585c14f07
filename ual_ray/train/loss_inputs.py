"""What the loss is given, and what is refused before any work is done on it.

Labels are smoothed towards a distribution over the vocabulary: uniform, unigram, or from a file. UAL (arXiv 2406.04854) smooths
towards the uniform distribution, which gives every token, however absurd, the same share. The frequencies of the training
responses cost the loss no more (see `loss.smoothed_linear_cross_entropy`).
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ual_ray.config import TrainConfig
from ual_ray.errors import UserError
from ual_ray.train.token_store import TokenStore

# How far a prior's sum may be from 1.
PRIOR_TOLERANCE = 1e-3


class Inputs(NamedTuple):
    """The loss's tensors; `smoothed_linear_cross_entropy` explains each."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    labels: Tensor
    alpha: Tensor
    token_weight: Tensor | None
    prior: Tensor | None
    prior_hidden: Tensor | None
    prior_weight: Tensor | None
    prior_bias: Tensor | None


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
    hidden, weight, prior_hidden = inputs.hidden, inputs.weight, inputs.prior_hidden
    _require(hidden.ndim == 2, "shape of hidden", list(hidden.shape), "[N, H]")
    tokens, width = hidden.shape
    _require(weight.ndim == 2 and weight.shape[1] == width, "shape of weight", list(weight.shape), f"[V, {width}]")
    size = len(weight) if options.vocab_size is None else options.vocab_size
    _require(1 <= size <= len(weight), "vocab_size", size, f"1 to V = {len(weight)}")
    lengths = {"labels": tokens, "alpha": tokens, "token_weight": tokens, "bias": len(weight), "prior": len(weight)}
    given = {name: tensor for name in lengths if (tensor := getattr(inputs, name)) is not None}
    for name, tensor in given.items():
        _require(tensor.shape == (lengths[name],), f"shape of {name}", list(tensor.shape), f"[{lengths[name]}]")
        if name in ("alpha", "token_weight", "prior"):
            _require(tensor.is_floating_point(), f"dtype of {name}", tensor.dtype, "a floating-point dtype")
            _require(not tensor.requires_grad, name, "a tensor that requires grad", "a constant")
    same = weight.dtype == hidden.dtype or torch.is_autocast_enabled(hidden.device.type)
    _require(same, "dtype of weight", weight.dtype, f"{hidden.dtype}, as hidden, unless under autocast")
    _require(inputs.labels.dtype == torch.int64, "dtype of labels", inputs.labels.dtype, "torch.int64")
    if prior_hidden is not None:
        _require(prior_hidden.shape == hidden.shape, "shape of prior_hidden", list(prior_hidden.shape), list(hidden.shape))
        _require(not prior_hidden.requires_grad, "prior_hidden", "a tensor that requires grad", "a constant")
        _require(inputs.prior is None, "prior_hidden", "a prior too", "one of both")
    _check_prior_head(inputs)
    softcap, z_loss, chunk_size, reduction = options.softcap, options.z_loss, options.chunk_size, options.reduction
    _require(softcap is None or 0 < softcap < math.inf, "softcap", softcap, "None, or above 0 and finite")
    _require(0 <= z_loss < math.inf, "z_loss", z_loss, "0 or above, and finite")
    _require(chunk_size is None or chunk_size >= 1, "chunk_size", chunk_size, "None, or 1 or above")
    _require(reduction in ("sum", "none"), "reduction", repr(reduction), "'sum' or 'none'")
    _check_values(inputs, options.ignore_index, size)


def _check_prior_head(inputs: Inputs) -> None:
    weight, bias = inputs.prior_weight, inputs.prior_bias
    if weight is not None:
        _require(inputs.prior_hidden is not None, "prior_weight", "no prior_hidden", "the states that it belongs to")
        _require(weight.shape == inputs.weight.shape, "shape of prior_weight", list(weight.shape), list(inputs.weight.shape))
    if bias is not None:
        _require(weight is not None, "prior_bias", "no prior_weight", "the weight that it belongs to")
        _require(bias.shape == inputs.weight.shape[:1], "shape of prior_bias", list(bias.shape), f"[{len(inputs.weight)}]")
    for name, tensor in (("prior_weight", weight), ("prior_bias", bias)):
        _require(tensor is None or not tensor.requires_grad, name, "a tensor that requires grad", "a constant")


def _check_values(inputs: Inputs, ignore_index: int, size: int) -> None:
    labels, alpha, weight, prior = inputs.labels, inputs.alpha, inputs.token_weight, inputs.prior
    legal_labels = ((labels >= 0) & (labels < size)) | (labels == ignore_index)
    checks = [
        ("labels", labels, legal_labels, f"0 to {size - 1}, or ignore_index = {ignore_index}"),
        ("alpha", alpha, (alpha >= 0) & (alpha <= 1), "0 to 1"),
    ]
    if weight is not None:
        checks.append(("token_weight", weight, (weight >= 0) & weight.isfinite(), "0 or above, and finite"))
    if prior is not None:
        real = prior[:size].double()
        total = real.sum().view(1)
        checks.append(("prior", real, real >= 0, "0 or above"))
        checks.append(("sum of prior over the vocabulary", total, (total - 1).abs() <= PRIOR_TOLERANCE, "1"))
    # One transfer for all, as each one waits for the GPU.
    if torch.stack([legal.all() for _, _, legal, _ in checks]).all():
        return
    for name, values, legal, expected in checks:
        _require(bool(legal.all()), name, values[~legal][:3].tolist(), expected)


def _require(holds: bool, name: str, got: object, expected: object) -> None:
    if not holds:
        raise ValueError(f"{name}: got {got}; expected {expected}")


def make_prior(config: TrainConfig, store: TokenStore, vocabulary: int) -> Tensor | None:
    """Return train.prior as float32 of [vocabulary]; None for the uniform one, and for one per token (base).

    store: the training rows.

    Raises UserError for a file that does not hold one probability per entry of the vocabulary.
    """
    if config.prior in ("uniform", "base"):
        return None
    if config.prior_file is not None:
        values = read_prior(Path(config.prior_file))
        if len(values) != vocabulary:
            raise UserError(
                "train.prior_file does not fit the model",
                got=f"{len(values)} probabilities in {config.prior_file}",
                expected=f"{vocabulary}, the entries of the model's vocabulary",
                fix="write the file for this model, or set train.prior=uniform",
            )
    else:
        values = store.label_counts(vocabulary).astype(np.float64)
    return torch.from_numpy(values / values.sum()).float()


def read_prior(path: Path) -> np.ndarray:
    """Read a .npy file of probabilities. Raises UserError when it cannot be read or holds no distribution."""
    what = "train.prior_file cannot be used"
    fix = "write it with numpy.save: one probability per entry of the vocabulary"
    try:
        values = np.load(path, allow_pickle=False).astype(np.float64)
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(what, got=f"{path}: {error}", expected="a .npy file", fix=fix) from error
    if values.ndim != 1 or not np.isfinite(values).all() or (values < 0).any():
        raise UserError(what, got=f"shape {values.shape} in {path}", expected="[vocabulary], all values 0 or above", fix=fix)
    if abs(values.sum() - 1) > PRIOR_TOLERANCE:
        raise UserError(what, got=f"a sum of {values.sum():.6g} in {path}", expected="1", fix=fix)
    return values
