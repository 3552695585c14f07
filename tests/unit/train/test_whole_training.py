"""Whole trainings by one rank against plain torch: full logits, no packing, and each learning rate computed here."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from ual_ray import columns as col
from ual_ray.config import TrainConfig
from ual_ray.models.chat import IGNORE_INDEX
from ual_ray.parquet import write_table
from ual_ray.run.metrics_log import read_metrics
from ual_ray.train import loop
from ual_ray.train.batches import StepPlan
from ual_ray.train.job import Outcome
from ual_ray.train.metrics import Metrics
from ual_ray.train.progress import STOP_FILE
from ual_ray.train.token_store import Sample, TokenStore
from ual_ray.train.tokenize import Render

SETTINGS: dict[str, Any] = {
    **{"num_workers": 1, "dtype": "float32", "max_length": 64, "global_batch_size": 5, "micro_batch_size": 2, "epochs": 2},
    **{"learning_rate": 3e-3, "weight_decay": 0.1, "max_grad_norm": 0.5, "warmup_share": 0.0, "min_learning_rate_share": 0.2},
}
# Of twelve rows, five to a step, an epoch's third step has two: six steps.
WSD = {"schedule": "wsd", "warmup_share": 0.34, "decay_share": 0.5}
CASES = {
    "constant": ({"schedule": "constant"}, [1, 1, 1, 1, 1, 1]),
    "packed": ({"packing": True, "global_batch_size": 2, "max_steps": 4, "schedule": "linear"}, [1, 0.8, 0.6, 0.4]),
    "stable, then decaying": (WSD, [1 / 3, 2 / 3, 1, 1, 1 - 0.8 / 3, 1 - 1.6 / 3]),
    "towards a copy, resumed": ({"schedule": "constant", "prior": "base"}, [1, 1, 1, 1, 1, 1]),
    "mixture": ({"schedule": "constant", "mixture": {"chat": 1.0, "math": 3.0}}, [1, 1, 1, 1, 1, 1]),
}
WORDS = ("blue", "green", "colour", "sky")

pytestmark = pytest.mark.usefixtures("group")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, family_folder: Any) -> Path:
    """Render twelve conversations of one to three turns, whose labels have gaps, with an arm's numbers and sources by id."""
    folder, turns = tmp_path_factory.mktemp("tokens"), [1, 2, 3] * 4
    rows = []
    for number, count in enumerate(turns):
        chat = [
            {"role": role, "content": " ".join(WORDS[: 1 + (number + turn) % 4])}
            for turn in range(count)
            for role in ("user", "assistant")
        ]
        rows.append({col.ID: f"{number:02}", col.SPLIT: col.TRAIN, col.MESSAGES: chat})
    schema = pa.schema([(col.ID, pa.string()), (col.SPLIT, pa.string()), (col.MESSAGES, col.MESSAGES_TYPE)])
    (summary,) = Render(str(family_folder("llama")), TrainConfig(**SETTINGS), False, folder)(
        pa.Table.from_pylist(rows, schema)
    ).to_pylist()
    assert summary["dropped"] == []
    ids = [row[col.ID] for row in rows]
    numbers = {
        col.ALPHA: [0.07 * (number % 5) for number in range(12)],
        col.LOSS_WEIGHT: [0.5 + 0.25 * (n % 4) for n in range(12)],
    }
    write_table(pa.table({col.ID: ids, **numbers}), folder / "arm.parquet")
    write_table(
        pa.table({col.ID: ids, col.SOURCE: ["math" if n % 4 == 0 else "chat" for n in range(12)]}), folder / "sources.parquet"
    )
    return folder


def smoothed_loss(model: Any, sample: Sample, before: Any = None) -> torch.Tensor:
    """Sum w (NLL against (1 - alpha) one-hot + alpha q) over a sample's labels, of full logits; q uniform, or of `before`."""
    labels = torch.tensor(sample.labels[1:]).long()
    kept = labels != IGNORE_INDEX
    ids = torch.tensor(sample.input_ids).long()[None]
    logs = model(ids).logits[0, :-1].log_softmax(-1)[kept]
    at_label = logs.gather(1, labels[kept][:, None]).squeeze(1)
    with torch.no_grad():
        towards = torch.ones(()) / logs.shape[1] if before is None else before(ids).logits[0, :-1].softmax(-1)[kept]
    return -sample.weight * ((1 - sample.alpha) * at_label + sample.alpha * (towards * logs).sum(1)).sum()


