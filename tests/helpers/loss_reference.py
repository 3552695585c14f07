"""The loss by its definition, with V-sized targets in float64, and inputs that reach every branch of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ual_ray.train.token_losses import eaft, prior_leaning

IGNORE = -100
OPTIONS = {
    "plain": {},
    "bias": {"bias": True},
    "padding": {"vocab_size": 17},
    "softcap": {"softcap": 2.5},
    "z_loss": {"z_loss": 0.02},
    "padding and bias": {"vocab_size": 17, "bias": True},
    "token weights": {"token_weight": True},
    "prior": {"prior": True},
    "prior, padding and bias": {"prior": True, "vocab_size": 17, "bias": True},
    "prior and softcap": {"prior": True, "softcap": 2.5},
    "prior per token": {"prior_hidden": True},
    "prior per token, padding and bias": {"prior_hidden": True, "vocab_size": 17, "bias": True},
    "prior per token, a head of its own": {"prior_hidden": True, "prior_weight": True},
    "prior per token, a head of its own, and everything": {
        **{"prior_hidden": True, "prior_weight": True, "vocab_size": 17, "bias": True, "softcap": 2.5, "z_loss": 0.02},
        **{"token_weight": True, "token_loss": eaft},
    },
    "prior per token and everything": {
        **{"prior_hidden": True, "vocab_size": 17, "bias": True, "softcap": 2.5, "z_loss": 0.02, "token_weight": True},
        "token_loss": prior_leaning,
    },
    "token loss": {"token_loss": prior_leaning},
    "token loss, weights, prior and softcap": {"token_loss": eaft, "token_weight": True, "prior": True, "softcap": 2.5},
    "everything": {"vocab_size": 17, "bias": True, "softcap": 2.5, "z_loss": 0.02, "token_weight": True, "prior": True},
}
CONSTANTS = ("prior_hidden", "prior_weight", "prior_bias")
all_options = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())


def make_inputs(
    tokens: int = 11,
    width: int = 5,
    vocabulary: int = 23,
    *,
    vocab_size: int | None = None,
    bias: bool = False,
    token_weight: bool = False,
    prior: bool = False,
    prior_hidden: bool = False,
    prior_weight: bool = False,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    **options: Any,
) -> dict[str, Any]:
    """Arguments of the loss: every third token is ignored, alphas differ by token and include 0 and 1, weights include 0."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, width, generator=generator, dtype=torch.float64)
    weight = torch.randn(vocabulary, width, generator=generator, dtype=torch.float64)
    labels = torch.randint(vocab_size or vocabulary, (tokens,), generator=generator)
    labels[2::3] = IGNORE
    alpha = torch.rand(tokens, generator=generator, dtype=torch.float64)
    alpha[:1], alpha[1:2] = 0.0, 1.0
    offset = torch.randn(vocabulary, generator=generator, dtype=torch.float64) if bias else None
    given = None
    if token_weight:
        given = 3 * torch.rand(tokens, generator=generator, dtype=torch.float64)
        given[3:4] = 0.0
    towards = None
    if prior:
        towards = torch.rand(vocabulary, generator=generator, dtype=torch.float64)
        towards[vocab_size or vocabulary :] = 0.0
        towards[1 : 2 if (vocab_size or vocabulary) > 1 else 1] = 0.0
        towards /= towards.sum()
    before = torch.randn(tokens, width, generator=generator, dtype=torch.float64).to(dtype) if prior_hidden else None
    own = dict[str, Tensor | None](prior_weight=None, prior_bias=None)
    if prior_weight:
        own["prior_weight"] = torch.randn(vocabulary, width, generator=generator, dtype=torch.float64).to(dtype)
        own["prior_bias"] = torch.randn(vocabulary, generator=generator, dtype=torch.float64).to(dtype) if bias else None
    inputs = {"hidden": hidden, "weight": weight, "bias": offset}
    leaves = {name: None if t is None else t.to(dtype).requires_grad_() for name, t in inputs.items()}
    constants = {"labels": labels, "alpha": alpha, "token_weight": given, "prior": towards, "prior_hidden": before}
    return {**leaves, **constants, **own, "vocab_size": vocab_size, **options}


def as_float64(inputs: dict[str, Any]) -> dict[str, Any]:
    """Copies of the same values, as new leaves."""
    leaves = {"hidden", "weight", "bias"}
    return {
        name: value.detach().double().requires_grad_() if name in leaves and value is not None else value
        for name, value in inputs.items()
    } | {name: None if inputs[name] is None else inputs[name].double() for name in CONSTANTS}


def brute_force(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    alpha: Tensor,
    *,
    bias: Tensor | None = None,
    token_weight: Tensor | None = None,
    prior: Tensor | None = None,
    prior_hidden: Tensor | None = None,
    prior_weight: Tensor | None = None,
    prior_bias: Tensor | None = None,
    vocab_size: int | None = None,
    softcap: float | None = None,
    z_loss: float = 0.0,
    token_loss: Any = None,
    **_: Any,
) -> Tensor:
    """Loss of every token by the definition: cross-entropy against (1 - alpha) one-hot + alpha q, q = 1 / K by default."""

    def logits_of(states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        raw = (states @ weight.T + (0 if bias is None else bias))[:, :vocab_size]
        return raw if softcap is None else softcap * torch.tanh(raw / softcap)

    logits = logits_of(hidden, weight, bias)
    size = logits.shape[1]
    one_hot = F.one_hot(labels.clamp(min=0), size).to(logits.dtype)
    towards = logits.new_full((size,), 1 / size) if prior is None else prior[:vocab_size].to(logits.dtype)
    if prior_hidden is not None:
        head = (weight, bias) if prior_weight is None else (prior_weight, prior_bias)
        towards = logits_of(prior_hidden, *head).softmax(1).detach()
    wanted = (1 - alpha)[:, None] * one_hot + alpha[:, None] * towards
    losses = -(wanted * logits.log_softmax(1)).sum(1) + z_loss * logits.logsumexp(1).square()
    if token_loss is not None:
        nll = F.cross_entropy(logits, labels.clamp(min=0), reduction="none")
        losses = losses * token_loss(nll.detach(), logits.detach().softmax(1))
    return (losses if token_weight is None else token_weight * losses).where(labels != IGNORE, 0.0)


def gradients(loss: Tensor, inputs: dict[str, Any]) -> dict[str, Tensor]:
    """Gradients of the loss by whatever requires one."""
    leaves = {name: t for name, t in inputs.items() if isinstance(t, Tensor) and t.requires_grad}
    return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor], **tolerance: float) -> None:
    """Compare gradients by name."""
    torch.testing.assert_close(actual, expected, check_dtype=False, **tolerance)


class Recorder(TorchDispatchMode):
    """Sizes of all tensors that any operation returns, and the names of the operations."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0
        self.operations: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.operations.append(func.overloadpacket.__name__)
        self.largest = max([self.largest, *(t.numel() for t in tree_leaves(result) if isinstance(t, Tensor))])
        return result

    @property
    def products(self) -> int:
        return sum(name in ("mm", "addmm_", "addmm") for name in self.operations)
