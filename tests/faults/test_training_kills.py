"""Processes are killed in the middle of `ual train`: it goes on by itself or with the same command, in the same MLflow run.

Every test ends with the metrics and the weights of an undisturbed run, to the last bit. `pytest -s` shows what was lost.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from killed_command import KilledCommand
from processes import wait_until
from training_metrics import without_clock

from ual_ray.run.metrics_log import read_metrics

STEPS, VALIDATE_EVERY, CHECKPOINT_EVERY = 160, 40, 10
SETTINGS = {
    "train.max_steps": STEPS,
    "train.epochs": 1000,
    "train.global_batch_size": 4,
    "train.micro_batch_size": 2,
    "train.dtype": "float32",
    "train.learning_rate": 3e-3,
    "train.checkpoint_every": CHECKPOINT_EVERY,
    "train.validate_every": VALIDATE_EVERY,
    "runtime.check_memory": "false",
}
WORKER, CONTROLLER = "ray::RayTrainWorker", "ray::TrainController"

Train = Callable[..., "Training"]


class Training(KilledCommand):
    """One command `ual train SMOOTHED --validation ROWS --out FOLDER ...`, started once or more."""

    patience = 600.0

    def until_step(self, step: int) -> int:
        """Wait until so many steps are done, and a checkpoint is; return the last step."""
        return int(
            self.until(lambda: self.checkpoints() and self.last_step() >= step and self.last_step(), f"step {step} is done")
        )

    def lines(self) -> list[dict[str, float]]:
        """Read the metrics of every step, without what depends on the clock."""
        return [without_clock(line) for line in read_metrics(self.out / "metrics.jsonl")]

    def last_step(self) -> int:
        return int(self.lines()[-1]["step"]) if self.lines() else 0

    def checkpoints(self) -> list[int]:
        """List the steps of the whole checkpoints."""
        return sorted(json.loads(file.read_text())["step"] for file in self.out.glob("checkpoints/step-*/progress.json"))

    def weights(self) -> bytes:
        return (self.out / "model" / "model.safetensors").read_bytes()

    def logged_steps(self) -> list[int]:
        """List the steps that MLflow holds a training loss of."""
        return [entry.step for entry in self.mlflow.get_metric_history(self.mlflow_run().info.run_id, "nll")]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, chat_tokenizer: Callable[[str], Any]) -> Path:
    """Save a random two-layer Llama with a trained tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder, tokenizer = tmp_path_factory.mktemp("model"), chat_tokenizer("chatml")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=512, **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write rows with alphas and uncertainties, and validation rows."""
    from ual_ray import columns as col

    folder, random = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    (folder / "rows").mkdir()
    chats = [
        [
            {"role": "user", "content": f"Name colour number {number}. " * (number % 4 + 1)},
            {"role": "assistant", "content": f"Blue, with {number} drops of green."},
        ]
        for number in range(48)
    ]
    rows = [
        {"id": col.content_id(chat), "source": "test", "split": "validation" if at % 6 == 0 else "train", "messages": chat}  # type: ignore[arg-type]
        for at, chat in enumerate(chats)
    ]
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows, col.ROWS), folder / "rows" / "rows.parquet")
    training = [row for row in rows if row["split"] == "train"]
    table = pa.Table.from_pylist(training, col.ROWS)
    for name, high in ((col.UNCERTAINTY, 1.0), (col.ALPHA, 0.3)):
        table = table.append_column(name, pa.array(random.uniform(0, high, len(training))))
    pyarrow.parquet.write_table(table, folder / "smoothed.parquet")
    return folder


@pytest.fixture(scope="module")
def train(data: Path, model: Path, tmp_path_factory: pytest.TempPathFactory, ual: Any) -> Iterator[Train]:
    """Make trainings, each in a folder of its own; end their processes whatever happens."""
    made: list[Training] = []

    def make(environment: dict[str, str] | None = None, **settings: object) -> Training:
        command = ["train", str(data / "smoothed.parquet"), "--validation", str(data / "rows"), f"model={model}"]
        command += [f"{key}={value}" for key, value in (SETTINGS | settings).items()]
        made.append(Training(ual, tmp_path_factory.mktemp("run"), command, environment))
        return made[-1]

    try:
        yield make
    finally:
        for training in made:
            training.end()


@pytest.fixture(scope="module")
def undisturbed(train: Train) -> Training:
    """Train with nothing in the way."""
    run = train()
    run.run()
    assert [line["step"] for line in run.lines()] == list(range(STEPS + 1))
    return run


def assert_same(run: Training, undisturbed: Training) -> None:
    """Compare the metrics of every step and the weights, exactly, and look for one whole MLflow run."""
    assert run.lines() == undisturbed.lines()
    assert run.weights() == undisturbed.weights()
    assert run.mlflow_run().info.status == "FINISHED"
    assert run.logged_steps() == list(range(1, STEPS + 1)), "every step is logged once"


def transcript(title: str, **figures: object) -> None:
    print(f"\n  {title}: " + ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in figures.items()))


def test_it_goes_on_after_kills_and_with_damaged_checkpoints(train: Train, undisturbed: Training) -> None:
    run = train(**{"train.keep_checkpoints": 2})
    run.start()
    for titled, step in ((WORKER, 15), (CONTROLLER, 40)):
        at, saved = run.until_step(step), run.checkpoints()
        run.process(titled).kill()
        transcript(f"{titled} killed", at_step=at, checkpoints=saved, steps=STEPS)
    run.until_step(65)
    started = time.monotonic()
    run.signal(signal.SIGKILL)
    run.wait(-signal.SIGKILL)
    wait_until(lambda: run.mlflow_run().info.status == "KILLED", "its MLflow run is closed", run.patience)
    seconds, killed = time.monotonic() - started, run.mlflow_run()
    run.end()
    at, saved = run.last_step(), run.checkpoints()
    transcript("driver killed", at_step=at, checkpoints=saved, seconds_until_mlflow_said_so=round(seconds))
    assert at < STEPS

    # From here on without checkpoints at steps: SIGTERM leaves time for one.
    run.start("train.checkpoint_every=1000")
    run.until_step(at + 8)
    started = time.monotonic()
    run.signal(signal.SIGTERM)
    run.wait(128 + signal.SIGTERM)
    seconds, at, terminated = time.monotonic() - started, run.last_step(), run.mlflow_run()
    assert max(saved) < at < STEPS
    assert max(run.checkpoints()) == at, "what was done is saved, to the last step"
    assert (terminated.info.run_id, terminated.info.status) == (killed.info.run_id, "KILLED")
    transcript("SIGTERM", at_step=at, checkpoints=run.checkpoints(), seconds_to_the_end=round(seconds, 1))

    *_, before, last = sorted(run.out.glob("checkpoints/step-*"))
    shards = [next(folder.glob("*.distcp")) for folder in (before, last)]
    contents = [shard.read_bytes() for shard in shards]
    for shard, content in zip(shards, contents, strict=True):
        flip(shard, content)
    for other in set(run.out.glob("checkpoints/step-*")) - {before, last}:
        flip(shard := next(other.glob("*.distcp")), shard.read_bytes())
    printed = run.run(code=2)
    assert "no checkpoint is intact" in printed and all(str(folder) in printed for folder in (before, last))

    shards[0].write_bytes(contents[0])
    # With a Ray of its own, whose workers' log is in ual.log.
    run.start()
    run.wait()
    run.end()
    transcript("checkpoint damaged", step=last.name, resumed_from=before.name, steps=STEPS)
    assert f"removing {last}, which is damaged: {shards[1].name} does not match" in (run.out / "ual.log").read_text()
    assert_same(run, undisturbed)
    assert run.mlflow_run().info.run_id == killed.info.run_id


def test_a_loss_that_is_no_number_is_told_and_not_tried_again(train: Train) -> None:
    run = train(**{"train.learning_rate": 1e30, "train.warmup_share": 0})
    run.run(code=2)
    printed = run.printed + (run.out / "ual.log").read_text()
    assert "non-finite loss or gradient; stopped before the update" in printed
    assert (run.out / "non_finite_ids.txt").read_text().count("\n") == SETTINGS["train.global_batch_size"]
    assert run.mlflow_run().info.status == "FAILED"
    assert "[FailurePolicy] RETRY" not in printed

    # As the message states, the same command goes on in the folder: one update is skipped, the next one ends it.
    run.run("train.skip_non_finite=1", code=2)
    assert (run.out / "non_finite_ids.txt").read_text().count("\n") == 2 * SETTINGS["train.global_batch_size"]


def test_training_goes_on_with_fewer_workers_when_a_node_is_gone(train: Train, undisturbed: Training, cluster: Any) -> None:
    # Two workers of three cores each: one on each of two nodes with four.
    elastic = {"train.min_workers": 1, "train.cpus_per_worker": 3, "runtime.address": "auto"}
    run = train(environment=cluster.environment, **elastic)
    run.start()
    at = run.until_step(45)
    assert cluster.on_worker_node()
    cluster.kill_worker_node()
    run.wait()
    transcript("node killed", at_step=at, steps=STEPS)
    expected, found = undisturbed.lines(), run.lines()
    assert [line["step"] for line in found] == list(range(STEPS + 1))
    for one, two in zip(expected, found, strict=True):
        assert two.get("nll") == pytest.approx(one.get("nll"), abs=1e-4)
    assert run.mlflow_run().info.status == "FINISHED"


def flip(file: Path, content: bytes) -> None:
    """Change a bit in the middle of a file."""
    at = len(content) // 2
    file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
