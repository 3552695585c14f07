"""The loss module on one process, without FSDP, over many families of models: right logits, packs, bins, and refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from transformers import AutoConfig, AutoModelForCausalLM

from ual_ray.config import LoraConfig, TrainConfig
from ual_ray.errors import UserError
from ual_ray.models.chat import IGNORE_INDEX
from ual_ray.train.attention import use_varlen
from ual_ray.train.batches import Sample, collate
from ual_ray.train.lora import ADAPTER, adapted_layers, add_adapters
from ual_ray.train.model import SUMS, SmoothedCausalLM, check_loss
from ual_ray.train.token_losses import dft
from ual_ray.train.weights import empty_model, load_weights

CPU = torch.device("cpu")


def make_samples(count: int = 3) -> list[Sample]:
    generator = np.random.default_rng(0)
    samples = []
    for number in range(count):
        ids = generator.integers(4, 600, 5 + 3 * number).astype(np.int32)
        labels = ids.copy()
        labels[:2] = IGNORE_INDEX
        samples.append(Sample(str(number), ids, labels, 0.1 * number, number % 2 - 1))
    return samples


def load(folder: Path, uncertainty_bins: int = 1) -> SmoothedCausalLM:
    return SmoothedCausalLM(
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), uncertainty_bins=uncertainty_bins
    )


def plain_loss(model: Any, samples: list[Sample]) -> torch.Tensor:
    total = torch.zeros(())
    for sample in samples:
        logits = model(torch.as_tensor(sample.input_ids).long()[None], use_cache=False).logits[0, :-1]
        labels = torch.as_tensor(sample.labels[1:]).long()
        total = total + torch.nn.functional.cross_entropy(logits, labels, label_smoothing=sample.alpha, reduction="sum")
    return total


@pytest.mark.slow
def test_the_loss_and_its_gradients_are_those_of_the_models_own_logits(any_family: str, family_folder: Any) -> None:
    model, other = load(family_folder(any_family)), load(family_folder(any_family)).model
    samples = make_samples()
    loss = model(collate([[sample] for sample in samples])).loss
    loss.backward()
    expected = plain_loss(other, samples)
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    # Experts without any token have None in one and zeros in the other.
    pairs = zip(model.model.named_parameters(), other.parameters(), strict=True)
    for (name, ours), theirs in ((pair, theirs) for pair, theirs in pairs if theirs.grad is not None):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=2e-4, atol=1e-4, msg=name)
    check_loss(model, CPU)


def test_smoothing_towards_the_model_before_training(family_folder: Any) -> None:
    folder = str(family_folder("llama"))
    before = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    causal_lm = empty_model(folder)
    add_adapters(causal_lm, LoraConfig(rank=2, dropout=0.5))
    load_weights(causal_lm, folder, CPU)
    draws = torch.Generator().manual_seed(0)
    for _, layer in adapted_layers(causal_lm):
        torch.nn.init.normal_(layer.lora_B[ADAPTER].weight, std=0.2, generator=draws)
    causal_lm.double()
    model = SmoothedCausalLM(causal_lm, uncertainty_bins=1, towards_base=True).eval()
    samples = make_samples()
    loss = model(collate([[sample] for sample in samples])).loss
    expected, moved = torch.zeros((), dtype=torch.float64), 0.0
    for sample in samples:
        ids, labels = (torch.as_tensor(part).long() for part in (sample.input_ids, sample.labels[1:]))
        logits = model.logits(ids[None])[0, :-1].log_softmax(1)
        towards = before(ids[None]).logits[0, :-1].softmax(1).detach()
        moved = max(moved, (logits.exp() - towards).abs().max().item())
        one_hot = torch.nn.functional.one_hot(labels.clamp(min=0), logits.shape[1])
        losses = -(((1 - sample.alpha) * one_hot + sample.alpha * towards) * logits).sum(1)
        expected = expected + losses[labels != IGNORE_INDEX].sum()
    assert moved > 0.01, "the adapters change the model, so that the test could fail"
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    names, values = zip(*((n, p) for n, p in causal_lm.named_parameters() if p.requires_grad), strict=True)
    for name, own, theirs in zip(names, *(torch.autograd.grad(x, values) for x in (loss, expected)), strict=True):
        torch.testing.assert_close(own, theirs, rtol=1e-4, atol=1e-5, msg=name)
    first, second = (model.train()._before_training(collate([samples[:1]]))["prior_hidden"] for _ in range(2))
    assert first is not None and second is not None and torch.equal(first, second), "without dropout"
    assert model.model.training


def moved(causal_lm: Any) -> Any:
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in causal_lm.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draws, dtype=parameter.dtype), alpha=0.05)
    return causal_lm


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "way"),
    [
        *((family, way) for family in ("llama", "llama_untied", "cohere") for way in ("rows", "masks", "varlen")),
        *(("gemma2", way) for way in ("rows", "masks")),
    ],
)
def test_a_model_trained_in_full_is_smoothed_towards_a_frozen_copy(family: str, way: str, family_folder: Any) -> None:
    folder, packed = family_folder(family), way != "rows"
    before, causal_lm, other = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval() for _ in range(3))
    for one in (causal_lm, other):
        moved(one)
    config = TrainConfig(packing=packed, attention="varlen" if way == "varlen" else "sdpa")
    own = {"varlen": [use_varlen(one, config, CPU) for one in (causal_lm, before)][0]}
    copy = SmoothedCausalLM(before.requires_grad_(False), **own)
    model = SmoothedCausalLM(causal_lm, uncertainty_bins=1, towards_base=True, copy=copy, **own)
    if way == "masks":
        model.with_masks()
    samples = make_samples()
    loss = model(collate([samples[:2], samples[2:]] if packed else [[sample] for sample in samples], packed=packed)).loss
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    expected, apart = torch.zeros((), dtype=torch.float64), 0.0
    for sample in samples:
        ids, labels = (torch.as_tensor(part).long() for part in (sample.input_ids, sample.labels[1:]))
        logits = other(ids[None], use_cache=False).logits[0, :-1].log_softmax(1)
        towards = reference(ids[None], use_cache=False).logits[0, :-1].softmax(1).detach()
        apart = max(apart, (logits.exp() / towards - 1).abs().max().item())
        one_hot = torch.nn.functional.one_hot(labels.clamp(min=0), logits.shape[1])
        losses = -(((1 - sample.alpha) * one_hot + sample.alpha * towards) * logits).sum(1)
        expected = expected + losses[labels != IGNORE_INDEX].sum()
    assert apart > 0.1, "training has changed the model, so that the test could fail"
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    loss.backward()
    expected.backward()
    for (name, ours), theirs in zip(causal_lm.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-6, msg=name)
    assert not any(name.startswith("_copies") for name in model.state_dict()), "nor in checkpoints"
    assert [*model.parameters()] == [*causal_lm.parameters()] and all(one.grad is None for one in before.parameters())
    assert not before.training and model.training


def test_a_pack_has_the_loss_and_the_gradients_of_its_samples_apart(packable: str, family_folder: Any) -> None:
    model, other = load(family_folder(packable)), load(family_folder(packable))
    samples = make_samples()
    packed = model(collate([samples[:2], samples[2:]], packed=True))
    apart = other(collate([[sample] for sample in samples]))
    packed.loss.backward()
    apart.loss.backward()
    torch.testing.assert_close(packed.loss, apart.loss, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(packed.by_bin, apart.by_bin, rtol=1e-5, atol=1e-5)
    for (name, ours), theirs in zip(model.model.named_parameters(), other.model.parameters(), strict=True):
        if theirs.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=2e-4, atol=1e-4, msg=name)
    check_loss(model, CPU, packing=True)


def computing_in(dtype: torch.dtype, model: SmoothedCausalLM) -> SmoothedCausalLM:
    """Cast as FSDP does it: parameters, not buffers."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.slow
