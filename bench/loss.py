"""The loss alone against what a user would take instead: time, peak memory, and how far from the matrix products it is.

    python bench/loss.py [--tokens 4096 --vocabulary 49152 --width 576 --dtypes float32,bfloat16 --threads 2]

Forward and backward, each contestant in a process of its own: the shortest of several times, and the high-water mark of the
resident set over what the inputs take. All are asked for the sum over the tokens, ours with a different alpha for each.
The floor is what cannot be left out: the three matrix products, into buffers that exist already, and nothing else.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from alone import best_seconds, peak_bytes, reset_peak, run_alone
from common import report
from torch import Tensor

from ual_ray.train.loss import smoothed_linear_cross_entropy

REPEATS = 5
OURS = "ours, alpha per token"
FULL = "F.cross_entropy(label_smoothing=0.1), full float32 logits"
ROUNDED = "the same, logits left in 16 bits"
CHUNKED = "F.linear_cross_entropy, chunked, no smoothing"
FLOOR = "floor: the three matrix products"


def ours(hidden: Tensor, weight: Tensor, labels: Tensor, alpha: Tensor) -> Tensor:
    """Sum with one alpha per token."""
    return smoothed_linear_cross_entropy(hidden, weight, labels, alpha)


def full_logits(hidden: Tensor, weight: Tensor, labels: Tensor, alpha: Tensor) -> Tensor:
    """Sum with the same alpha for all tokens; in float32, as transformers makes its logits for the loss."""
    return F.cross_entropy((hidden @ weight.T).float(), labels, reduction="sum", label_smoothing=0.1)


def rounded_logits(hidden: Tensor, weight: Tensor, labels: Tensor, alpha: Tensor) -> Tensor:
    """Sum with logits and their gradients in bfloat16: less memory, and a loss of two or three digits."""
    return F.cross_entropy(hidden @ weight.T, labels, reduction="sum", label_smoothing=0.1)


def chunked(hidden: Tensor, weight: Tensor, labels: Tensor, alpha: Tensor) -> Tensor:
    """Sum without smoothing: torch's chunks do without it or not at all."""
    options = torch.nn.LinearCrossEntropyOptions()
    return F.linear_cross_entropy(hidden, weight, labels, reduction="sum", options=options)


CONTESTANTS = {OURS: ours, FULL: full_logits, ROUNDED: rounded_logits, CHUNKED: chunked}


def products(hidden: Tensor, weight: Tensor, dtype: torch.dtype) -> Callable[[], Any]:
    """Give the three products, [512, H] at a time, in `dtype`."""
    hidden, weight = hidden.detach().to(dtype), weight.detach().to(dtype)
    logits = torch.empty(512, len(weight), dtype=dtype)
    d_hidden, d_weight = torch.empty_like(hidden), torch.empty_like(weight)

    def run() -> None:
        for rows in range(0, len(hidden), 512):
            h = hidden[rows : rows + 512]
            z = torch.mm(h, weight.T, out=logits[: len(h)])
            torch.mm(z, weight, out=d_hidden[rows : rows + 512])
            torch.mm(z.T, h, out=d_weight)

    return run


def contest(name: str, dtype: str, tokens: int, vocabulary: int, width: int, threads: int) -> dict[str, Any]:
    """Measure one contestant, in its own process."""
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    kind = getattr(torch, dtype)
    hidden = torch.randn(tokens, width, generator=generator).to(kind).requires_grad_()
    weight = (torch.randn(vocabulary, width, generator=generator) / math.sqrt(width)).to(kind).requires_grad_()
    labels = torch.randint(vocabulary, (tokens,), generator=generator)
    alpha = 0.2 * torch.rand(tokens, generator=generator)
    value: float | str = "-"
    if name == FLOOR:
        # Whichever arithmetic is faster here may be used: bfloat16 goes into float32 without loss.
        run = min((products(hidden, weight, to) for to in {kind, torch.float32}), key=lambda run: best_seconds(run, 1))
    else:

        def run() -> None:
            nonlocal value
            hidden.grad = weight.grad = None
            loss = CONTESTANTS[name](hidden, weight, labels, alpha)
            loss.backward()
            value = loss.item() / tokens

        # What is imported or compiled on the first call is not the loss's memory.
        CONTESTANTS[name](hidden[:64], weight, labels[:64], alpha[:64]).backward()
        hidden.grad = weight.grad = None

    before = reset_peak()
    run()
    memory = peak_bytes() - before
    return {"seconds": best_seconds(run, REPEATS), "peak over the inputs (MB)": memory / 2**20, "loss per token": value}


def main() -> None:
    """Run all contestants one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--vocabulary", type=int, default=49152)
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    sizes = (options.tokens, options.vocabulary, options.width, options.threads)
    gigaflop = 6 * options.tokens * options.vocabulary * options.width / 1e9
    rows: list[dict[str, Any]] = []
    ratios: dict[str, tuple[float, str]] = {}
    for dtype in options.dtypes.split(","):
        names = [name for name in (*CONTESTANTS, FLOOR) if name != ROUNDED or dtype != "float32"]
        found = {name: run_alone(contest, name, dtype, *sizes) for name in names}
        rows += [{"dtype": dtype, "": name, **row, "GFLOP/s": gigaflop / row["seconds"]} for name, row in found.items()]
        mine, memory = found[OURS], "peak over the inputs (MB)"
        ratios |= {
            f"{dtype}: time over full logits": (mine["seconds"] / found[FULL]["seconds"], "<= 1.0"),
            f"{dtype}: peak memory over full logits": (mine[memory] / found[FULL][memory], "<= 0.15"),
            **(
                {f"{dtype}: peak memory over logits in 16 bits": (mine[memory] / found[ROUNDED][memory], "-")}
                if ROUNDED in found
                else {}
            ),
            f"{dtype}: time over torch's chunks": (mine["seconds"] / found[CHUNKED]["seconds"], "<= 0.7"),
            f"{dtype}: time over the floor": (mine["seconds"] / found[FLOOR]["seconds"], "1 is the least"),
        }
    report("loss", rows, ratios, **vars(options))


if __name__ == "__main__":
    main()
