"""What the benchmarks of training share: rows with alphas, and some steps of ours, timed, with one process per rank."""

from __future__ import annotations

import argparse
import math
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from alone import peak_bytes
from common import read_rows

from ual_ray.config import TrainConfig
from ual_ray.models.chat import load_renderer
from ual_ray.models.resolve import resolve_model
from ual_ray.train.batches import Batch, Step, StepPlan, collate
from ual_ray.train.compat_torch import reuse_freed_memory, use_large_pages
from ual_ray.train.model import build
from ual_ray.train.optimizer_step import make_optimizer, train_step
from ual_ray.train.sharding import make_mesh
from ual_ray.train.token_store import Sample

LEARNING_RATE = 1e-5
WARM_UP = 1


@dataclass(frozen=True)
class Work:
    """The same for every contestant. `threads`: per process. `steps`: optimizer steps that are timed, after WARM_UP others."""

    model: str
    samples: Sequence[Sample]
    config: TrainConfig
    threads: int
    steps: int

    def with_config(self, **changes: Any) -> Work:
        """Change settings of training."""
        return replace(self, config=TrainConfig(**{**self.config.model_dump(), **changes}))


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the benchmarks that train on real rows."""
    parser.add_argument("--data", required=True)
    parser.add_argument("--rows", type=int, default=150)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=4)


def make_config(options: argparse.Namespace, **changes: Any) -> TrainConfig:
    """Make the training section that `add_options` and the benchmark describe."""
    values = {"dtype": options.dtype, "max_length": options.max_length, "global_batch_size": options.batch}
    return TrainConfig(**{**values, "packing": True, "uncertainty_bins": 0, "epochs": 100, **changes})


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """Name the options for the record, the data file without where it lies here."""
    return vars(options) | {"data": Path(options.data).name}


def real_samples(path: str, count: int, model: str, max_length: int) -> list[Sample]:
    """Render rows of a data file as `ual train` does, with alphas between 0 and 0.3."""
    renderer = load_renderer(resolve_model(model))
    alphas = np.random.default_rng(0).uniform(0, 0.3, count)
    samples = []
    for number, messages in enumerate(read_rows(path, count)):
        rendered = renderer.conversation(messages)
        ids, labels = (np.asarray(values[:max_length], np.int32) for values in (rendered.input_ids, rendered.labels))
        samples.append(Sample(str(number), ids, labels, float(alphas[number])))
    return samples


def random_samples(count: int, length: int, vocabulary: int) -> list[Sample]:
    """Make rows of exactly `length` tokens, of which all but the first are trained on."""
    ids = np.random.default_rng(0).integers(vocabulary, size=(count, length), dtype=np.int32)
    return [Sample(str(number), row, row, 0.1) for number, row in enumerate(ids)]


def run_ranks(work: Work, ranks: int = 1, arms: bool = False) -> list[dict[str, Any]]:
    """Train in one new process per rank, and return what each found."""
    print(f"ours: {ranks} ranks x {work.threads} threads, {work.config.dtype}", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        meeting_point = f"file://{folder}/ranks"
        with ProcessPoolExecutor(ranks, mp_context=multiprocessing.get_context("spawn")) as pool:
            running = [pool.submit(ours, work, rank, ranks, meeting_point, arms) for rank in range(ranks)]
            return [rank.result() for rank in running]


def ours(work: Work, rank: int, ranks: int, meeting_point: str, arms: bool) -> dict[str, Any]:
    """Run one rank: the steps of `ual train` without Ray. `arms`: take every step again with each alpha at 0."""
    use_large_pages()
    reuse_freed_memory()
    torch.set_num_threads(work.threads)
    dist.init_process_group("gloo", init_method=meeting_point, rank=rank, world_size=ranks)
    config, device = work.config, torch.device("cpu")
    model = build(resolve_model(work.model), config, make_mesh(config, device), device)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    optimizer = make_optimizer(model, config)
    lengths = np.asarray([len(sample.input_ids) for sample in work.samples])
    targets = np.asarray([int((sample.labels[1:] >= 0).sum()) for sample in work.samples])
    plan = StepPlan(lengths, targets, config, 0, ranks)
    if len(plan) < WARM_UP + work.steps:
        raise SystemExit(f"the rows make {len(plan)} steps, {WARM_UP + work.steps} are needed")

    def take(step: Step, samples: Sequence[Sample]) -> tuple[float, float]:
        started = time.perf_counter()
        batches = _batches(plan, step, rank, samples, config.packing)
        metrics, _ = train_step(
            model, optimizer, batches, plan.target_tokens(step), LEARNING_RATE, config.max_grad_norm, device
        )
        return time.perf_counter() - started, metrics["nll"]

    unsmoothed = [replace(sample, alpha=0.0) for sample in work.samples]
    seconds, seconds_unsmoothed, nll = [], [], math.nan
    for number in range(WARM_UP + work.steps):
        taken, nll = take(plan[number], work.samples)
        seconds.append(taken)
        if arms:
            seconds_unsmoothed.append(take(plan[number], unsmoothed)[0])
    dist.destroy_process_group()
    timed = range(WARM_UP, WARM_UP + work.steps)
    tokens = sum(plan.tokens(plan[number]) for number in timed)
    total = sum(seconds[number] for number in timed)
    found = {"tokens": tokens, "seconds": total, "tokens/s": tokens / total, "peak (MB)": peak_bytes() / 2**20}
    found |= {"padding": plan.padding_share, "target share": targets.sum() / lengths.sum(), "nll": nll}
    if arms:
        # The step that was least disturbed, of each.
        found["time over SFT"] = min(seconds[WARM_UP:]) / min(seconds_unsmoothed[WARM_UP:])
    return found | {"parameters": parameters}


def _batches(plan: StepPlan, step: Step, rank: int, samples: Sequence[Sample], packed: bool) -> list[Batch]:
    return [
        collate([[samples[row] for row in plan.sequences[number]] for number in micro_batch], packed=packed)
        for micro_batch in step.micro_batches[rank]
    ]


def product_rate(dtype: torch.dtype, size: int = 2048) -> float:
    """Measure this machine's matrix products, in operations per second, with the threads that torch has."""
    from alone import best_seconds

    first, second = (torch.randn(size, size).to(dtype) for _ in range(2))
    out = torch.empty_like(first)
    return 2 * size**3 / best_seconds(lambda: torch.mm(first, second, out=out), 5)