def test_packing_is_allowed_in_any_dtype(packable: str, dtype: torch.dtype, family_folder: Any) -> None:
    check_loss(computing_in(dtype, load(family_folder(packable))), CPU, packing=True)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("leaky", ["opt", "bloom"])
def test_a_model_whose_packs_leak_is_refused(leaky: str, dtype: torch.dtype, family_folder: Any) -> None:
    model = computing_in(dtype, load(family_folder(leaky)))
    check_loss(model, CPU)
    with pytest.raises(UserError, match="packing"):
        check_loss(model, CPU, packing=True)


class Body:
    """A decoder's forward with a fault in packs, or with other kernels for them."""

    def __init__(self, model: SmoothedCausalLM, fault: str) -> None:
        self.forward, self.fault = model.body.forward, fault

    def __call__(self, input_ids: torch.Tensor, attention_mask: Any = None, position_ids: Any = None, **given: Any) -> Any:
        packed, length = attention_mask is None and position_ids is not None, input_ids.shape[1]
        if packed and self.fault == "positions go on":
            sample = torch.cumsum(position_ids == 0, 1)
            sees = (sample[:, :, None] == sample[:, None]) & torch.ones(length, length, dtype=torch.bool).tril()
            attention_mask, position_ids = sees[:, None], torch.arange(length)[None]
        if packed and self.fault == "the first sees the last":
            input_ids = torch.cat([input_ids[:, -1:], input_ids[:, 1:]], 1)
        output = self.forward(input_ids, attention_mask=attention_mask, position_ids=position_ids, **given)
        if not packed and self.fault == "other kernels":
            hidden = output.last_hidden_state
            output.last_hidden_state = hidden * torch.linspace(0.5, 1.5, hidden.shape[-1], dtype=hidden.dtype)
        return output


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fault", ["positions go on", "the first sees the last"])
def test_a_fault_in_packs_is_found_in_any_dtype(
    fault: str, dtype: torch.dtype, family_folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = computing_in(dtype, load(family_folder("gpt2")))
    check_loss(model, CPU, packing=True)
    monkeypatch.setattr(model.body, "forward", Body(model, fault))
    check_loss(model, CPU)
    with pytest.raises(UserError, match="packing"):
        check_loss(model, CPU, packing=True)


def test_other_values_of_a_pack_are_rounding_in_bfloat16_alone(family_folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(family_folder("llama"))
    monkeypatch.setattr(model.body, "forward", Body(model, "other kernels"))
    sample = Sample("", np.arange(9, 1, -1), np.arange(9, 1, -1), 0.0)
    alone, packed = model(collate([[sample]])).loss, model(collate([[sample]], packed=True)).loss
    assert abs(alone - packed) > 0.005 * alone
    with pytest.raises(UserError, match="packing"):
        check_loss(model, CPU, packing=True)
    check_loss(computing_in(torch.bfloat16, model), CPU, packing=True)


@pytest.mark.parametrize("family", ["gemma2", "cohere", "granite"])
def test_a_change_of_logits_that_is_not_known_is_refused(family: str, family_folder: Any) -> None:
    model = load(family_folder(family))
    model.head.softcap, model.head.scale = None, 1.0
    with pytest.raises(UserError, match="logits"):
        check_loss(model, CPU)


def test_sums_are_told_apart_by_bin(family_folder: Any) -> None:
    samples = make_samples()
    model = load(family_folder("llama"), uncertainty_bins=2)
    sums = model(collate([[sample] for sample in samples]))
    alone = [model(collate([[sample]])).by_bin.sum(0) for sample in samples]
    assert sums.by_bin.shape == (3, len(SUMS))
    assert sums.by_bin.dtype == torch.float64
    assert not sums.by_bin.requires_grad
    torch.testing.assert_close(sums.by_bin[0], alone[0] + alone[2], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sums.by_bin[1], alone[1], rtol=1e-5, atol=1e-5)
    assert not sums.by_bin[2].any()
    total = dict(zip(SUMS, sums.by_bin.sum(0).tolist(), strict=True))
    counts = [len(sample.labels) - 2 for sample in samples]
    assert total["target_tokens"] == sum(counts)
    assert total["alpha"] == pytest.approx(sum(count * sample.alpha for count, sample in zip(counts, samples, strict=True)))
    assert total["nll"] + total["smoothing"] == pytest.approx(sums.loss.item(), rel=1e-5)


def test_alpha_zero_is_the_loss_of_transformers(family_folder: Any) -> None:
    (sample,) = make_samples(1)
    model = load(family_folder("llama"))
    sums = model(collate([[sample]]))
    ids, labels = (torch.as_tensor(values).long()[None] for values in (sample.input_ids, sample.labels))
    expected = model.model(ids, labels=labels).loss
    assert sums.loss.item() / sums.by_bin[0, SUMS.index("target_tokens")].item() == pytest.approx(expected.item(), rel=1e-6)


def test_a_batch_without_targets_gives_zero_loss_and_zero_gradients(family_folder: Any) -> None:
    model = load(family_folder("llama"))
    for packed in (False, True):
        sums = model(collate([], packed=packed))
        sums.loss.backward()
        assert sums.loss.item() == 0
        assert not sums.by_bin.any()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert gradients
    assert all((gradient == 0).all() for gradient in gradients)


@pytest.mark.parametrize("family", ["llama", "llama_untied", "gpt2"])
def test_a_frozen_head_and_adapters_have_the_loss_of_the_model(family: str, family_folder: Any) -> None:
    folder, samples = family_folder(family), make_samples()
    causal_lm = empty_model(str(folder))
    add_adapters(causal_lm, LoraConfig(rank=2))
    load_weights(causal_lm, str(folder), CPU)
    model = SmoothedCausalLM(causal_lm.eval(), uncertainty_bins=1)
    loss = model(collate([[sample] for sample in samples])).loss
    loss.backward()
    torch.testing.assert_close(loss, plain_loss(load(folder).model, samples), rtol=1e-5, atol=1e-5)
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained
    assert all("lora_" in name for name in trained)


def test_weights_prior_and_loss_are_those_of_the_definition_packed_or_not(packable: str, family_folder: Any) -> None:
    causal_lm = AutoModelForCausalLM.from_pretrained(family_folder(packable), dtype=torch.float32)
    size = causal_lm.config.get_text_config().vocab_size
    prior = torch.rand(size, generator=torch.Generator().manual_seed(0))
    prior /= prior.sum()
    model = SmoothedCausalLM(causal_lm.eval(), uncertainty_bins=1, token_loss=dft, prior=prior)
    model.training = True  # and no dropout below it
    samples = [replace(sample, weight=weight) for sample, weight in zip(make_samples(), (0.5, 1.0, 2.0), strict=True)]
    apart = model(collate([[sample] for sample in samples])).loss
    packed = model(collate([samples[:2], samples[2:]], packed=True)).loss
    expected = torch.zeros(())
    for sample in samples:
        logits = causal_lm(torch.as_tensor(sample.input_ids).long()[None], use_cache=False).logits[0, :-1].float()
        labels = torch.as_tensor(sample.labels[1:]).long()
        kept = labels != IGNORE_INDEX
        logs = logits.log_softmax(1)[kept]
        at_label = logs.gather(1, labels[kept][:, None]).squeeze(1)
        smoothed = (1 - sample.alpha) * at_label + sample.alpha * (logs @ prior)
        expected = expected - sample.weight * (at_label.detach().exp() * smoothed).sum()
    torch.testing.assert_close(apart, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(packed, expected, rtol=1e-5, atol=1e-6)
    # In evaluation all tokens count alike, so that arms compare.
    plain = SmoothedCausalLM(causal_lm, uncertainty_bins=1, prior=prior).eval()
    unweighted = [replace(sample, weight=1.0) for sample in samples]
    torch.testing.assert_close(
        model.eval()(collate([samples], packed=True)).loss, plain(collate([unweighted], packed=True)).loss
    )


def random_model(kind: str, **settings: Any) -> SmoothedCausalLM:
    """Make a tiny model of another kind than the families, in evaluation mode."""
    torch.manual_seed(0)
    shape = {"vocab_size": 620, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    tokens = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    config = AutoConfig.for_model(kind, **shape, **tokens, **settings)
    return SmoothedCausalLM(AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval(), uncertainty_bins=1)


def test_a_model_that_cannot_be_called_is_refused_with_its_error() -> None:
    # transformers finds no decoder in it.
    model = random_model("llama4_text", head_dim=8, num_key_value_heads=2, num_local_experts=2, intermediate_size_mlp=64)
    with pytest.raises(UserError, match=r"(?s)Llama4ForCausalLM cannot be trained yet.*AttributeError: .*last_hidden_state"):
        check_loss(model, CPU)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), dist.DistBackendError("NCCL timed out")])
def test_other_failures_are_not_the_models(error: Exception, family_folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise error

    model = load(family_folder("llama"))
    monkeypatch.setattr(model, "forward", fail)
    with pytest.raises(type(error), match=str(error)):
        check_loss(model, CPU)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_states_of_another_precision_than_the_output_layer_are_converted(dtype: torch.dtype) -> None:
    model = computing_in(dtype, random_model("mamba", state_size=16))
    check_loss(model, CPU)
    loss = model.train()(collate([[sample] for sample in make_samples()])).loss
    loss.backward()
    assert loss.isfinite() and all(parameter.grad is not None for parameter in model.parameters())
