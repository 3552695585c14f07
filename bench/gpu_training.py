"""Training on the device at hand: compared with a CPU in float32, timed, measured, killed, resumed, exported and reloaded."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs
import torch
import torch.distributed as dist
from gpu_common import CUDA, DEVICE, GB, Report, peak_gb, reset_peak, sync
from torch.profiler import ProfilerActivity, profile

from ual_ray import columns as col
from ual_ray.config import Config, TrainConfig
from ual_ray.run.metrics_log import read_metrics
from ual_ray.train import loop
from ual_ray.train.checkpoint import Checkpoints
from ual_ray.train.estimate.devices import find_device
from ual_ray.train.estimate.dry_run import MicroBatch, Model
from ual_ray.train.estimate.state import PROCESS_BYTES
from ual_ray.train.metrics import Metrics, hardware
from ual_ray.train.model import SmoothedCausalLM, build
from ual_ray.train.optimizer_step import make_optimizer, train_step
from ual_ray.train.progress import Progress
from ual_ray.train.sharding import make_mesh
from ual_ray.train.token_store import TokenStore

CPU = torch.device("cpu")
STEPS, WARM_UP = 5, 2
# Of the NLL of a step in bfloat16, over that on a CPU in float32.
TOLERANCE = 0.01
KILL_AT, KILLED_STEPS = 3, 6
KERNELS = 15
LORA = {"rank": 16}


@dataclass(frozen=True)
class Setup:
    """A random Llama, rows of up to `longest` tokens, and the batches and learning rate that it is trained with."""

    model: dict[str, Any]
    rows: int
    longest: int
    packed: dict[str, int]
    padded: dict[str, int]
    learning_rate: float

    def config(self, packing: bool, checkpointing: bool | str, lora: bool, **changes: Any) -> TrainConfig:
        """Make the settings of one case."""
        values = {"num_workers": 1, "dtype": "bfloat16", "gpus_per_worker": int(CUDA), "uncertainty_bins": 0, "epochs": 10}
        values |= {
            "learning_rate": self.learning_rate,
            "packing": packing,
            "activation_checkpointing": checkpointing,
            "lora": LORA if lora else {},
        }
        return TrainConfig(**{**values, **(self.packed if packing else self.padded), **changes})


TINY = Setup(
    {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
    rows=200,
    longest=60,
    packed={"max_length": 128, "global_batch_size": 4, "micro_batch_size": 2},
    padded={"max_length": 128, "global_batch_size": 8, "micro_batch_size": 4},
    learning_rate=1e-2,
)
# Llama 3.2 1B.
LARGE = Setup(
    {"vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32},
    rows=1600,
    longest=1024,
    packed={"max_length": 4096, "global_batch_size": 8, "micro_batch_size": 2},
    padded={"max_length": 4096, "global_batch_size": 32, "micro_batch_size": 8},
    learning_rate=1e-4,
)


def check_training(report: Report, small: bool) -> None:
    """Add the parts 'training accuracy', 'training resumed and exported', 'training speed' and 'training profile'."""
    start_rank()
    with TemporaryDirectory() as folder:
        tiny = make_files(TINY, Path(folder) / "tiny")
        check_accuracy(report, tiny, small)
        check_options(report, tiny)
        for lora in (False, True):
            report.case("training resumed and exported", "LoRA" if lora else "full", resumed_and_exported, tiny, lora)
        setup = TINY if small else LARGE
        files = tiny if small else make_files(LARGE, Path(folder) / "large")
        for packing, checkpointing, lora in itertools.product((True, False), (False, True), (False, True)):
            config = setup.config(packing, checkpointing, lora)
            report.case("training speed", name(config), speed, files, config)
        for kind, compiled in (("selective", False), (False, True)):
            config = setup.config(packing=True, checkpointing=kind, lora=False, compile=compiled)
            report.case("training speed", name(config), speed, files, config)
        for packing in (True, False):
            config = setup.config(packing, checkpointing=False, lora=False)
            report.case("training profile", name(config), profiled, files, config)
    dist.destroy_process_group()


def start_rank() -> None:
    """Be the only rank of a process group, which also has gloo: for the reference on the CPU, and for offloaded gradients."""
    torch.set_num_threads(os.cpu_count() or 1 if CUDA else 1)
    dist.init_process_group("cpu:gloo,cuda:nccl" if CUDA else "gloo", store=dist.HashStore(), rank=0, world_size=1)


def name(config: TrainConfig) -> str:
    """Name a case by what sets it apart."""
    parts = ["LoRA" if config.lora.rank else "full", "packed" if config.packing else "padded", config.dtype]
    more = {
        "checkpointed": config.activation_checkpointing is True,
        "products kept": config.activation_checkpointing == "selective",
        "offloaded": config.cpu_offload,
        "sample by sample": config.attention == "varlen",
        "towards the base": config.prior == "base",
        "compiled": config.compile,
    }
    return ", ".join([*parts, *(word for word, holds in more.items() if holds)])


def make_files(setup: Setup, folder: Path) -> Path:
    """Write a random model with a tokenizer, and rendered rows, into `folder`."""
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    heads = setup.model["num_attention_heads"]
    shape = {**setup.model, "num_key_value_heads": heads // 4 or 1, "tie_word_embeddings": True}
    with DEVICE:
        LlamaForCausalLM(LlamaConfig(**shape, max_position_embeddings=8192)).to(torch.bfloat16).save_pretrained(
            folder / "model"
        )
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="b").save_pretrained(folder / "model")
    (folder / "tokens").mkdir()
    with pa.OSFile(str(folder / "tokens" / "a.arrow"), "wb") as file, pa.ipc.new_file(file, col.TOKENS) as writer:
        writer.write_table(pa.Table.from_pylist([*rows_of(setup)], col.TOKENS))
    return folder


def rows_of(setup: Setup) -> Iterator[dict[str, Any]]:
    """Draw rows of random tokens, of which all but the first are trained on."""
    generator = np.random.default_rng(0)
    for split, count in ((col.TRAIN, setup.rows), (col.VALIDATION, 8)):
        for at in range(count):
            # The first ids are the most frequent, which is something to learn in a few steps.
            shares = generator.random(int(generator.integers(8, setup.longest))) ** 4
            ids = (3 + shares * (setup.model["vocab_size"] - 3)).astype(int).tolist()
            yield {
                **{col.ID: f"{split}{at:05d}", col.SPLIT: split, col.INPUT_IDS: ids, col.LABELS: ids},
                **{col.ALPHA: float(generator.random() * 0.3), col.UNCERTAINTY: float(generator.random())},
                col.TARGET_TOKENS: len(ids) - 1,
            }


class Steps:
    """A model, its optimizer and the plan of its steps, as a training worker has them."""

    def __init__(self, files: Path, config: TrainConfig, device: torch.device) -> None:
        """Load the model onto the device, through the checks that training makes of it."""
        torch.manual_seed(0)
        self.config, self.device = config, device
        self.data = loop.Data(loop.TrainingJob(config, str(files / "model"), str(files / "tokens"), "", 0), col.TRAIN)
        self.model: SmoothedCausalLM = build(str(files / "model"), config, make_mesh(config, device), device)
        self.optimizer = make_optimizer(self.model, config)
        self.hardware = hardware(self.model, config, 1, device)

    def take(self, number: int) -> Metrics:
        """Take one step; return its metrics and its speed."""
        step, plan = self.data.plan[number], self.data.plan
        loop.seed_generators(0, number, 0)
        started = time.perf_counter()
        batches, targets = [*self.data.batches(step)], plan.target_tokens(step)
        rate, norm = self.config.learning_rate, self.config.max_grad_norm
        metrics, _ = train_step(self.model, self.optimizer, batches, targets, rate, norm, self.device)
        sync()
        return metrics | self.hardware.speed(plan.tokens(step), len(plan.rows(step)), time.perf_counter() - started)

    def largest_micro_batch(self) -> MicroBatch:
        """Tell the shape of the largest micro-batch among the steps taken."""
        steps = [[batch.input_ids.shape for batch in self.data.batches(self.data.plan[at])] for at in range(STEPS)]
        rows, length = max((shape for step in steps for shape in step), key=lambda shape: shape.numel())
        return MicroBatch(rows, length, max(map(len, steps)))


def check_accuracy(report: Report, files: Path, small: bool) -> None:
    """Compare each step's NLL with that of the same steps on a CPU in float32; `small`: what is other on a CPU alone."""
    part = "training accuracy"
    dtypes = ("bfloat16",) if small else ("bfloat16", "float32")
    for packing, lora in itertools.product((True, False), (False, True)):
        exact = TINY.config(packing, checkpointing=False, lora=lora, dtype="float32", gpus_per_worker=0)
        expected = report.case(part, f"on a CPU, {name(exact)}", nll_of_steps, files, exact, CPU)
        for dtype, checkpointing, offload in itertools.product(dtypes, (False, True), (False,) if small else (False, True)):
            config = TINY.config(packing, checkpointing, lora, dtype=dtype, cpu_offload=offload)
            report.case(part, name(config), compared, files, config, expected)


