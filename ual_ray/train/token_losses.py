"""Losses that weight each token by what the model gives it: w (l + alpha (z_y - q.z)), with no gradient through w. Pure.

Each function takes nll [n] (nats) and probabilities [n, V] of the tokens, both detached, and its strength, and returns w [n].
They are rivals of uncertainty-aware smoothing that need no elicitor: the weight follows the model in training.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ual_ray.config import TrainConfig
from ual_ray.config.registry import LOSSES
from ual_ray.errors import UserError

TokenLoss = Callable[[Tensor, Tensor], Tensor]
# The tokens and the vocabulary of the losses' trial.
TRIED = (5, 1000)
# Of EAFT: the entropy among so many of the most likely tokens, by its maximum, log 20 (the paper's 3).
TOP = 20


def token_loss(name: str, strength: float | None) -> TokenLoss | None:
    """Return the weights of a loss by name; None for plain cross-entropy, which needs no pass over the probabilities.

    What a loss of another package returns is checked at every call, without waiting for the device. Raises UserError.
    """
    if name == "sft":
        return None
    found = partial(LOSSES[name], strength=strength) if strength is not None else LOSSES[name]
    return found if LOSSES.is_own(name) else partial(_checked, name, found)


def check_token_loss(train: TrainConfig) -> None:
    """Call a loss of another package with made-up tokens. Raises UserError where its weights cannot be used."""
    if LOSSES.is_own(train.loss):
        return
    loss = token_loss(train.loss, train.loss_strength)
    assert loss is not None
    logits = torch.linspace(-3, 3, math.prod(TRIED)).reshape(TRIED)
    probabilities, labels = logits.softmax(1), torch.arange(TRIED[0])
    nll = -probabilities.log()[torch.arange(TRIED[0]), labels]
    given = nll.clone(), probabilities.clone()
    with LOSSES.calling(train.loss), torch.no_grad():
        weights = loss(*given)
    if not (torch.isfinite(weights) & (weights >= 0)).all():
        raise _unusable(train.loss, f"weights {weights.tolist()} of tokens with NLL {nll.tolist()}")
    if not (torch.equal(given[0], nll) and torch.equal(given[1], probabilities)):
        raise _unusable(train.loss, "it changed the NLL or the probabilities that it was given")


def _checked(name: str, loss: TokenLoss, nll: Tensor, probabilities: Tensor) -> Tensor:
    weights = loss(nll, probabilities)
    if not isinstance(weights, Tensor):
        raise _unusable(name, f"{type(weights).__name__} {weights!r:.80}")
    if weights.shape != nll.shape or not weights.is_floating_point() or weights.device != nll.device:
        raise _unusable(name, f"a tensor of shape {[*weights.shape]}, {weights.dtype}, on {weights.device}")
    return weights


def _unusable(name: str, got: str) -> UserError:
    return UserError(
        f"train.loss: the loss '{name}' of another package gives no weights of tokens",
        got=got,
        expected="a new tensor [n] of finite numbers of 0 or above, from (nll [n], probabilities [n, V], strength)",
        fix=f"correct {LOSSES.where(name)}",
    )


def sft(nll: Tensor, probabilities: Tensor, strength: float = 1.0) -> Tensor:
    """Weigh all tokens alike."""
    return torch.ones_like(nll)


def dft(nll: Tensor, probabilities: Tensor, strength: float = 1.0) -> Tensor:
    """Weigh by p ** strength, p the label's probability: dynamic fine-tuning (arXiv 2508.05629) at strength 1."""
    return torch.exp(-strength * nll)


def prior_leaning(nll: Tensor, probabilities: Tensor, strength: float = 0.5) -> Tensor:
    """Weigh by p ** strength, which gives the gradient of (1 - p ** a) / a (arXiv 2510.00526)."""
    return torch.exp(-strength * nll)


def eaft(nll: Tensor, probabilities: Tensor, strength: float = 1.0) -> Tensor:
    """Weigh by (H / log 20) ** strength, H the entropy of the softmax over the 20 largest logits: EAFT (arXiv 2601.02151)."""
    largest = probabilities.topk(min(TOP, probabilities.shape[1]), dim=1).values
    largest = largest / largest.sum(1, keepdim=True)
    entropy = -(largest * largest.clamp_min(torch.finfo(largest.dtype).tiny).log()).sum(1)
    return (entropy / math.log(TOP)).clamp(0, 1).pow(strength)


def profit(nll: Tensor, probabilities: Tensor, strength: float = 0.1) -> Tensor:
    """Train only on tokens whose label has a probability of at least `strength`: ProFit (arXiv 2601.09195)."""
    return (nll <= -math.log(strength)).to(nll.dtype)
