"""Run by torchrun in test_fsdp.py: for each layout, one accumulated backward pass, two steps and an export; saved by rank 0.

The layout "mixture" is a whole training, and one that is stopped and resumed; "uneven" are trainings; "memory" loads a model.
"""

from __future__ import annotations

import json
import shutil
import sys
import threading
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow.fs
import torch
import torch.distributed as dist
from torch._dynamo.utils import counters
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import LlamaConfig, LlamaForCausalLM

from ual_ray.config import TrainConfig
from ual_ray.models.chat import IGNORE_INDEX
from ual_ray.train import loop
from ual_ray.train.batches import Batch, Sample, collate
from ual_ray.train.export import Export, export
from ual_ray.train.model import SmoothedCausalLM, build
from ual_ray.train.optimizer_step import backward, make_optimizer, reduce, train_step
from ual_ray.train.progress import STOP_FILE
from ual_ray.train.sharding import make_mesh

CPU = torch.device("cpu")


def main(folder: Path, world: str) -> None:
    """Run every layout of this world size."""
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    for layout in json.loads((folder / "layouts.json").read_text()):
        if layout["world"] == int(world):
            torch._dynamo.reset()
            counters.clear()
            torch.compiler.set_default_backend(layout.get("backend", "inductor"))
            results = RUNS.get(layout["name"], run)(folder, layout)
            if dist.get_rank() == 0:
                torch.save(results, folder / f"{layout['name']}.pt")
            dist.barrier()
    dist.destroy_process_group()