def check_options(report: Report, files: Path) -> None:
    """Compare attention by sample, smoothing towards the base, compiled layers and kept products with float32 on a CPU."""
    ways: tuple[tuple[bool, dict[str, Any]], ...] = (
        (False, {"attention": "varlen"}),
        (True, {"prior": "base"}),
        (False, {"compile": True}),
        (False, {}),
    )
    for lora, own in ways:
        on_cpu = {"dtype": "float32", "gpus_per_worker": 0, "compile": False}
        exact = TINY.config(packing=True, checkpointing=False, lora=lora, **{**own, **on_cpu})
        expected = report.case("training accuracy", f"on a CPU, {name(exact)}", nll_of_steps, files, exact, CPU)
        config = TINY.config(packing=True, checkpointing=True if own else "selective", lora=lora, **own)
        report.case("training accuracy", name(config), compared, files, config, expected)


def compared(files: Path, config: TrainConfig, expected: list[float]) -> dict[str, Any]:
    """Take the steps on the device; compare their NLLs with the expected ones."""
    found = nll_of_steps(files, config, DEVICE)
    error = max(abs(one / other - 1) for one, other in zip(found, expected, strict=True))
    return {"nll": found, "relative error": error, "ok": error < TOLERANCE}


def nll_of_steps(files: Path, config: TrainConfig, device: torch.device) -> list[float]:
    """Take the steps, and return the NLL of each in nats per token."""
    steps = Steps(files, config, device)
    return [steps.take(number)["nll"] for number in range(STEPS)]


