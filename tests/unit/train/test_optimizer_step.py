"""One step by one process against plain torch: the loss, its gradient, the clipped update, and what stops it."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from ual_ray.config import TrainConfig
from ual_ray.train.batches import Batch, collate
from ual_ray.train.model import SmoothedCausalLM
from ual_ray.train.optimizer_step import NonFiniteError, make_optimizer, train_step, validate
from ual_ray.train.token_store import Sample

CPU = torch.device("cpu")
SAMPLES = [
    Sample("a", np.array([3, 4, 5]), np.array([-100, 4, 5]), 0.2, 0),
    Sample("b", np.array([9, 8, 7, 6, 5, 4]), np.array([-100, -100, 7, 6, 5, 4]), 0.4, 1),
    Sample("c", np.array([1, 2, 3, 1]), np.array([-100, 2, 3, 1]), 0.0),
]
TARGET_TOKENS = 9
BATCHES = [collate([[SAMPLES[0]], [SAMPLES[1]]]), collate([[SAMPLES[2]]])]
CONFIG = TrainConfig(learning_rate=1e-2, adam_beta2=0.99)


pytestmark = pytest.mark.usefixtures("group")


@pytest.fixture
def model() -> SmoothedCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return SmoothedCausalLM(LlamaForCausalLM(LlamaConfig(vocab_size=50, **sizes)), uncertainty_bins=2)


def plain_loss(model: SmoothedCausalLM) -> torch.Tensor:
    """Compute the step's loss from full logits, one sample at a time."""
    total = torch.zeros(())
    for sample in SAMPLES:
        logits = model.model(torch.as_tensor(sample.input_ids)[None]).logits[0, :-1]
        labels = torch.as_tensor(sample.labels[1:])
        total = total + torch.nn.functional.cross_entropy(
            logits, labels, label_smoothing=sample.alpha, reduction="sum", ignore_index=-100
        )
    return total / TARGET_TOKENS


