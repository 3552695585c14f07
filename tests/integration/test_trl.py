"""TRL's SFTTrainer with the smoothed loss, on real runs: plain, packed and padding-free are the same training."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, IterableDataset
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from ual_ray import columns as col
from ual_ray.errors import UserError
from ual_ray.integrations import SmoothedCollator, smoothed, smoothed_loss
from ual_ray.integrations.trl import SmoothedSFTTrainer

ROWS = 8


@pytest.fixture
def rows() -> Dataset:
    """Chat rows with an alpha each, as `ual smooth` writes them."""
    return Dataset.from_list(
        [
            {
                "messages": [
                    {"role": "user", "content": "Name a colour." * (1 + n % 3)},
                    {"role": "assistant", "content": "Blue, and one more, please. " * (1 + n)},
                ],
                "alpha": 0.05 * n,
                "loss_weight": 0.5 + 0.25 * n,
            }
            for n in range(ROWS)
        ]
    )


def settings(folder: Path, **options: Any) -> SFTConfig:
    """One step of plain gradient descent at rate 1: what it takes from the parameters is the gradient."""
    defaults = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 4,
        "max_steps": 1,
        "max_length": 256,
        "optim": "sgd",
        "learning_rate": 1.0,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "report_to": [],
        "logging_steps": 1,
        "disable_tqdm": True,
    }
    return SFTConfig(str(folder), **{**defaults, **options})


def step(trainer: Any) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Train one step; return the gradient by parameter, and what was logged."""
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    logged = next(entry for entry in trainer.state.log_history if "loss" in entry)
    return {name: before[name] - parameter.detach() for name, parameter in trainer.model.named_parameters()}, logged


def load(model: Path) -> dict[str, Any]:
    tokenizer = AutoTokenizer.from_pretrained(model)
    # Rows differ in length: padding must be there, and masked.
    tokenizer.pad_token = tokenizer.eos_token
    return {"model": AutoModelForCausalLM.from_pretrained(model), "processing_class": tokenizer}


def expected(model: Path, rows: Dataset) -> dict[str, Tensor]:
    """The gradient by the definition, row by row, with V-sized targets."""
    loaded = load(model)
    causal_lm, tokenizer = loaded["model"], loaded["processing_class"]
    losses, count = [], 0
    for row in rows:
        ids = torch.tensor(tokenizer.apply_chat_template(row["messages"], return_dict=False))
        logits = causal_lm(ids[None]).logits[0, :-1]
        size = logits.shape[1]
        wanted = (1 - row["alpha"]) * torch.nn.functional.one_hot(ids[1:], size) + row["alpha"] / size
        losses.append(-row["loss_weight"] * (wanted * logits.log_softmax(-1)).sum())
        count += len(ids) - 1
    (torch.stack(losses).sum() / count).backward()
    return {name: parameter.grad for name, parameter in causal_lm.named_parameters()}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1},
        {"padding_free": True, "max_length": None},
        {"packing": True, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 8},
    ],
    ids=["padded", "one batch", "padding-free", "packed"],
)
def test_gradients_are_those_of_the_definition(
    tiny_model: Path, rows: Dataset, tmp_path: Path, options: dict[str, Any]
) -> None:
    trainer = SmoothedSFTTrainer(args=settings(tmp_path, **options), train_dataset=rows, **load(tiny_model))
    if options.get("packing"):
        lengths = [len(pack["seq_lengths"]) for pack in trainer.train_dataset]
        assert len(lengths) < ROWS and sum(lengths) == ROWS
        # All packs in one optimizer step, as the rows of the other cases are.
        trainer.args.gradient_accumulation_steps = len(lengths)
    found, logged = step(trainer)
    torch.testing.assert_close(found, expected(tiny_model, rows), atol=1e-5, rtol=1e-3)
    assert logged["nll"] != pytest.approx(logged["loss"])
    assert {"smoothing", "mean_token_accuracy"} <= set(logged)


