"""The loss module on one process, without FSDP: labels shifted once, padded vocabularies, and nothing where nothing is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from ual_ray.train.batches import Sample, collate
from ual_ray.train.model import SmoothedCausalLM


@pytest.fixture(scope="module")
def model() -> SmoothedCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2
    )
    return SmoothedCausalLM(LlamaForCausalLM(config).eval())


def test_alpha_zero_is_the_loss_of_transformers(model: SmoothedCausalLM) -> None:
    sample = Sample("a", [3, 4, 5, 6, 7], [-100, -100, 5, 6, 7], 0.0)
    sums = model(collate([sample]))
    expected = model.model(torch.tensor([sample.input_ids]), labels=torch.tensor([sample.labels])).loss
    assert (sums.loss / sums.target_tokens).item() == pytest.approx(expected.item(), rel=1e-6)
    assert sums.nll.item() == pytest.approx(sums.loss.item())
    assert sums.target_tokens == 3


def test_padding_changes_nothing(model: SmoothedCausalLM) -> None:
    short, long = Sample("a", [3, 4, 5], [-100, 4, 5], 0.2), Sample("b", [9, 8, 7, 6, 5, 4], [-100, -100, 7, 6, 5, 4], 0.4)
    together = model(collate([short, long]))
    apart = [model(collate([sample])) for sample in (short, long)]
    for name in ("loss", "nll", "smoothing", "alpha", "target_tokens"):
        assert getattr(together, name).item() == pytest.approx(sum(getattr(sums, name).item() for sums in apart), rel=1e-5)
    assert together.alpha.item() == pytest.approx(2 * 0.2 + 4 * 0.4)


def test_a_batch_without_targets_gives_zero_loss_and_zero_gradients(model: SmoothedCausalLM) -> None:
    sums = model(collate([]))
    sums.loss.backward()
    assert sums.loss.item() == 0
    assert sums.target_tokens == 0
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert all((gradient == 0).all() for gradient in gradients)
    model.zero_grad(set_to_none=True)


def test_safetensors_only(tmp_path: Path) -> None:
    from ual_ray.train.model import load_causal_lm

    config = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    config.save_pretrained(tmp_path)
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        load_causal_lm(str(tmp_path))