@pytest.mark.parametrize(
    ("kind", "own", "stacked"),
    [
        ("cohere", {"use_qk_norm": True}, {"q_norm.weight", "k_norm.weight"}),
        ("gpt_oss", {"head_dim": 8, "num_local_experts": 2}, {"experts.gate_up_proj_bias", "experts.down_proj_bias"}),
    ],
)
def test_norms_and_biases_do_not_decay_also_where_they_are_stacked_by_head_or_expert(
    kind: str, own: dict[str, Any], stacked: set[str]
) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 50}
    config = AutoConfig.for_model(kind, **sizes, num_key_value_heads=2, **own)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    names = {parameter: name for name, parameter in model.named_parameters()}
    decaying, others = make_optimizer(model, TrainConfig(weight_decay=0.1)).param_groups
    assert (decaying["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    kept = [names[parameter] for parameter in others["params"]]
    assert stacked == {name.split(".", 4)[4] for name in kept if model.get_parameter(name).ndim > 1}
    assert not [name for name in map(names.get, decaying["params"]) if "bias" in str(name) or "norm" in str(name)]
    assert len(kept) + len(decaying["params"]) == len(names)


def test_a_step_is_that_of_plain_torch(model: SmoothedCausalLM) -> None:
    expected = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(expected.parameters(), lr=5e-3, betas=(0.9, 0.99), weight_decay=0.0)
    loss = plain_loss(expected)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(expected.parameters(), 0.5)
    optimizer.step()

    own = make_optimizer(model, CONFIG)
    metrics, votes = train_step(model, own, BATCHES, TARGET_TOKENS, 5e-3, 0.5, CPU, votes=(1.0, 0.0))
    assert metrics["smoothed_loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert metrics["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)
    assert (metrics["learning_rate"], metrics["target_tokens"], metrics["positions"]) == (5e-3, TARGET_TOKENS, 2 * 6 + 4)
    assert metrics["mean_alpha"] == pytest.approx((2 * 0.2 + 4 * 0.4) / TARGET_TOKENS)
    assert votes == [1.0, 0.0]
    for (name, parameter), wanted in zip(model.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(parameter, wanted, rtol=1e-3, atol=1e-5, msg=name)
        assert parameter.grad is None


def test_by_bin(model: SmoothedCausalLM) -> None:
    metrics, _ = train_step(model, make_optimizer(model, CONFIG), BATCHES, TARGET_TOKENS, 0.0, 1.0, CPU)
    alone = {sample.id: validate(model, [collate([[sample]])], CPU) for sample in SAMPLES}
    assert metrics["nll/uncertainty_bin_1"] == pytest.approx(alone["a"]["validation_nll"], rel=1e-5)
    assert metrics["nll/uncertainty_bin_2"] == pytest.approx(alone["b"]["validation_nll"], rel=1e-5)
    together = (2 * alone["a"]["validation_nll"] + 4 * alone["b"]["validation_nll"] + 3 * alone["c"]["validation_nll"]) / 9
    assert metrics["nll"] == pytest.approx(together, rel=1e-5)
    assert "validation_nll/uncertainty_bin_1" in alone["a"]
    assert alone["a"]["validation_smoothed_loss"] > alone["a"]["validation_nll"], "at the alpha that validation rows are given"


def test_validation_holds_one_micro_batch_at_a_time(model: SmoothedCausalLM) -> None:
    made: list[weakref.ref[Batch]] = []

    def batches() -> Iterator[Batch]:
        for sample in SAMPLES:
            batch = collate([[sample]])
            made.append(weakref.ref(batch))
            yield batch
            del batch
            assert sum(one() is not None for one in made) == 1

    validate(model, batches(), CPU)
    assert len(made) == len(SAMPLES)


def test_accumulation_changes_nothing(model: SmoothedCausalLM) -> None:
    other = copy.deepcopy(model)
    apart = [collate([[sample]]) for sample in SAMPLES]
    one, _ = train_step(model, make_optimizer(model, CONFIG), BATCHES, TARGET_TOKENS, 1e-2, 1.0, CPU)
    two, _ = train_step(other, make_optimizer(other, CONFIG), [*apart, collate([])], TARGET_TOKENS, 1e-2, 1.0, CPU)
    for name in ("nll", "smoothed_loss", "smoothing", "top1", "mean_alpha", "grad_norm"):
        assert two[name] == pytest.approx(one[name], rel=1e-5), name


@pytest.mark.parametrize("poisoned", ["weights", "gradient"])
def test_what_is_no_number_stops_before_the_update(poisoned: str, model: SmoothedCausalLM) -> None:
    parameter = model.model.model.embed_tokens.weight
    if poisoned == "weights":
        with torch.no_grad():
            parameter[5] = float("nan")
    else:
        parameter.register_hook(lambda gradient: gradient * float("inf"))
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimizer = make_optimizer(model, CONFIG)
    with pytest.raises(NonFiniteError, match="nan|inf"):
        train_step(model, optimizer, BATCHES, TARGET_TOKENS, 1e-2, 1.0, CPU)
    assert not optimizer.state
    for name, value in model.named_parameters():
        torch.testing.assert_close(value, before[name], equal_nan=True, rtol=0, atol=0)


def test_a_step_without_targets_changes_nothing(model: SmoothedCausalLM) -> None:
    before = [value.detach().clone() for value in model.parameters()]
    nothing: list[Batch] = [collate([])]
    metrics, _ = train_step(model, make_optimizer(model, CONFIG), nothing, 0, 1e-2, 1.0, CPU)
    assert (metrics["nll"], metrics["grad_norm"], metrics["target_tokens"]) == (0.0, 0.0, 0.0)
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), before, strict=True))


def test_only_matrices_decay_and_only_what_is_trained_is_optimized(model: SmoothedCausalLM, tmp_path: Path) -> None:
    model.model.lm_head.weight.requires_grad_(False)
    matrices, rest = make_optimizer(model, CONFIG.model_copy(update={"weight_decay": 0.1})).param_groups
    assert (matrices["weight_decay"], rest["weight_decay"]) == (0.1, 0.0)
    assert all(parameter.ndim == 2 for parameter in matrices["params"])
    assert all(parameter.ndim == 1 for parameter in rest["params"])
    assert len(matrices["params"]) + len(rest["params"]) == len([*model.parameters()]) - 1
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.ndim == 2)
    assert len(make_optimizer(model, CONFIG).param_groups) == 1
