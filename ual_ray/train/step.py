"""One optimizer step and one validation pass, the same on one rank or many: sums first, division by global counts."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule

from ual_ray.config import TrainConfig
from ual_ray.train.batches import Sample, Step, collate, plan_steps
from ual_ray.train.model import ForwardSums, SmoothedCausalLM

Metrics = dict[str, float]


class NonFiniteError(RuntimeError):
    """The loss or the gradient is not a number; nothing was applied to the weights."""


def make_optimizer(model: torch.nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW; only matrices decay, as norms and biases have no scale to shrink."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.adam_beta1, config.adam_beta2))


def train_step(
    model: SmoothedCausalLM,
    optimizer: torch.optim.Optimizer,
    step: Step,
    samples: Sequence[Sample],
    learning_rate: float,
    max_grad_norm: float,
    device: torch.device,
) -> Metrics:
    """Accumulate this rank's micro-batches, clip, update; return the step's global metrics.

    The loss is summed over tokens and divided by the step's number of target tokens over ALL ranks and micro-batches, so
    1 x 8 = 8 x 1 = 2 ranks x 4. Raises NonFiniteError before the update.
    """
    started = time.monotonic()
    target_tokens = sum(samples[row].target_tokens for row in step.rows)
    model.train()
    sums = backward(model, step.micro_batches[dist.get_rank()], samples, target_tokens, device)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    norm = global_norm(torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm))
    metrics = averages(sums)
    if not (math.isfinite(metrics["smoothed_loss"]) and math.isfinite(norm)):
        ids = [samples[row].id for row in step.rows]
        raise NonFiniteError(
            f"loss {metrics['smoothed_loss']}, gradient norm {norm}: stopped before the update; the rows of the step: {ids}. "
            "Lower train.learning_rate, or look at these rows."
        )
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    seconds = time.monotonic() - started
    tokens = sum(len(samples[row].input_ids) for row in step.rows)
    return metrics | {
        "learning_rate": learning_rate,
        "grad_norm": norm,
        "tokens": float(tokens),
        "tokens_per_second": tokens / seconds,
    }


def backward(
    model: SmoothedCausalLM,
    micro_batches: Sequence[Sequence[int]],
    samples: Sequence[Sample],
    target_tokens: int,
    device: torch.device,
) -> torch.Tensor:
    """Run forward and backward over micro-batches; gradients travel once, after the last. Returns local sums, [6]."""
    sums = torch.zeros(len(ForwardSums._fields), dtype=torch.float64, device=device)
    for position, rows in enumerate(micro_batches):
        if isinstance(model, FSDPModule):
            model.set_requires_gradient_sync(position == len(micro_batches) - 1)
        forward: ForwardSums = model(collate([samples[row] for row in rows]).to(device))
        # A step without targets has gradients of 0, not of 0/0.
        (forward.loss / max(1, target_tokens)).backward()
        sums += torch.stack([value.detach().double() for value in forward])
    return sums


@torch.no_grad()
def validate(model: SmoothedCausalLM, samples: Sequence[Sample], config: TrainConfig, device: torch.device) -> Metrics:
    """Measure the unsmoothed NLL per target token over all validation rows, in nats; empty when there are none."""
    if not samples:
        return {}
    model.eval()
    (step,) = plan_steps(
        [len(sample.input_ids) for sample in samples],
        epochs=1,
        global_batch_size=len(samples),
        micro_batch_size=config.micro_batch_size,
        world_size=dist.get_world_size(),
        seed=0,
    )
    sums = torch.zeros(len(ForwardSums._fields), dtype=torch.float64, device=device)
    for rows in step.micro_batches[dist.get_rank()]:
        forward: ForwardSums = model(collate([samples[row] for row in rows]).to(device))
        sums += torch.stack([value.double() for value in forward])
    metrics = averages(sums)
    return {"validation_nll": metrics["nll"], "validation_top1": metrics["top1"]}


def averages(local_sums: torch.Tensor) -> Metrics:
    """Add the sums of all ranks and divide by the global number of target tokens."""
    total = local_sums.clone()
    dist.all_reduce(total)
    sums = ForwardSums(*total.tolist())
    count: Any = sums.target_tokens
    return {
        "nll": float(sums.nll) / max(1, count),
        "smoothed_loss": float(sums.loss) / max(1, count),
        "smoothing": float(sums.smoothing) / max(1, count),
        "top1": float(sums.top1) / max(1, count),
        "mean_alpha": float(sums.alpha) / max(1, count),
        "target_tokens": float(count),
    }


def global_norm(norm: torch.Tensor) -> float:
    """Read a gradient norm that FSDP may have left sharded."""
    whole: Any = norm
    return float(whole.full_tensor() if hasattr(whole, "full_tensor") else whole)