def run(folder: Path, layout: dict[str, Any]) -> dict[str, Any]:
    """Compute gradients and metrics, take two steps, export."""
    samples = [Sample(**fields) for fields in torch.load(folder / "samples.pt", weights_only=False)]
    config = TrainConfig(**layout["train"])
    model = build(layout["model"], config, make_mesh(config, CPU), CPU)
    optimizer = make_optimizer(model, config)
    initial = {name: whole(parameter) for name, parameter in model.named_parameters()}
    move_adapters(model)
    batches = micro_batches(samples, layout)
    target_tokens = sum(int((sample.labels[1:] != -100).sum()) for sample in samples)
    model.train()
    with mock.patch.object(dist, "all_reduce", wraps=dist.all_reduce) as between_replicas:
        passes = backward(model, batches, target_tokens, CPU)
    metrics, _ = reduce(passes)
    gradients = {name: whole(parameter.grad) for name, parameter in model.named_parameters() if parameter.requires_grad}
    parameters = {name: whole(parameter) for name, parameter in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    steps = [train_step(model, optimizer, batches, target_tokens, 1e-2, 1.0, CPU)[0] for _ in range(2)]
    logits = model.eval().logits(torch.arange(1, 9)[None])
    export(model, Export(layout["model"], "# a card", shard_bytes=40_000), folder / f"{layout['name']}.model")
    placed = {
        name: [str(p) for p in parameter.placements] for name, parameter in model.named_parameters() if sharded(parameter)
    }
    results = {"initial": initial, "parameters": parameters, "gradients": gradients, "metrics": metrics, "steps": steps}
    return (
        results
        | {"logits": logits.detach(), "placements": placed, "all-reduces": between_replicas.call_count}
        | {"graphs": counters["stats"]["unique_graphs"]}
    )


def micro_batches(samples: list[Sample], layout: dict[str, Any]) -> list[Batch]:
    """Deal the sequences out to the ranks, in micro-batches; every rank gets as many, and the last may be empty."""
    sequences = [[samples[row] for row in rows] for rows in layout["sequences"]][dist.get_rank() :: dist.get_world_size()]
    size = layout["micro_batch"]
    return [
        collate(sequences[number * size : (number + 1) * size], packed=layout["train"].get("packing", False))
        for number in range(layout["rounds"])
    ]


def move_adapters(model: SmoothedCausalLM) -> None:
    """Give the B of every adapter values, or the A would have no gradient."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            values = torch.randn(parameter.shape, generator=generator) * 0.1
            with torch.no_grad():
                parameter.copy_(distribute_tensor(values, parameter.device_mesh, parameter.placements, src_data_rank=None))


def mixture(folder: Path, layout: dict[str, Any]) -> dict[str, Any]:
    """Train on a mixture without a break, with one, and compiled after it.

    Return how each ended, and target tokens by rank, step and alpha.
    """
    take, step = loop.Training.take, loop.train_step
    seen: list[dict[float, int]] = []

    def stop(training: loop.Training, step: Any, progress: Any) -> Any:
        if progress.step == layout["stop_after"] - 1 and dist.get_rank() == 0:
            (Path(training.job.folder) / STOP_FILE).touch()
        return take(training, step, progress)

    def counted(model: Any, optimizer: Any, batches: list[Batch], *others: Any) -> Any:
        alphas = torch.cat([batch.alpha[batch.labels != IGNORE_INDEX] for batch in batches])
        seen.append({round(alpha.item(), 6): int((alphas == alpha).sum()) for alpha in alphas.unique()})
        return step(model, optimizer, batches, *others)

    def train(name: str, **settings: Any) -> Any:
        out = folder / name
        files = {"tokens": layout["tokens"], "sources": f"{layout['tokens']}/sources.parquet"}
        job = loop.TrainingJob(TrainConfig(**layout["train"], **settings), layout["model"], folder=str(out), seed=3, **files)
        out.mkdir(exist_ok=True)
        return loop.train_worker(job, CPU, pyarrow.fs.LocalFileSystem(), str(out / "checkpoints")).ending

    def gathered() -> list[list[dict[float, int]]]:
        every: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(every, [*seen])
        seen.clear()
        return every

    results: dict[str, Any] = {}
    with mock.patch.object(loop, "train_step", counted):
        results["whole"] = {"endings": [train("whole")], "seen": gathered()}
        with mock.patch.object(loop.Training, "take", stop):
            endings = [train("halves")]
        dist.barrier()
        if dist.get_rank() == 0:
            (folder / "halves" / STOP_FILE).unlink()
            shutil.copytree(folder / "halves", folder / "compiled half")
        dist.barrier()
        results["halves"] = {"endings": [*endings, train("halves")], "seen": gathered()}
        ending = train("compiled half", compile=True)
        results["compiled"] = {"ending": ending, "seen": gathered(), "graphs": counters["stats"]["unique_graphs"]}
    return results


def uneven(folder: Path, layout: dict[str, Any]) -> dict[str, Any]:
    """Train on rows and weights that ranks cannot share evenly; a micro-batch of the last rank is spoiled in the second step.

    The weights have odd numbers of rows, an adapter's A has a single one.
    """
    forward, step, taken, spoil = SmoothedCausalLM.forward, loop.train_step, list[int](), [False]
    model, sizes = folder / "odd model", {"hidden_size": 40, "intermediate_size": 63, "num_attention_heads": 4}
    if dist.get_rank() == 0 and not model.exists():
        shutil.copytree(layout["model"], model)
        LlamaForCausalLM(LlamaConfig(vocab_size=1023, num_hidden_layers=2, **sizes)).save_pretrained(model)
    dist.barrier()

    def counted(*arguments: Any) -> Any:
        taken.append(1)
        spoil[0] = len(taken) == 2 and dist.get_rank() == dist.get_world_size() - 1
        return step(*arguments)

    def spoiled(model: Any, batch: Batch) -> Any:
        sums, spoil[0], now = forward(model, batch), False, spoil[0]
        return sums._replace(loss=sums.loss * float("nan")) if now else sums

    results: dict[str, Any] = {}
    with mock.patch.object(loop, "train_step", counted), mock.patch.object(SmoothedCausalLM, "forward", spoiled):
        for name, lora in (("whole", {}), ("adapters", {"rank": 1})):
            taken.clear()
            out = folder / f"{layout['name']} {name}"
            out.mkdir(exist_ok=True)
            job = loop.TrainingJob(TrainConfig(**layout["train"], lora=lora), str(model), layout["tokens"], str(out), seed=3)
            results[name] = loop.train_worker(job, CPU, pyarrow.fs.LocalFileSystem(), str(out / "checkpoints")).ending
    return results


def load_only(folder: Path, layout: dict[str, Any]) -> dict[str, Any]:
    """Measure by how many bytes this rank's own memory grows at most while the model is built."""
    config = TrainConfig(**layout["train"])
    mesh = make_mesh(config, CPU)
    peaks, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            peaks.append(own_memory())

    watcher = threading.Thread(target=watch)
    before = own_memory()
    watcher.start()
    model = build(layout["model"], config, mesh, CPU)
    done.set()
    watcher.join()
    size = sum(parameter.numel() * 4 for parameter in model.parameters())
    local = sum(parameter.to_local().numel() * 4 for parameter in model.parameters() if sharded(parameter))
    return {"growth": max(peaks) - before, "model": size, "shard": local}


def own_memory() -> int:
    """Count the bytes of this process that are its own: not pages of mapped files, which all processes share."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) * 1024


def sharded(tensor: torch.Tensor) -> bool:
    return isinstance(tensor, DTensor)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


RUNS = {"mixture": mixture, "memory": load_only, "uneven on 1": uneven, "uneven on 2": uneven}

if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
