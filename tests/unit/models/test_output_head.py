"""Logits from hidden states are those of transformers' own models, soft-capped, scaled, with a bias, padded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from ual_ray.errors import UserError
from ual_ray.models.output_head import OutputHead
from ual_ray.train.loss import smoothed_linear_cross_entropy_with_metrics

IDS = torch.tensor([[4, 17, 3, 599, 31, 8, 250, 5]])


def load(folder: Path, **options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval()


def hidden_states(model: Any) -> torch.Tensor:
    return model.get_decoder()(input_ids=IDS, use_cache=False).last_hidden_state[0]


@torch.no_grad()
def test_logits_are_those_of_the_model(any_family: str, family_folder: Any) -> None:
    model = load(family_folder(any_family))
    expected = model(IDS, use_cache=False).logits[0]
    torch.testing.assert_close(OutputHead(model).logits(hidden_states(model)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "softcap", "scale"), [("gemma2", 0.5, 1.0), ("cohere", None, 4.0), ("granite", None, 0.25), ("llama", None, 1.0)]
)
def test_the_architecture_decides_on_soft_cap_and_scale(family: str, softcap: Any, scale: float, family_folder: Any) -> None:
    head = OutputHead(load(family_folder(family)))
    assert (head.softcap, head.scale, head.size) == (softcap, scale, 620)


@torch.no_grad()
@pytest.mark.parametrize("family", ["gemma2", "cohere", "granite", "llama_untied"])
def test_the_loss_and_the_logits_of_a_head_agree(family: str, family_folder: Any) -> None:
    model = load(family_folder(family))
    head, hidden, labels = OutputHead(model), hidden_states(model)[:-1], IDS[0, 1:]
    _, metrics = smoothed_linear_cross_entropy_with_metrics(
        head.scaled(hidden), head.weight, labels, torch.zeros(len(labels)), vocab_size=head.size, softcap=head.softcap
    )
    own = nn.functional.cross_entropy(model(IDS, use_cache=False).logits[0, :-1], labels, reduction="none")
    torch.testing.assert_close(metrics.nll, own, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(nn.functional.cross_entropy(head.logits(hidden), labels, reduction="none"), own)


@torch.no_grad()
@pytest.mark.parametrize("family", ["gemma2", "granite", "llama_untied"])
def test_a_bias_and_padding_rows(family: str, family_folder: Any) -> None:
    model = load(family_folder(family), tie_word_embeddings=False)
    layer = nn.Linear(32, 632)
    layer.weight.data[:620] = model.get_output_embeddings().weight
    layer.weight.data[620:], layer.bias.data[620:] = 99.0, 99.0
    model.set_output_embeddings(layer)
    found = OutputHead(model).logits(hidden_states(model))
    assert found.shape == (8, 620)
    torch.testing.assert_close(found, model(IDS, use_cache=False).logits[0, :, :620], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_logits_are_float32_in_low_precision(family_folder: Any) -> None:
    model = load(family_folder("gemma2")).to(torch.bfloat16)
    logits = OutputHead(model).logits(hidden_states(model).float())
    assert (logits.dtype, float(logits.abs().max()) <= 0.5) == (torch.float32, True)


@torch.no_grad()
def test_the_check_refuses_what_differs_and_ignores_padding(family_folder: Any) -> None:
    model = load(family_folder("gemma2"))
    head, labels = OutputHead(model), IDS[0, 1:]
    logits = model(IDS, use_cache=False).logits[0, :-1]
    nll = nn.functional.cross_entropy(logits, labels, reduction="sum")
    padded = torch.cat([logits, torch.full((len(logits), 12), 99.0)], dim=1)
    head.check(nll, padded, labels, "cannot be used", "use another")
    head.softcap = None
    wrong = nn.functional.cross_entropy(head.logits(hidden_states(model))[:-1], labels, reduction="sum")
    with pytest.raises(UserError, match=r"(?s)cannot be used.*hidden states.*use another"):
        head.check(wrong, padded, labels, "cannot be used", "use another")