def speed(files: Path, config: TrainConfig) -> dict[str, Any]:
    """Take the steps; compare their speed and memory with the dry run's estimates."""
    reset_peak()
    steps = Steps(files, config, DEVICE)
    lines = [steps.take(number) for number in range(STEPS)]
    timed = lines[WARM_UP:]
    settings = Config(model=str(files / "model"), train=config)
    model, micro = Model(settings), steps.largest_micro_batch()
    memory = model.memory(config, micro)
    plan = steps.data.plan
    taken = [plan[number] for number in range(WARM_UP, STEPS)]
    positions = sum(batch.input_ids.numel() for step in taken for batch in steps.data.batches(step))
    flops = model.flops(config, micro, positions, sum(map(plan.target_tokens, taken)))
    return {
        "tokens/s": statistics.median(line["tokens_per_second"] for line in timed),
        "MFU": statistics.median(line["mfu"] for line in timed) if "mfu" in timed[0] else None,
        "peak GB": peak_gb(),
        "estimated peak GB": (memory.peak - PROCESS_BYTES[DEVICE.type]) / GB,
        "estimated moment": memory.moment,
        "estimated GB": {part: size / GB for part, size in memory.parts.items()},
        "estimated tokens/s": sum(map(plan.tokens, taken)) * find_device(settings).flops / flops,
        "micro-batch": [micro.rows, micro.length],
        "nll": [line["nll"] for line in lines],
    }


