"""transformers' Trainer and TRL's on two ranks: each step is that of plain torch with full logits, on both ranks' rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import run_ranks
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

WORKER = Path(__file__).with_name("trainers_worker.py")
VOCABULARY, RATE, ACCUMULATION = 620, 0.5, 2
# Over two ranks with two rows each: three micro-batches, of which the last is filled up with rows from the start, the second
# rank's with nothing else; so a step of two micro-batches and one of one in each epoch.
ROWS = 9
ARGUMENTS: dict[str, Any] = {
    **{"per_device_train_batch_size": 2, "gradient_accumulation_steps": ACCUMULATION},
    **{"num_train_epochs": 2, "optim": "sgd", "learning_rate": RATE, "lr_scheduler_type": "constant", "max_grad_norm": 0},
    **{"use_cpu": True, "bf16": False, "save_strategy": "no", "report_to": [], "logging_steps": 1},
    **{"disable_tqdm": True, "gradient_checkpointing": False},
}
TASKS: dict[str, dict[str, Any]] = {
    "model's loss": {"trl": False, "function": False, "arguments": {}},
    "loss function": {"trl": False, "function": True, "arguments": {}},
    "tokens of each rank": {"trl": False, "function": False, "arguments": {"average_tokens_across_devices": False}},
    "TRL": {"trl": True, "arguments": {"max_length": 64}},
    "TRL, checkpointed": {"trl": True, "arguments": {"max_length": 64, "gradient_checkpointing": True}},
    "TRL, padding-free": {"trl": True, "arguments": {"max_length": None, "padding_free": True}},
    "TRL, packed": {"trl": True, "arguments": {"max_length": 40, "packing": True, "num_train_epochs": 3}},
    "TRL, tokens of each rank": {"trl": True, "arguments": {"average_tokens_across_devices": False}},
}

Found = dict[str, Any]


def make_rows() -> list[dict[str, Any]]:
    """Rows of different lengths and numbers of labels, with an alpha and a weight each."""
    generator, rows = torch.Generator().manual_seed(1), []
    for row in range(ROWS):
        ids = torch.randint(5, VOCABULARY, (4 + 3 * (row % 5),), generator=generator).tolist()
        labels = [-100] * (row % 4) + ids[row % 4 :]
        rows.append({"input_ids": ids, "labels": labels, "alpha": 0.1 * (row % 4), "loss_weight": 0.5 + 0.25 * (row % 3)})
    return rows


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, chat_tokenizer: Any) -> Path:
    """Make a small random Llama."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    folder = tmp_path_factory.mktemp("model")
    LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, **sizes)).save_pretrained(folder)
    chat_tokenizer("chatml").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def found(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Found]:
    """Run all tasks on two ranks."""
    folder = tmp_path_factory.mktemp("trainers")
    given = {"model": str(model), "arguments": ARGUMENTS, "tasks": TASKS}
    torch.save(given | {"rows": make_rows()}, folder / "tasks")
    done = run_ranks(2, WORKER, str(folder / "tasks"), timeout=600)
    assert done.returncode == 0, done.stderr[-5000:]
    return {name: torch.load(folder / f"{name}.pt", weights_only=True) for name in TASKS}


def samples(batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Take the packs of a batch apart."""
    apart = []
    for row in batch:
        end = 0
        for length in row.get("seq_lengths") or [len(row["input_ids"])]:
            start, end = end, end + length
            apart.append({k: v[start:end] if isinstance(v, list) else v for k, v in row.items() if k != "seq_lengths"})
    return apart


def losses(model: Any, row: dict[str, Any]) -> tuple[Tensor, Tensor, int]:
    """Sum w (NLL against (1 - alpha) one-hot + alpha / V), and the plain NLL, over a row's labels; and count these."""
    logs = model(torch.tensor([row["input_ids"]])).logits[0, :-1].log_softmax(-1)
    labels = torch.tensor(row["labels"][1:])
    kept = labels != -100
    first = {name: row[name][0] if isinstance(row[name], list) else row[name] for name in ("alpha", "loss_weight")}
    at_label = logs[kept].gather(1, labels[kept][:, None]).squeeze(1)
    smoothed = -first["loss_weight"] * ((1 - first["alpha"]) * at_label + first["alpha"] * logs[kept].mean(1))
    return smoothed.sum(), -at_label.sum().detach(), int(kept.sum())


@pytest.mark.parametrize("name", TASKS)
def test_every_step_is_that_of_plain_torch(found: dict[str, Found], model: Path, name: str) -> None:
    of_ranks, arguments = found[name]["batches"], ARGUMENTS | TASKS[name]["arguments"]
    epochs = arguments["num_train_epochs"]
    assert len(of_ranks[0]) == len(of_ranks[1]) and len(of_ranks[0]) % epochs == 0
    per_epoch = len(of_ranks[0]) // epochs
    assert per_epoch % ACCUMULATION, "the last step of an epoch is shorter"
    plain: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    logged = [entry for entry in found[name]["log"] if "loss" in entry]
    for epoch in range(epochs):
        for start in range(0, per_epoch, ACCUMULATION):
            micro = range(epoch * per_epoch + start, epoch * per_epoch + min(start + ACCUMULATION, per_epoch))
            mine = [[row for number in micro for row in samples(batches[number])] for batches in of_ranks]
            sums = [[losses(plain, row) for row in rows] for rows in mine]
            counts = [sum(count for *_, count in own) for own in sums]
            if arguments.get("average_tokens_across_devices", True):
                counts = [sum(counts) / 2] * 2
            loss = sum(sum(one for one, *_ in own) / count for own, count in zip(sums, counts, strict=True)) / 2
            plain.zero_grad()
            loss.backward()
            line = logged.pop(0)
            assert line["loss"] == pytest.approx(float(loss), abs=2e-4)
            if TASKS[name]["trl"]:
                nll, tokens = (sum(float(one[at]) for own in sums for one in own) for at in (1, 2))
                assert line["nll"] == pytest.approx(nll / tokens, rel=1e-4)
            with torch.no_grad():
                for parameter in plain.parameters():
                    parameter -= RATE * parameter.grad
    assert not logged
    torch.testing.assert_close(found[name]["weights"], dict(plain.state_dict()), atol=2e-5, rtol=1e-4)
