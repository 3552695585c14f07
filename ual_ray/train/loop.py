"""What one training worker does, as a list: read, plan, load, shard, resume, step, validate, save, export."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import ray.train
import torch
import torch.distributed as dist
from ray.train import Checkpoint
from ray.train.torch import get_device
from torch.distributed.device_mesh import init_device_mesh

from ual_ray.config import TrainConfig
from ual_ray.records import ALPHA, ID, INPUT_IDS, LABELS, SPLIT, TRAIN, VALIDATION, read_table
from ual_ray.sources.models import resolve_model
from ual_ray.train import checkpoint
from ual_ray.train.batches import Sample, Step, plan_steps
from ual_ray.train.model import SmoothedCausalLM, check_loss, load_causal_lm, shard
from ual_ray.train.schedule import learning_rate_share
from ual_ray.train.step import make_optimizer, train_step, validate

METRICS_FILE = "metrics.jsonl"
MODEL_FOLDER = "model"


@dataclass(frozen=True)
class Job:
    """Everything a worker needs; all paths are on storage that every node sees."""

    train: TrainConfig
    model: str
    tokens: str
    folder: str
    seed: int
    trust_remote_code: bool = False


def train_worker(job: Job) -> None:
    """Run on every rank."""
    torch.manual_seed(job.seed)
    config, folder, device = job.train, Path(job.folder), get_device()
    samples, validation = read_samples(Path(job.tokens))
    steps = plan([len(sample.input_ids) for sample in samples], config, job.seed, dist.get_world_size())
    path = resolve_model(job.model)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    model = SmoothedCausalLM(load_causal_lm(path, job.trust_remote_code), config.z_loss)
    check_loss(model)
    shard(model, mesh, config)
    optimizer = make_optimizer(model, config)
    state = resume(checkpoint.TrainingState(model, optimizer))
    log = MetricsLog(folder / METRICS_FILE, state.finished_steps)
    if state.finished_steps == 0:
        log.write(0, validate(model, validation, config, device))
    for number in range(state.finished_steps, len(steps)):
        rate = config.learning_rate * learning_rate_share(
            number, len(steps), config.warmup_share, config.min_learning_rate_share
        )
        metrics = train_step(model, optimizer, steps[number], samples, rate, config.max_grad_norm, device)
        state.finished_steps = number + 1
        last = state.finished_steps == len(steps)
        if last or steps[state.finished_steps].epoch != steps[number].epoch:
            metrics |= validate(model, validation, config, device)
        log.write(state.finished_steps, metrics)
        if last or (config.checkpoint_every and state.finished_steps % config.checkpoint_every == 0):
            save_checkpoint(state)
    checkpoint.export(model.model, path, folder / MODEL_FOLDER, job.trust_remote_code)


def read_samples(tokens: Path) -> tuple[list[Sample], list[Sample]]:
    """Read the rendered rows: those to train on, and those to validate with."""
    splits: dict[str, list[Sample]] = {TRAIN: [], VALIDATION: []}
    for row in read_table(tokens).to_pylist():
        splits[row[SPLIT]].append(Sample(row[ID], row[INPUT_IDS], row[LABELS], row[ALPHA]))
    return splits[TRAIN], splits[VALIDATION]


def plan(lengths: Sequence[int], config: TrainConfig, seed: int, world_size: int) -> list[Step]:
    """Lay out the steps of a training run."""
    return plan_steps(
        lengths,
        epochs=config.epochs,
        global_batch_size=config.global_batch_size,
        micro_batch_size=config.micro_batch_size,
        world_size=world_size,
        seed=seed,
        max_steps=config.max_steps,
    )


def resume(state: checkpoint.TrainingState) -> checkpoint.TrainingState:
    """Load the last checkpoint of this run, if a failed attempt left one."""
    if saved := ray.train.get_checkpoint():
        with saved.as_directory() as folder:
            checkpoint.load(state, Path(folder))
    return state


def save_checkpoint(state: checkpoint.TrainingState) -> None:
    """Write this rank's shards and hand them to Ray Train, which puts them into the run's storage."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save(state, Path(folder))
        ray.train.report({"step": state.finished_steps}, checkpoint=Checkpoint.from_directory(folder))


class MetricsLog:
    """Rank 0 appends one JSON line per step; the driver reads them for progress, MLflow and plots."""

    def __init__(self, path: Path, finished_steps: int) -> None:
        """Keep the lines of finished steps, drop those a failed attempt wrote beyond its last checkpoint."""
        self._path = path
        self._writes = dist.get_rank() == 0
        if self._writes:
            kept = [line for line in read_metrics(path) if finished_steps > 0 and line["step"] <= finished_steps]
            path.write_text("".join(json.dumps(line) + "\n" for line in kept))

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Append the metrics of a step."""
        if self._writes:
            with self._path.open("a") as file:
                file.write(json.dumps({"step": step, **metrics}) + "\n")


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Read all whole lines; a line that is being written is left for the next time."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