def plain(
    folder: Path, store: TokenStore, plan: StepPlan, rates: list[float], *, towards_base: bool
) -> tuple[Any, list[Metrics]]:
    """Train as the definition says; return the model, and each step's loss and norm."""
    before = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval() if towards_base else None
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).train()
    parameters = [*model.parameters()]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": SETTINGS["weight_decay"]},
        {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer, lines = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.95)), []
    for step, rate in zip(plan, rates, strict=True):
        samples = [store[row] for row in plan.rows(step)]
        tokens = sum(int((sample.labels[1:] != IGNORE_INDEX).sum()) for sample in samples)
        loss = sum((smoothed_loss(model, sample, before) for sample in samples), torch.zeros(())) / tokens
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, SETTINGS["max_grad_norm"])
        for group in optimizer.param_groups:
            group["lr"] = rate * SETTINGS["learning_rate"]
        optimizer.step()
        optimizer.zero_grad()
        lines.append({"smoothed_loss": float(loss.detach()), "grad_norm": float(norm), "target_tokens": float(tokens)})
    return model, lines


def test_validation_has_the_mean_alpha_of_the_tokens_that_training_draws(
    data: Path, family_folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In three epochs, each of nine rows comes once and each of three rows nine times."""
    config = TrainConfig(**SETTINGS | CASES["mixture"][0] | {"epochs": 3})
    files = {"arm": str(data / "arm.parquet"), "sources": str(data / "sources.parquet")}
    job = loop.TrainingJob(config, str(family_folder("llama")), str(data), str(tmp_path), 3, **files)
    alphas, make = list[float | None](), loop.Data
    monkeypatch.setattr(loop, "Data", lambda job, split, alpha=None: alphas.append(alpha) or make(job, split, alpha))
    monkeypatch.setattr(loop, "build", mock.Mock(side_effect=InterruptedError))
    with pytest.raises(InterruptedError):
        loop.train_worker(job, torch.device("cpu"), pyarrow.fs.LocalFileSystem(), str(tmp_path / "checkpoints"))
    store = TokenStore.open(data, col.TRAIN, 0, data / "arm.parquet", sources=data / "sources.parquet")
    plan = StepPlan(store.lengths, store.target_tokens, config, 3, 1, store.sources)
    drawn = [(row, store[row].weight * store.target_tokens[row]) for step in plan for row in plan.rows(step)]
    assert Counter(Counter(row for row, _ in drawn).values()) == {1: 9, 9: 3}
    mean = sum(store[row].alpha * tokens for row, tokens in drawn) / sum(tokens for _, tokens in drawn)
    assert alphas == [None, pytest.approx(mean, rel=1e-9)]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.slow
def test_it_is_that_of_plain_torch(case: str, data: Path, family_folder: Any, tmp_path: Path) -> None:
    changes, rates = CASES[case]
    config, model = TrainConfig(**SETTINGS | changes), family_folder("llama_untied")
    sources = data / "sources.parquet" if config.mixture else None
    store = TokenStore.open(data, col.TRAIN, 0, data / "arm.parquet", sources=sources)
    plan = StepPlan(store.lengths, store.target_tokens, config, 3, 1, store.sources)
    assert np.unique([len(plan.rows(step)) for step in plan]).size > 1, "the last step of an epoch has fewer rows"
    job = loop.TrainingJob(
        config, str(model), str(data), str(tmp_path), 3, str(data / "arm.parquet"), sources=str(sources) if sources else None
    )

    def train() -> Outcome:
        return loop.train_worker(job, torch.device("cpu"), pyarrow.fs.LocalFileSystem(), str(tmp_path / "checkpoints"))

    if "resumed" in case:
        (tmp_path / STOP_FILE).touch()
        assert train() == Outcome("stopped", 1)
        (tmp_path / STOP_FILE).unlink()
    done = train()
    assert (done.ending, done.step) == ("finished", len(rates))
    expected, lines = plain(model, store, plan, rates, towards_base=config.prior == "base")
    found = read_metrics(tmp_path / col.METRICS_FILE)
    found = [line for line in found if line["step"]]
    assert [line["learning_rate"] for line in found] == pytest.approx([rate * SETTINGS["learning_rate"] for rate in rates])
    for one, other in zip(found, lines, strict=True):
        assert {name: one[name] for name in other} == pytest.approx(other, rel=2e-4)
    trained, before = load_file(tmp_path / col.MODEL_FOLDER / "model.safetensors"), load_file(model / "model.safetensors")
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(trained[name], value, rtol=5e-3, atol=5e-5, msg=f"{case}: {name}")
        assert not torch.equal(value, before[name])
