"""Losses that weight each token by what the model gives it: w (l + alpha (z_y - q.z)), with no gradient through w. Pure.

Each function takes nll [n] (nats) and probabilities [n, V] of the tokens, both detached, and its strength, and returns w [n].
They are rivals of uncertainty-aware smoothing that need no elicitor: the weight follows the model in training.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ual_ray.config.registry import LOSSES

TokenLoss = Callable[[Tensor, Tensor], Tensor]
# Of EAFT: the entropy among so many of the most likely tokens, by its maximum, log 20 (the paper's 3).
TOP = 20


def token_loss(name: str, strength: float | None) -> TokenLoss | None:
    """Return the weights of a loss by name; None for plain cross-entropy, which needs no pass over the probabilities."""
    if name == "sft":
        return None
    return partial(LOSSES[name], strength=strength) if strength is not None else LOSSES[name]


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