def test_the_pair_works_in_trls_own_trainer(tiny_model: Path, rows: Dataset, tmp_path: Path) -> None:
    loaded = load(tiny_model)
    smoothed(loaded["model"])
    trainer = SFTTrainer(
        args=settings(tmp_path, remove_unused_columns=False),
        train_dataset=rows,
        compute_loss_func=smoothed_loss,
        **loaded,
    )
    trainer.train_dataset = trainer.train_dataset.select_columns(["input_ids", "labels", "alpha", "loss_weight"])
    trainer.data_collator = SmoothedCollator(trainer.data_collator)
    found, _ = step(trainer)
    torch.testing.assert_close(found, expected(tiny_model, rows), atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("strategy", ["wrapped", "bfd_split"])
@pytest.mark.parametrize("streamed", [False, True], ids=["", "streamed"])
def test_packs_that_go_on_with_a_row_have_all_its_tokens(
    tiny_model: Path, rows: Dataset, tmp_path: Path, strategy: str, streamed: bool
) -> None:
    options = settings(tmp_path, max_length=24, packing=True, packing_strategy=strategy)
    given = rows.to_iterable_dataset() if streamed else rows
    trainer = SmoothedSFTTrainer(args=options, train_dataset=given, **load(tiny_model))
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokens = [
        (token, token, row["alpha"], row["loss_weight"])
        for row in rows
        for token in tokenizer.apply_chat_template(row["messages"], return_dict=False)
    ]
    names = ("input_ids", "labels", "alpha", "loss_weight")
    packs = [*trainer.train_dataset]
    found = [token for pack in packs for token in zip(*(pack[name] for name in names), strict=True)]
    assert max(len(pack["input_ids"]) for pack in packs) == 24
    assert found == tokens if strategy == "wrapped" else sorted(found) == sorted(tokens)


def test_packs_of_rows_with_an_alpha_per_token(tiny_model: Path, rows: Dataset, tmp_path: Path) -> None:
    tokenized = Dataset.from_list([{"input_ids": [5, 6, 7], "labels": [5, 6, 7], "alpha": [0.0, 0.25, 0.5]}] * 2)
    options = settings(tmp_path, packing=True, max_length=8)
    trainer = SmoothedSFTTrainer(args=options, train_dataset=tokenized, **load(tiny_model))
    assert trainer.train_dataset[0]["alpha"] == [0.0, 0.25, 0.5] * 2


def test_means_are_over_target_tokens_however_they_are_split(tiny_model: Path, rows: Dataset, tmp_path: Path) -> None:
    found = []
    for size in (1, 8):
        arguments = settings(tmp_path, per_device_train_batch_size=size, gradient_accumulation_steps=ROWS // size)
        arguments.per_device_eval_batch_size = size
        trainer = SmoothedSFTTrainer(args=arguments, train_dataset=rows, eval_dataset=rows, **load(tiny_model))
        trainer.evaluate()
        found.append({"eval_nll": trainer.state.log_history[-1]["eval_nll"], **step(trainer)[1]})
    for name in ("eval_nll", "nll", "smoothing", "mean_token_accuracy"):
        assert found[0][name] == pytest.approx(found[1][name], rel=1e-5)


@pytest.mark.parametrize("options", [{"loss_type": "dft"}, {"label_smoothing_factor": 0.1}])
def test_another_loss_is_refused(tiny_model: Path, rows: Dataset, tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="has its own loss"):
        SmoothedSFTTrainer(args=settings(tmp_path, **options), train_dataset=rows, **load(tiny_model))


def test_parts_of_messages_that_trl_does_not_read_are_refused(tiny_model: Path, rows: Dataset, tmp_path: Path) -> None:
    def written(extra: dict[str, Any]) -> Dataset:
        """Rows as `ual smooth` writes them."""
        turns = [col.with_extra(col.Message(role=r, content=c), **extra) for r, c in (("user", "Hi."), ("assistant", "Ho."))]
        plain = [col.Message(role="user", content="Hi.", extra=None), col.Message(role="assistant", content="Ho.", extra=None)]
        return Dataset.from_list([{"messages": plain, "alpha": 0.1}, {"messages": turns, "alpha": 0.1}])

    SmoothedSFTTrainer(args=settings(tmp_path), train_dataset=written({"reference": "Ha."}), **load(tiny_model))
    for extra in ({"tool_calls": [{"name": "f"}]}, {"reasoning_content": "Hm."}):
        with pytest.raises(UserError, match=f"(?s)without parts of them.*{next(iter(extra))}"):
            SmoothedSFTTrainer(args=settings(tmp_path), train_dataset=written(extra), **load(tiny_model))
    later = [{"messages": [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Ho."}], "alpha": 0.1}]
    later += written({"tool_calls": [{"name": "f"}]}).to_list()
    streamed = SmoothedSFTTrainer(
        args=settings(tmp_path), train_dataset=IterableDataset.from_generator(lambda: iter(later)), **load(tiny_model)
    )
    with pytest.raises(UserError, match="without parts of them"):
        list(streamed.train_dataset)


def test_truncation_keeps_alphas_with_their_rows(tiny_model: Path, rows: Dataset, tmp_path: Path) -> None:
    arguments = settings(tmp_path, max_length=24, shuffle_dataset=True)
    trainer = SmoothedSFTTrainer(args=arguments, train_dataset=rows, **load(tiny_model))
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    whole = {row["alpha"]: tokenizer.apply_chat_template(row["messages"], return_dict=False) for row in rows}
    for row in trainer.train_dataset:
        assert row["input_ids"] == whole[row["alpha"]][:24]
    assert step(trainer)[1]["loss"] > 0


def test_adapters_and_evaluation(tiny_model: Path, rows: Dataset, tmp_path: Path) -> None:
    from peft import LoraConfig

    trainer = SmoothedSFTTrainer(
        args=settings(tmp_path, max_steps=3, eval_strategy="steps", eval_steps=1, packing=True),
        train_dataset=rows,
        eval_dataset=rows,
        peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"]),
        **load(tiny_model),
    )
    trainer.train()
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert losses[-1] < losses[0]
    assert all(re.search("lora", name) for name, p in trainer.model.named_parameters() if p.requires_grad)
