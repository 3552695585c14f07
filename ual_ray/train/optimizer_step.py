"""One optimizer step and one validation pass, independent of the number of ranks: sums divided by global counts.

Learning rates have a linear warm-up, then the decay of `train.schedule` to a floor.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule

from ual_ray.config import TrainConfig
from ual_ray.train.batches import Batch
from ual_ray.train.compat_torch import return_freed_memory
from ual_ray.train.metrics import Metrics, averages
from ual_ray.train.model import SUMS, ForwardSums, SmoothedCausalLM
from ual_ray.train.sharding import reshard

# By train.schedule: the share of the way from floor to peak that is left, after a share of the steps behind the warm-up.
# Warmup-stable-decay (arXiv 2404.06395) stays at the peak, and decays over the last steps: see `learning_rate_share`.
DECAYS: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
    "wsd": lambda progress: 1.0 - progress,
}


def learning_rate_share(step: int, total_steps: int, config: TrainConfig) -> float:
    """Share of the peak learning rate at optimizer step `step`, counted from 0; in [0, 1]."""
    warmup = round(config.warmup_share * total_steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    start = warmup
    if config.schedule == "wsd":
        start = max(warmup, total_steps - round(config.decay_share * total_steps))
    progress = (step - start) / max(1, total_steps - start)
    floor = config.min_learning_rate_share
    return floor + (1 - floor) * DECAYS[config.schedule](min(1.0, max(0.0, progress)))


class NonFiniteError(RuntimeError):
    """The loss or the gradient is not finite; the weights were not updated. `votes`: as `train_step` returns them."""

    def __init__(self, message: str, votes: list[float]) -> None:
        """Take the values, and the ranks' summed votes."""
        super().__init__(message)
        self.votes = votes


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; weight decay applies only to matrices, not to norms and biases."""
    reshard(model)
    parameters = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for name, p in parameters if _decays(name, p)], "weight_decay": config.weight_decay},
        {"params": [p for name, p in parameters if not _decays(name, p)], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.adam_beta1, config.adam_beta2), fused=True)


def _decays(name: str, parameter: nn.Parameter) -> bool:
    # Norms are stacked by head (Cohere's), biases by expert (GPT-OSS's): matrices by shape alone.
    *_, module, own = ["", *name.split(".")]
    return parameter.ndim >= 2 and not own.endswith("bias") and "norm" not in module


def train_step(
    model: SmoothedCausalLM,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[Batch],
    target_tokens: int,
    learning_rate: float,
    max_grad_norm: float,
    device: torch.device,
    votes: Sequence[float] = (),
) -> tuple[Metrics, list[float]]:
    """Accumulate this rank's micro-batches, clip, update; return the step's global metrics and the ranks' summed votes.

    target_tokens: of the step, over ALL ranks and micro-batches. The loss is summed over tokens and divided by it, so
    1 x 8 = 8 x 1 = 2 ranks x 4. Raises NonFiniteError, on every rank and before the update.
    """
    model.train()
    passes = backward(model, batches, target_tokens, device)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    total: Any = nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
    # FSDP may have left it sharded.
    norm = float(total.full_tensor() if hasattr(total, "full_tensor") else total)
    metrics, (positions, *counted) = reduce(passes, [sum(batch.input_ids.numel() for batch in batches), *votes])
    metrics |= {"learning_rate": learning_rate, "grad_norm": norm, "positions": positions}
    if not (math.isfinite(metrics["smoothed_loss"]) and math.isfinite(norm)):
        raise NonFiniteError(f"loss {metrics['smoothed_loss']}, gradient norm {norm}", counted)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return metrics, counted


def backward(model: SmoothedCausalLM, batches: Sequence[Batch], target_tokens: int, device: torch.device) -> list[ForwardSums]:
    """Run forward and backward over this rank's micro-batches; return their sums, detached.

    Gradients are reduced over the ranks that share a replica after each, or only after the last if the model may keep them
    unsharded until then; between replicas always after the last.
    """
    last = len(batches) - 1
    passes = []
    for position, batch in enumerate(batches):
        if isinstance(model, FSDPModule):
            model.set_requires_gradient_sync(position == last or not model.holds_gradients)
            model.set_requires_all_reduce(position == last)
        forward: ForwardSums = model(batch.to(device))
        # Avoids 0/0: a step without targets has gradients of 0.
        (forward.loss / max(1, target_tokens)).backward()
        return_freed_memory()
        passes.append(ForwardSums(forward.loss.detach(), forward.by_bin))
    return passes


@torch.no_grad()
def validate(model: SmoothedCausalLM, batches: Iterable[Batch], device: torch.device) -> Metrics:
    """Measure validation micro-batches over all ranks, per target token: NLL and smoothed loss (nats), and top-1 accuracy.

    The smoothed loss is what training minimizes, at the mean alpha of the trained tokens; it decides which step is the best.
    The NLL would decide against smoothing: a smoothed model that fits perfectly has a higher one.
    """
    model.eval()
    passes = [model(batch.to(device)) for batch in batches]
    reshard(model)
    metrics, _ = reduce(passes)
    names = [name for name in metrics if name.split("/")[0] in ("nll", "top1", "smoothed_loss")]
    return {f"validation_{name}": metrics[name] for name in names}


def reduce(passes: Sequence[ForwardSums], counts: Sequence[float] = ()) -> tuple[Metrics, list[float]]:
    """Sum the micro-batches and counts of all ranks in one all-reduce; return averages per target token, and the counts."""
    loss, by_bin = (torch.stack([one.double() for one in of_passes]).sum(0) for of_passes in zip(*passes, strict=True))
    vector = torch.cat([loss.view(1), by_bin.flatten(), loss.new_tensor(counts)])
    dist.all_reduce(vector)
    values, end = vector.tolist(), 1 + by_bin.numel()
    rows = [values[at : at + len(SUMS)] for at in range(1, end, len(SUMS))]
    return averages(values[0], rows, SUMS), values[end:]
