"""Stage 3: rows with alpha in, a fine-tuned model directory out."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from ual_ray.config import Config
from ual_ray.errors import UserError
from ual_ray.progress import Meter, polled
from ual_ray.train.batches import padding_share
from ual_ray.train.loop import METRICS_FILE, MODEL_FOLDER, Job, plan, read_metrics, train_worker
from ual_ray.train.tokens import DROPPED_FILE, TOKENS_FOLDER, render

CHECKPOINTS = "checkpoints"

OnStep = Callable[[dict[str, float]], None]
MakeMeter = Callable[[int], Meter]


def train(
    config: Config, smoothed: Path, rows: Path | None, folder: Path, make_meter: MakeMeter, on_step: OnStep
) -> dict[str, Any]:
    """Fine-tune `config.model` on the smoothed rows; write `folder`/model and return the counts and last metrics.

    `rows` holds the validation rows (None = no validation); `on_step` gets every step's metrics as they come.
    Interrupted and called again with the same folder, it goes on from its last checkpoint.
    """
    folder.mkdir(parents=True, exist_ok=True)
    counts = render(smoothed, rows, config.model, config.train.max_length, config.trust_remote_code, folder)
    lengths = counts.pop("lengths")
    if counts["dropped_share"] > config.train.max_dropped_share:
        raise UserError(
            f"{counts['dropped_rows']} rows cannot be trained on: no response within train.max_length, or not renderable",
            value=f"their ids are in {folder / DROPPED_FILE}, the reasons of the second kind in the log",
            legal=f"a share of at most train.max_dropped_share = {config.train.max_dropped_share}",
            fix="raise train.max_length, or train.max_dropped_share to go on without them",
        )
    steps = plan(lengths, config.train, config.seed, config.train.num_workers)
    counts |= {"steps": len(steps), "padding_share": padding_share(steps, lengths)}
    job = Job(config.train, config.model, str(folder / TOKENS_FOLDER), str(folder), config.seed, config.trust_remote_code)
    meter = make_meter(len(steps))
    with closing(meter), polled(_Follower(folder / METRICS_FILE, meter, on_step).read, seconds=1.0):
        _trainer(job, folder).fit()
    last = {name: value for line in read_metrics(folder / METRICS_FILE) for name, value in line.items()}
    return counts | {"last": last, "model": str(folder / MODEL_FOLDER)}


def _trainer(job: Job, folder: Path) -> TorchTrainer:
    settings = job.train
    resources = {"CPU": settings.cpus_per_worker}
    if settings.gpus_per_worker:
        resources["GPU"] = settings.gpus_per_worker
    return TorchTrainer(
        _run,
        train_loop_config={"job": job},
        scaling_config=ScalingConfig(
            num_workers=settings.num_workers,
            use_gpu=settings.gpus_per_worker > 0,
            resources_per_worker=resources,
        ),
        torch_config=TorchConfig(backend="nccl" if settings.gpus_per_worker else "gloo"),
        run_config=RunConfig(
            name=CHECKPOINTS,
            storage_path=str(folder.resolve()),
            failure_config=FailureConfig(max_failures=settings.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
        ),
    )


def _run(loop_config: dict[str, Any]) -> None:
    train_worker(loop_config["job"])


class _Follower:
    """Reads the workers' metrics file while they train and hands each new line on, once."""

    def __init__(self, path: Path, meter: Meter, on_step: OnStep) -> None:
        self._path, self._meter, self._on_step = path, meter, on_step
        self._next_step = 0
        self._tokens = 0.0
        self._note = ""

    def read(self) -> None:
        """Hand on what is new, and show where training is."""
        for line in read_metrics(self._path):
            if line["step"] < self._next_step:
                continue
            self._next_step = int(line["step"]) + 1
            self._tokens += line.get("tokens", 0.0)
            self._on_step(line)
            self._note = f"NLL {line['nll']:.3f}" if "nll" in line else ""
        self._meter.update(max(0, self._next_step - 1), rate_done=self._tokens, note=self._note)
