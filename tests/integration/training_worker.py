"""Run by ranks.py in test_training.py: training runs, one after the other, as one worker does them; without Ray."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pyarrow.fs
import torch
import torch.distributed as dist

from ual_ray.config import TrainConfig
from ual_ray.train import loop

TAKE = loop.Training.take


def main(tasks: list[dict[str, Any]]) -> None:
    """Train as each task says, and leave its outcome in its folder."""
    dist.init_process_group("gloo")
    for task in tasks:
        folder = Path(task["folder"])
        (folder / "stop").unlink(missing_ok=True)
        loop.Training.take = disturbed(task)  # type: ignore[method-assign]
        settings, first = TrainConfig(**task["train"]), task.get("first")
        files = task["model"], task["tokens"], task["folder"]
        job = loop.TrainingJob(settings, *files, seed=3, first=first, system_metrics=True)
        storage = pyarrow.fs.LocalFileSystem()
        outcome = loop.train_worker(job, torch.device("cpu"), storage, str(folder / "checkpoints"))
        if dist.get_rank() == 0:
            (folder / "outcome.json").write_text(json.dumps(vars(outcome)))
    dist.destroy_process_group()


def disturbed(task: dict[str, Any]) -> Any:
    """Wrap the taking of a step.

    die_at: the last rank is gone in this step. stop_at: the driver says in this step that it is the last. poison_at: in this
    step a weight is infinite. spoil_at: a weight is infinite in these steps alone.
    """

    def take(training: loop.Training, step: Any, progress: Any) -> Any:
        number = progress.step + 1
        if number == task.get("die_at"):
            # The test counts on the last checkpoint, which else may be half written.
            training.checkpoints.wait()
            dist.barrier()
            if dist.get_rank() == dist.get_world_size() - 1:
                os._exit(9)
        if number == task.get("stop_at") and dist.get_rank() == 0:
            (Path(task["folder"]) / "stop").touch()
        if number == task.get("poison_at"):
            with torch.no_grad():
                next(training.model.parameters()).fill_(float("inf"))
        if number not in task.get("spoil_at", ()):
            return TAKE(training, step, progress)
        weight = next(training.model.parameters()).data
        kept = weight.clone()
        weight.fill_(float("inf"))
        try:
            return TAKE(training, step, progress)
        finally:
            weight.copy_(kept)

    return take


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