def profiled(files: Path, config: TrainConfig) -> dict[str, Any]:
    """Tell which kernels (on a CPU operations) one step spends its time in, and which attention it calls."""
    steps = Steps(files, config, DEVICE)
    for number in range(WARM_UP):
        steps.take(number)
    activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * CUDA]
    with profile(activities=activities) as seen:
        steps.take(WARM_UP)
    events = seen.key_averages()
    # The optimizer's own annotation, Optimizer.step#AdamW.step, spans its kernels.
    kernels = (event for event in events if "#" not in event.key)
    on_device = [event for event in kernels if event.device_type.name == ("CUDA" if CUDA else "CPU")]
    milliseconds = {
        event.key[:120]: (event.self_device_time_total if CUDA else event.self_cpu_time_total) / 1e3 for event in on_device
    }
    longest = sorted(milliseconds, key=lambda key: -milliseconds[key])[:KERNELS]
    return {
        "attention calls": {event.key: event.count for event in events if "attention" in event.key and "::" in event.key},
        "total ms": sum(milliseconds.values()),
        "longest ms": {key: milliseconds[key] for key in longest},
    }


class Dying(Checkpoints):
    """Is killed while its checkpoint of one step is being written."""

    def save(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
        """Begin to save, and die."""
        super().save(model, optimizer, progress)
        if progress.step == KILL_AT:
            os.kill(os.getpid(), signal.SIGKILL)


def train_and_die(files: Path, config: TrainConfig, out: Path) -> None:
    """Train in a process of its own, up to the kill."""
    start_rank()
    loop.Checkpoints = Dying  # type: ignore[misc]
    train(files, config, out)


def train(files: Path, config: TrainConfig, out: Path) -> loop.Outcome:
    """Run the worker of `ual train`, checkpoints, metrics, export and all."""
    out.mkdir(exist_ok=True)
    job = loop.TrainingJob(config, str(files / "model"), str(files / "tokens"), str(out), 0)
    return loop.train_worker(job, DEVICE, pyarrow.fs.LocalFileSystem(), str(out / "checkpoints"))


def resumed_and_exported(files: Path, lora: bool) -> dict[str, Any]:
    """Train through, and again with a kill; compare both, and the exported model with what was measured before the export."""
    config = TINY.config(packing=True, checkpointing=False, lora=lora, max_steps=KILLED_STEPS, checkpoint_every=1)
    whole, killed = files / "whole", files / "killed"
    try:
        train(files, config, whole)
        child = get_context("spawn").Process(target=train_and_die, args=(files, config, killed))
        child.start()
        child.join()
        at_kill = [int(path.parent.name.split("-")[1]) for path in killed.glob("checkpoints/*/progress.json")]
        outcome = train(files, config, killed)
        last, again = (read_metrics(folder / col.METRICS_FILE)[-1] for folder in (whole, killed))
        reloaded = nll_of_export(files, whole / col.MODEL_FOLDER)
        error = reloaded / last[col.VALIDATION_NLL] - 1
        return {
            "killed": child.exitcode == -signal.SIGKILL,
            "checkpoints after the kill": at_kill,
            "ending": outcome.ending,
            "nll, whole and resumed": [last["nll"], again["nll"]],
            "same to the last digit": last["nll"] == again["nll"],
            "validation nll, before and after export": [last[col.VALIDATION_NLL], reloaded],
            "ok": outcome.ending == "finished" and abs(again["nll"] / last["nll"] - 1) < 1e-3 and abs(error) < TOLERANCE,
        }
    finally:
        for folder in (whole, killed):
            shutil.rmtree(folder, ignore_errors=True)


@torch.no_grad()
def nll_of_export(files: Path, model: Path) -> float:
    """Load an exported model with transformers alone; return its NLL on the validation rows, in nats per token."""
    from transformers import AutoModelForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).to(DEVICE).eval()
    store = TokenStore.open(files / "tokens", col.VALIDATION)
    total, tokens = 0.0, 0
    for row in range(len(store)):
        ids = torch.as_tensor(np.array(store[row].input_ids)).long().to(DEVICE)
        logits = loaded(ids[None]).logits[0, :-1]
        total += float(torch.nn.functional.cross_entropy(logits, ids[1:], reduction="sum"))
        tokens += len(ids) - 1
    return total / tokens
