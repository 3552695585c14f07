"""The smoothed forward in transformers' own Trainer, against logits and V-sized targets made by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    DataCollatorForSeq2Seq,
    DataCollatorWithFlattening,
    DynamicCache,
    GPT2Config,
    GptOssConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    Trainer,
    TrainingArguments,
)

from ual_ray.errors import UserError
from ual_ray.integrations import SmoothedCollator, smoothed, smoothed_loss

VOCABULARY = 600
ROWS = 8


@pytest.fixture
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, **sizes))


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    found = []
    for row in range(ROWS):
        ids = torch.randint(VOCABULARY, (4 + 3 * row,), generator=generator).tolist()
        found.append({"input_ids": ids, "labels": [-100] * row + ids[row:], "alpha": 0.05 * row})
    return found


def by_hand(model: Any, rows: list[dict[str, Any]]) -> tuple[Tensor, int]:
    """Sum over the target tokens of all rows, one at a time, and their number."""
    total, count = torch.zeros(()), 0
    for row in rows:
        logits = model(torch.tensor([row["input_ids"]])).logits[0, :-1]
        labels = torch.tensor(row["labels"][1:])
        wanted = (1 - row["alpha"]) * torch.nn.functional.one_hot(labels.clamp(min=0), VOCABULARY) + row["alpha"] / VOCABULARY
        losses = -(wanted * logits.log_softmax(-1)).sum(-1)
        losses = row.get("loss_weight", 1.0) * losses
        total, count = total + losses[labels != -100].sum(), count + int((labels != -100).sum())
    return total, count


def first_step(
    model: Any,
    rows: list[dict[str, Any]],
    chat_tokenizer: Callable[[str], Any],
    folder: Path,
    micro_batch: int,
    **arguments: Any,
) -> dict[str, Tensor]:
    """Train one step of plain gradient descent on all rows; return what it took from the parameters, divided by the rate."""
    tokenizer = chat_tokenizer("chatml")
    tokenizer.pad_token, tokenizer.padding_side = tokenizer.eos_token, "right"
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    settings = TrainingArguments(
        str(folder),
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=ROWS // micro_batch,
        max_steps=1,
        optim="sgd",
        learning_rate=1.0,
        lr_scheduler_type="constant",
        max_grad_norm=0,
        use_cpu=True,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    Trainer(
        model,
        settings,
        data_collator=SmoothedCollator(DataCollatorForSeq2Seq(tokenizer)),
        train_dataset=Dataset.from_list(rows),
        **arguments,
    ).train()
    return {name: before[name] - parameter.detach() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("loss_function", [None, smoothed_loss], ids=["model's loss", "loss function"])
@pytest.mark.parametrize("micro_batch", [1, 2, 8])
@pytest.mark.slow
def test_gradients_under_accumulation_are_those_of_one_batch(
    model: Any, rows: Any, chat_tokenizer: Any, tmp_path: Path, micro_batch: int, loss_function: Any
) -> None:
    total, count = by_hand(model, rows)
    names = [name for name, _ in model.named_parameters()]
    expected = dict(zip(names, torch.autograd.grad(total / count, list(model.parameters())), strict=True))
    found = first_step(smoothed(model), rows, chat_tokenizer, tmp_path, micro_batch, compute_loss_func=loss_function)
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-3)


@pytest.mark.parametrize("peft", [False, True])
def test_a_forward_that_is_replaced_later_is_refused(model: Any, peft: bool) -> None:
    """As by Liger's kernels when training starts: alpha would be left out, and training go on."""
    from peft import LoraConfig, get_peft_model

    own: Any = get_peft_model(model, LoraConfig(target_modules=["q_proj"])) if peft else model
    smoothed(own)
    ids = torch.tensor([[1, 2, 3, 4]])
    batch = {"input_ids": ids, "labels": ids, "alpha": torch.full((1, 4), 0.1)}
    assert own(**batch).target_tokens == 3
    model.forward = MethodType(type(model).forward, model)
    with pytest.raises(UserError, match="forward was replaced"):
        own(**batch)
    assert own(input_ids=ids, labels=ids).logits.shape == (1, 4, VOCABULARY)
    with torch.no_grad():  # for metrics
        assert own(**batch).logits.shape == (1, 4, VOCABULARY)


def test_rows_count_by_their_weight(model: Any, rows: Any, chat_tokenizer: Any, tmp_path: Path) -> None:
    weighted = [row | {"loss_weight": 0.5 + 0.25 * number} for number, row in enumerate(rows)]
    total, count = by_hand(model, weighted)
    names = [name for name, _ in model.named_parameters()]
    expected = dict(zip(names, torch.autograd.grad(total / count, list(model.parameters())), strict=True))
    found = first_step(smoothed(model), weighted, chat_tokenizer, tmp_path, 2)
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-3)


def test_evaluation_is_unsmoothed_and_other_calls_are_the_models_own(model: Any, rows: Any, chat_tokenizer: Any) -> None:
    batch = SmoothedCollator(DataCollatorForSeq2Seq(chat_tokenizer("chatml")))([rows[3] | {"loss_weight": 3.0}])
    total, count = by_hand(model, [rows[3] | {"alpha": 0.0}])
    logits = model(batch["input_ids"]).logits
    smoothed(model).eval()
    output = model(**batch)
    torch.testing.assert_close(output.loss, total / count)
    torch.testing.assert_close(output.nll.float(), total)
    assert output.target_tokens == count
    assert torch.equal(model(batch["input_ids"]).logits, logits)
    model.generate(batch["input_ids"], attention_mask=torch.ones_like(batch["input_ids"]), max_new_tokens=2)


