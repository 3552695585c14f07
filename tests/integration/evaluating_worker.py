"""Run by test_evaluate.py, in a process that can be killed: evaluations, one after the other, on a local Ray."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from ual_ray.config import RuntimeConfig
from ual_ray.config import load as settings
from ual_ray.evaluate.questions import write_questions
from ual_ray.evaluate.stage import evaluate
from ual_ray.run.cluster import ray_cluster
from ual_ray.run.progress import Meter
from ual_ray.run.terminal import make_console


def main(tasks: list[dict[str, str]]) -> None:
    """Write each task's questions, and have the model answer them."""
    with ray_cluster(RuntimeConfig()):
        for task in tasks:
            config = settings.load(task["config"])
            folder = Path(task["folder"])
            folder.mkdir(parents=True, exist_ok=True)
            counts = write_questions(config.evaluate.benchmarks, None, folder)
            total = sum(count["questions"] for count in counts.values())
            shown = Meter(make_console(), "evaluate", total, "rows")
            evaluate(config, task["name"], "m", folder / "questions.parquet", Path(task["store"]), folder, shown)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
