"""The loss on the device at hand: how far from float64, how fast and how large by chunk, and how often the host waits."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from gpu_common import CUDA, DEVICE, Report, best_ms, peak_gb, reset_peak
from torch import Tensor

from ual_ray.train.loss import chunk_rows, smoothed_linear_cross_entropy

# Tokens, width, vocabulary: heads of 7B (Qwen2.5), 4B (Gemma 3) and 1B (Llama 3.2) models.
SHAPES = [(16384, 3584, 152064), (16384, 2560, 262144), (8192, 2048, 128256)]
SMALL_SHAPES = [(256, 64, 1000)]
CHUNK_MIB = (96, 256, 512, 1024, 2048)
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bias, padding and z-loss": {"bias": True, "vocab_size": 4800, "z_loss": 1e-3},
    "soft-cap": {"softcap": 3.0},
}
# Relative errors that rounding explains: of the loss, and of a gradient by its norm.
TOLERANCE = {torch.float32: (1e-5, 1e-4), torch.bfloat16: (3e-3, 1e-2)}


def check_loss(report: Report, small: bool) -> None:
    """Add the parts 'loss accuracy', 'loss host waits' and 'loss speed'."""
    for dtype in TOLERANCE:
        for name, options in OPTIONS.items():
            report.case("loss accuracy", f"{name}, {dtype}", accuracy, dtype, options)
    report.case("loss host waits", "one forward and backward", host_waits)
    for tokens, width, vocabulary in SMALL_SHAPES if small else SHAPES:
        inputs = make_inputs(tokens, width, vocabulary, torch.bfloat16)
        for name, work in contestants(*inputs).items():
            case = f"{tokens} x {width} x {vocabulary}, {name}"
            report.case("loss speed", case, speed, work, *inputs[:2])
        del inputs, work


def make_inputs(tokens: int, width: int, vocabulary: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw hidden states, weights, labels, and an alpha for each."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    hidden = torch.randn(tokens, width, device=DEVICE, generator=generator).to(dtype).requires_grad_()
    weight = (torch.randn(vocabulary, width, device=DEVICE, generator=generator) / width**0.5).to(dtype).requires_grad_()
    labels = torch.randint(0, vocabulary, (tokens,), device=DEVICE, generator=generator)
    return hidden, weight, labels, 0.2 * torch.rand(tokens, device=DEVICE, generator=generator)


def accuracy(dtype: torch.dtype, options: dict[str, Any]) -> dict[str, Any]:
    """Compare loss and gradients, at two chunk sizes, with the definition in float64."""
    hidden, weight, labels, alpha = make_inputs(512, 256, 5000, dtype)
    labels = labels % options.get("vocab_size", 5000)
    labels[::10] = -100
    settings = {**options, "bias": torch.randn(5000, device=DEVICE).to(dtype) if "bias" in options else None}
    exact = hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    expected = definition(*exact, labels, alpha.double(), **settings)
    wanted = torch.autograd.grad(expected, exact)
    found: dict[str, Any] = {}
    for chunk_size in (None, 100):
        loss = smoothed_linear_cross_entropy(hidden, weight, labels, alpha, chunk_size=chunk_size, **settings)
        gradients = torch.autograd.grad(loss, (hidden, weight))
        errors = [float((one - other).norm() / other.norm()) for one, other in zip(gradients, wanted, strict=True)]
        error, (most, most_gradient) = abs(loss.item() / expected.item() - 1), TOLERANCE[dtype]
        found[f"chunk {chunk_size}"] = {"loss": error, "d_hidden": errors[0], "d_weight": errors[1]}
        found["ok"] = found.get("ok", True) and error < most and max(errors) < most_gradient
    return found


def definition(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    alpha: Tensor,
    *,
    bias: Tensor | None = None,
    vocab_size: int | None = None,
    softcap: float | None = None,
    z_loss: float = 0.0,
) -> Tensor:
    """Sum the cross-entropy against (1 - alpha) one-hot + alpha / K, plus the z-loss, from whole logits."""
    logits = hidden @ weight.T if bias is None else hidden @ weight.T + bias
    logits = logits[:, :vocab_size]
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    one_hot = F.one_hot(labels.clamp(min=0), logits.shape[1])
    target = (1 - alpha)[:, None] * one_hot + (alpha / logits.shape[1])[:, None]
    losses = -(target * logits.log_softmax(1)).sum(1) + z_loss * logits.logsumexp(1).square()
    return losses.where(labels >= 0, 0.0).sum()


def host_waits() -> dict[str, Any]:
    """Count how often one forward and backward makes the program wait for the GPU."""
    if not CUDA:
        return {"waits": None}
    hidden, weight, labels, alpha = make_inputs(2048, 512, 32000, torch.bfloat16)
    smoothed_linear_cross_entropy(hidden, weight, labels, alpha).backward()
    always = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            smoothed_linear_cross_entropy(hidden, weight, labels, alpha).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
        torch.set_warn_always(always)
    synchronizing = [warning for warning in caught if "synchroniz" in str(warning.message)]
    waits = [f"{warning.filename.rsplit('/', 1)[-1]}:{warning.lineno}" for warning in synchronizing]
    return {"waits": len(waits), "at": waits}


def contestants(hidden: Tensor, weight: Tensor, labels: Tensor, alpha: Tensor) -> dict[str, Callable[[], Any]]:
    """Name what is timed: the floor, what a user would take instead, and ours by chunk size."""
    tokens, vocabulary = len(hidden), len(weight)
    frozen = weight.detach()

    def ours(chunk_size: int | None, head: Tensor = weight) -> None:
        hidden.grad = weight.grad = None
        smoothed_linear_cross_entropy(hidden, head, labels, alpha, chunk_size=chunk_size).backward()

    def full() -> None:
        hidden.grad = weight.grad = None
        F.cross_entropy((hidden @ weight.T).float(), labels, label_smoothing=0.1, reduction="sum").backward()

    @torch.no_grad()
    def products() -> None:
        for piece in hidden.chunk(8):
            logits = piece @ weight.T
            logits @ weight, logits.T @ piece

    rows = {f"{mib} MiB": mib * 2**20 // (4 * vocabulary) for mib in CHUNK_MIB}
    sweep = {f"ours, {name} = {count} rows": count for name, count in rows.items() if 0 < count < tokens}
    default = f"ours, default = {chunk_rows(tokens, vocabulary, DEVICE.type)} rows"
    return {
        "floor: three products": products,
        "full logits": full,
        **liger(hidden, weight, labels),
        default: lambda: ours(None),
        f"{default}, frozen head": lambda: ours(None, frozen),
        **{name: partial(ours, count) for name, count in sweep.items()},
    }


def liger(hidden: Tensor, weight: Tensor, labels: Tensor) -> dict[str, Callable[[], Any]]:
    """Name Liger's fused loss, where it is installed; its smoothing is one number for all tokens."""
    if not CUDA or find_spec("liger_kernel") is None:
        return {}
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    loss = LigerFusedLinearCrossEntropyLoss(label_smoothing=0.1, reduction="sum")

    def run() -> None:
        hidden.grad = weight.grad = None
        loss(weight, hidden, labels).backward()

    return {"Liger": run}


def speed(work: Callable[[], Any], *leaves: Tensor) -> dict[str, Any]:
    """Time a contestant, and measure its peak memory over the inputs, the gradients among it."""
    for leaf in leaves:
        leaf.grad = None
    before = reset_peak()
    return {"ms": best_ms(work), "peak GB": peak_gb(before)}
