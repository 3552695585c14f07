"""Training metrics from a step's sums: averages per target token, per uncertainty bin, and device utilization. Pure."""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ual_ray.config import TrainConfig
from ual_ray.models.product_speed import peak_flops
from ual_ray.run.memory import peak_memory

# Names of the columns of a forward pass's sums (`model.SUMS`), each divided by the number of target tokens.
AVERAGES = {"nll": "nll", "smoothing": "smoothing", "top1": "top1", "alpha": "mean_alpha"}
# In the line of a step whose update was skipped, with the value 1; such a line has no losses.
SKIPPED = "skipped_update"
BY_BIN = ("nll", "smoothing", "top1")
# Share of the time that goes to steps, seconds by purpose, and what differs between ranks: see `timing`.
GOODPUT, SECONDS, STRAGGLER = "goodput", "seconds", "slowest_rank_over_median"
HIGHEST_MEMORY, LOWEST_MEMORY = "peak_memory_gib", "lowest_rank_peak_memory_gib"
TOKENS_PER_SECOND, MFU = "tokens_per_second", "mfu"
# What models call the number of experts that a token meets in a layer.
EXPERTS_PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "top_k_experts")
EXPERT = re.compile(r"\.experts\.\d+\.")

logger = logging.getLogger(__name__)

Metrics = dict[str, float]


def averages(loss: float, by_bin: Sequence[Sequence[float]], columns: Sequence[str]) -> Metrics:
    """Divide global sums by the global number of target tokens.

    loss: the smoothed loss with its z-loss, summed, in nats. by_bin: [bins + 1, columns], row 0 the tokens without a bin.
    Returns nats per target token, except `top1` in [0, 1] (higher = better) and `target_tokens`, a count; per bin as
    `nll/uncertainty_bin_1`, 1 = the least uncertain, where the bin has tokens.
    """
    totals = dict(zip(columns, map(sum, zip(*by_bin, strict=True)), strict=True))
    tokens = max(1.0, totals["target_tokens"])
    metrics = {name: totals[column] / tokens for column, name in AVERAGES.items()}
    metrics |= {"smoothed_loss": loss / tokens, "target_tokens": totals["target_tokens"]}
    for number, row in enumerate(by_bin[1:], start=1):
        sums = dict(zip(columns, row, strict=True))
        if sums["target_tokens"]:
            metrics |= {f"{name}/uncertainty_bin_{number}": sums[name] / sums["target_tokens"] for name in BY_BIN}
    return metrics


@dataclass(frozen=True)
class Hardware:
    """The basis of speed metrics: a model's size, and the ranks' peak in operations per second (None = unknown).

    parameters, trained: those that a token meets, which of a mixture of experts are a part.
    """

    parameters: int
    trained: int
    layers: int
    hidden_size: int
    peak_flops: float | None
    device: torch.device

    def flops_per_token(self, length: float) -> float:
        """Floating-point operations of a token's forward and backward pass, by arXiv 2204.02311, appendix B.

        length: of the token's sample, in tokens. Per parameter 2 forward, 2 backward to the inputs, and 2 more if it is
        trained; 12 x layers x hidden size x length for attention. Recomputed activations do not count.
        """
        return 4.0 * self.parameters + 2.0 * self.trained + 12.0 * self.layers * self.hidden_size * length

    def speed(self, tokens: int, samples: int, seconds: float) -> Metrics:
        """Tokens per second over all ranks, without padding; their share of the peak (MFU); this rank's highest memory, GiB."""
        rate = tokens / seconds
        metrics = {"tokens": float(tokens), TOKENS_PER_SECOND: rate, HIGHEST_MEMORY: peak_memory(self.device)}
        if self.peak_flops is not None:
            metrics[MFU] = rate * self.flops_per_token(tokens / max(1, samples)) / self.peak_flops
        return metrics


def hardware(model: nn.Module, settings: TrainConfig, ranks: int, device: torch.device) -> Hardware:
    """Measure a SmoothedCausalLM, sharded or not, and look up the device's peak."""
    text = model.model.config.get_text_config()
    used = next((value for name in EXPERTS_PER_TOKEN if isinstance(value := getattr(text, name, None), int)), None)
    sizes, known = [], True
    for name, parameter in model.named_parameters():
        # transformers holds a layer's experts as one tensor, the experts first; others have a module for each.
        of_experts = ".experts." in name and parameter.ndim > 1
        known &= not of_experts or (used is not None and not EXPERT.search(name))
        met = min(1.0, used / parameter.shape[0]) if of_experts and used else 1.0
        sizes.append((round(parameter.numel() * met), parameter.requires_grad))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    peak = peak_flops(name, settings.dtype, settings.peak_tflops)
    if peak is not None and not known:
        logger.warning("no %s is logged: config.json does not name how many experts a token meets", MFU)
        peak = None
    return Hardware(
        parameters=sum(size for size, _ in sizes),
        trained=sum(size for size, trained in sizes if trained),
        layers=text.num_hidden_layers,
        hidden_size=text.hidden_size,
        peak_flops=None if peak is None else peak * ranks,
        device=device,
    )