def test_an_all_masked_batch_has_no_loss_and_a_graph(model: Any) -> None:
    ids = torch.tensor([[1, 2, 3]])
    loss = smoothed(model).train()(input_ids=ids, labels=torch.full_like(ids, -100), alpha=torch.zeros(1, 3)).loss
    loss.backward()
    assert loss == 0
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in model.parameters())


def test_other_outputs_are_refused(model: Any) -> None:
    with pytest.raises(TypeError, match=r"needs smoothed\(model\)"):
        smoothed_loss(model(torch.tensor([[1, 2]])))


def test_adapters_get_the_gradients_of_the_smoothed_loss(model: Any, rows: Any, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model.save_pretrained(tmp_path)
    settings = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    torch.manual_seed(3)
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path), settings)
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    total, count = by_hand(adapted, [rows[5]])
    expected = torch.autograd.grad(total / count, trained)
    ids, labels = (torch.tensor([rows[5][name]]) for name in ("input_ids", "labels"))
    loss = smoothed(adapted).train()(input_ids=ids, labels=labels, alpha=torch.full(ids.shape, rows[5]["alpha"])).loss
    torch.testing.assert_close(torch.autograd.grad(loss, trained), expected)


SMALL: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": VOCABULARY}
DENSE = {**SMALL, "intermediate_size": 32, "num_key_value_heads": 1}
EXPERTS = {**DENSE, "head_dim": 8, "num_local_experts": 4, "sliding_window": 8}


def gradients(model: Any, rows: list[dict[str, Any]], collator: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the gradients by the definition and those of the smoothed forward, of one batch of rows."""
    parameters = dict(model.train().named_parameters())
    total, count = by_hand(model, rows)
    expected = torch.autograd.grad(total / count, [*parameters.values()])
    loss = smoothed(model).train()(**SmoothedCollator(collator)(rows)).loss
    found = torch.autograd.grad(loss, [*parameters.values()])
    return dict(zip(parameters, expected, strict=True)), dict(zip(parameters, found, strict=True))


@pytest.mark.parametrize(
    "config",
    [LlamaConfig(**DENSE), GPT2Config(n_embd=16, n_layer=1, n_head=2, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)],
    ids=["rotary", "table of positions"],
)
def test_padding_on_the_left_changes_nothing(config: Any, rows: Any, chat_tokenizer: Any) -> None:
    config.vocab_size = VOCABULARY
    tokenizer = chat_tokenizer("chatml")
    tokenizer.pad_token, tokenizer.padding_side = tokenizer.eos_token, "left"
    torch.manual_seed(0)
    whole = [row | {"labels": row["input_ids"]} for row in rows[1:4]]
    expected, found = gradients(AutoModelForCausalLM.from_config(config), whole, DataCollatorForSeq2Seq(tokenizer))
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-3)


def test_packs_are_refused_where_their_samples_reach_each_other(rows: Any) -> None:
    torch.manual_seed(0)
    flat = DataCollatorWithFlattening()
    expected, found = gradients(AutoModelForCausalLM.from_config(GptOssConfig(**EXPERTS)), rows[2:4], flat)
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-3)
    bloom = smoothed(AutoModelForCausalLM.from_config(BloomConfig(vocab_size=VOCABULARY, hidden_size=16, n_layer=1, n_head=2)))
    with pytest.raises(UserError, match=r"BloomForCausalLM cannot be trained on packed or padding-free batches"):
        bloom(**SmoothedCollator(flat)(rows[2:4]))
    with pytest.raises(UserError, match=r"BloomForCausalLM cannot be trained on packed or padding-free batches"):
        bloom(**SmoothedCollator(DataCollatorWithFlattening(position_ids_start=1))(rows[2:4]))
    bloom(**SmoothedCollator(flat)(rows[2:3]))


def test_the_divisor_is_that_of_the_step_whatever_the_models_own_loss_does(
    model: Any, rows: Any, chat_tokenizer: Any, tmp_path: Path
) -> None:
    class OwnMean(LlamaForCausalLM):
        accepts_loss_kwargs = False  # as Gemma 4 has it

    model.__class__ = OwnMean
    total, count = by_hand(model, rows)
    names = [name for name, _ in model.named_parameters()]
    expected = dict(zip(names, torch.autograd.grad(total / count, list(model.parameters())), strict=True))
    found = first_step(smoothed(model), rows, chat_tokenizer, tmp_path, 2)
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-3)


def test_evaluation_has_no_z_loss(model: Any, rows: Any, chat_tokenizer: Any) -> None:
    batch = SmoothedCollator(DataCollatorForSeq2Seq(chat_tokenizer("chatml")))([rows[3]])
    total, count = by_hand(model, [rows[3] | {"alpha": 0.0}])
    losses = smoothed(model, z_loss=0.1)
    torch.testing.assert_close(losses.eval()(**batch).loss, total / count)
    assert losses.train()(**batch).loss > total / count + 1


def test_what_the_loss_would_leave_out_is_refused(model: Any, rows: Any, chat_tokenizer: Any) -> None:
    from peft import LoraConfig, get_peft_model

    batch = SmoothedCollator(DataCollatorForSeq2Seq(chat_tokenizer("chatml")))([rows[3]])
    with pytest.raises(UserError, match=r"(?s)without some of the model's inputs.*past_key_values"):
        smoothed(model)(**batch, past_key_values=DynamicCache())
    experts = AutoModelForCausalLM.from_config(MixtralConfig(**EXPERTS, output_router_logits=True))
    with pytest.raises(UserError, match=r"router_aux_loss_coef=0.0"):
        smoothed(experts)
    adapted: Any = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "lm_head"]))
    with pytest.raises(UserError, match="an adapter on the output layer would not be trained"):
        smoothed(adapted)
    with pytest.raises(UserError, match="an adapter on the output layer would not be trained"):
        adapted(**batch)
