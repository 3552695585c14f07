"""A whole training of a tiny model by one rank in this process: its metrics, its export, and its resumption."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from ual_ray import columns as col
from ual_ray.config import TrainConfig
from ual_ray.parquet import write_table
from ual_ray.train import loop
from ual_ray.train.metrics import read_metrics, without_clock
from ual_ray.train.tokenize import Render

SETTINGS: dict[str, Any] = {
    **{"num_workers": 1, "dtype": "float32", "max_length": 64, "global_batch_size": 4, "micro_batch_size": 2, "epochs": 2},
    **{"validate_every": 3, "checkpoint_every": 2},
}
SOURCES_FILE = "sources.parquet"
MIXTURE = {"chat": 1.0, "math": 3.0}
WORDS = ("blue", "green", "colour", "sky")


@pytest.fixture(scope="module", autouse=True)
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Be a process group of one."""
    store = dist.FileStore(str(tmp_path_factory.mktemp("group") / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory, family_folder: Any) -> Path:
    """Render twelve rows for training and four for validation."""
    folder = tmp_path_factory.mktemp("tokens")
    rows = []
    for number in range(16):
        reply = " ".join(WORDS[: 1 + number % 4])
        chat = [{"role": "user", "content": f"Name a colour {number}."}, {"role": "assistant", "content": reply}]
        split = col.VALIDATION if number % 4 == 3 else col.TRAIN
        rows.append({col.ID: str(number), col.SPLIT: split, col.MESSAGES: chat, col.ALPHA: 0.1 * (number % 3)})
    schema = [(col.ID, pa.string()), (col.SPLIT, pa.string()), (col.MESSAGES, col.MESSAGES_TYPE), (col.ALPHA, pa.float64())]
    render = Render(str(family_folder("llama")), TrainConfig(**SETTINGS), False, folder)
    (summary,) = render(pa.Table.from_pylist(rows, pa.schema(schema))).to_pylist()
    assert summary["dropped"] == []
    names = ["math" if number % 8 == 0 else "chat" for number in range(16)]
    write_table(pa.table({col.ID: [str(number) for number in range(16)], col.SOURCE: names}), folder / SOURCES_FILE)
    return folder


def train(tokens: Path, model: Path, out: Path, **changes: Any) -> loop.Outcome:
    out.mkdir(exist_ok=True)
    sources = str(tokens / SOURCES_FILE) if "mixture" in changes else None
    job = loop.TrainingJob(TrainConfig(**SETTINGS | changes), str(model), str(tokens), str(out), seed=3, sources=sources)
    return loop.train_worker(job, torch.device("cpu"), pyarrow.fs.LocalFileSystem(), str(out / "checkpoints"))


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / col.MODEL_FOLDER / "model.safetensors")


def test_it_trains_measures_and_exports(tokens: Path, family_folder: Any, tmp_path: Path) -> None:
    outcome = train(tokens, family_folder("llama"), tmp_path / "out")
    assert (outcome.ending, outcome.step, outcome.exported) == ("finished", 6, 6)
    lines = read_metrics(tmp_path / "out" / col.METRICS_FILE)
    assert [line["step"] for line in lines] == list(range(7))
    assert lines[-1]["nll"] < lines[1]["nll"]
    for line in lines[1:]:
        parts = [line[f"seconds/{purpose}"] for purpose in ("step", "data", "validation", "checkpoint")]
        assert 0 < sum(parts) <= line["seconds/total"] and line["goodput"] == pytest.approx(parts[0] / line["seconds/total"])
        assert line["lowest_rank_peak_memory_gib"] == line["peak_memory_gib"] > 0.01
    assert [line["step"] for line in lines[1:] if line["seconds/validation"]] == [3, 6]
    # After steps 2 and 4, and after 3, the best so far: counted with the next step.
    assert [line["step"] for line in lines[1:] if line["seconds/checkpoint"]] == [3, 4, 5]
    assert {line.get("slowest_rank_over_median") for line in lines[2:]} == {1.0}, "one rank is its own median"
    before = load_file(family_folder("llama") / "model.safetensors")
    assert not any(torch.equal(value, before[name]) for name, value in weights(tmp_path / "out").items())


@pytest.mark.parametrize("changes", [{}, {"mixture": MIXTURE}, {"mixture": MIXTURE, "packing": True, "global_batch_size": 1}])
def test_resumed_it_is_the_same_to_the_last_bit(
    tokens: Path, family_folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    train(tokens, family_folder("llama"), whole, **changes)
    take = loop.Training.take

    def take_and_stop(training: loop.Training, step: Any, progress: Any) -> Any:
        if progress.step == 3:
            (halves / "stop").touch()
        return take(training, step, progress)

    monkeypatch.setattr(loop.Training, "take", take_and_stop)
    assert train(tokens, family_folder("llama"), halves, **changes).ending == "stopped"
    monkeypatch.setattr(loop.Training, "take", take)
    (halves / "stop").unlink()
    assert train(tokens, family_folder("llama"), halves, **changes).ending == "finished"
    one, two = ([without_clock(line) for line in read_metrics(out / col.METRICS_FILE)] for out in (whole, halves))
    assert one == two
    assert all(torch.equal(value, weights(halves)[name]) for name, value in weights(whole).items())


@pytest.mark.parametrize("merge", [True, False])
def test_adapters_leave_alone_and_merged_if_they_may(tokens: Path, family_folder: Any, tmp_path: Path, merge: bool) -> None:
    train(tokens, family_folder("llama"), tmp_path / "out", lora={"rank": 2, "merge": merge}, export_dtype="bfloat16")
    assert (tmp_path / "out" / col.ADAPTER_FOLDER / "adapter_config.json").is_file()
    assert (tmp_path / "out" / col.MODEL_FOLDER).exists() == merge
    assert not merge or {value.dtype for value in weights(tmp_path / "out").values()} == {torch.bfloat16}
