"""Attention sample by sample: equal to that with a mask over the pack, over many families of models; and what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import AutoModelForCausalLM

from ual_ray.config import TrainConfig
from ual_ray.errors import UserError
from ual_ray.models.chat import IGNORE_INDEX
from ual_ray.train.attention import Lengths, sample_lengths, unsupported, use_varlen, varlen_attention
from ual_ray.train.batches import Sample, collate
from ual_ray.train.model import SmoothedCausalLM, build, check_loss
from ual_ray.train.sharding import make_mesh

CPU = torch.device("cpu")
VARLEN = TrainConfig(packing=True, attention="varlen")


def make_samples(lengths: tuple[int, ...] = (5, 8, 40)) -> list[Sample]:
    generator = np.random.default_rng(0)
    samples = []
    for length in lengths:
        ids = generator.integers(4, 600, length).astype(np.int32)
        samples.append(Sample("", ids, np.where(np.arange(length) < 2, IGNORE_INDEX, ids), 0.1))
    return samples


def load(folder: Path, varlen: bool) -> SmoothedCausalLM:
    causal_lm = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return SmoothedCausalLM(causal_lm, varlen=varlen and use_varlen(causal_lm, VARLEN, CPU))


@pytest.mark.slow
def test_a_pack_sample_by_sample_has_the_loss_and_gradients_of_its_samples_apart(any_family: str, family_folder: Any) -> None:
    other = load(family_folder(any_family), varlen=False)
    if reason := unsupported(other.model):
        assert not use_varlen(other.model, TrainConfig(packing=True), CPU)
        with pytest.raises(UserError, match="train.attention=varlen does not support") as error:
            use_varlen(other.model, VARLEN, CPU)
        assert reason in str(error.value)
        return
    model, samples = load(family_folder(any_family), varlen=True), make_samples()
    packed = model(collate([samples[:2], samples[2:]], packed=True))
    apart = other(collate([[sample] for sample in samples]))
    packed.loss.backward()
    apart.loss.backward()
    torch.testing.assert_close(packed.loss, apart.loss, rtol=1e-5, atol=1e-5)
    for (name, ours), theirs in zip(model.model.named_parameters(), other.model.parameters(), strict=True):
        if theirs.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=2e-4, atol=1e-4, msg=name)
    check_loss(model, CPU, packing=True)


@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral", "gemma3_text"])
def test_common_families_are_supported(family: str, family_folder: Any) -> None:
    assert unsupported(load(family_folder(family), varlen=False).model) == ""


def test_unpacked_batches_with_padding_are_the_same(family_folder: Any) -> None:
    batch = collate([[sample] for sample in make_samples()])
    ours, theirs = (load(family_folder("llama"), varlen=varlen)(batch).loss for varlen in (True, False))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.slow
@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.sampled_from([None, 1, 3, 20]), st.integers(1, 2))
def test_every_token_attends_within_its_sample_and_window(lengths: list[int], window: int | None, groups: int) -> None:
    tokens, size = sum(lengths), 4
    query, key, value = (torch.randn(1, heads, tokens, size) for heads in (2 * groups, 2, 2))
    samples = Lengths(lengths)
    found, _ = varlen_attention(nn.Identity(), query, key, value, None, sliding_window=window, sample_lengths=samples)
    starts = np.repeat(np.cumsum(lengths) - lengths, lengths)
    for head in range(2 * groups):
        for place in range(tokens):
            first = max(starts[place], place + 1 - (window or tokens))
            scores = key[0, head // groups, first : place + 1] @ query[0, head, place] / math.sqrt(size)
            expected = torch.softmax(scores, 0) @ value[0, head // groups, first : place + 1]
            torch.testing.assert_close(found[0, place, head], expected, rtol=1e-4, atol=1e-5)


def test_lengths_are_read_from_positions() -> None:
    assert sample_lengths(torch.tensor([[0, 1, 2, 0, 0, 1]])) == [3, 1, 2]
    batch = collate([make_samples((3, 4)), make_samples((2,))], packed=True)
    assert sample_lengths(batch.position_ids) == [3, 4, 2, 4, 1], "padding is cut at the longest sample"


@pytest.mark.parametrize("given_argument", ["softcap", "s_aux", "position_bias"])
def test_what_is_not_computed_is_an_error_and_never_left_out(given_argument: str) -> None:
    states = torch.zeros(1, 1, 2, 4)
    with pytest.raises(UserError, match="train.attention=sdpa"):
        varlen_attention(nn.Identity(), states, states, states, None, **{given_argument: torch.ones(1)})
    with pytest.raises(UserError, match="attention to later tokens"):
        varlen_attention(nn.Identity(), states, states, states, None, is_causal=False)
    both_ways = nn.Identity()
    both_ways.is_causal = False  # type: ignore[assignment]
    with pytest.raises(UserError, match="attention to later tokens"):
        varlen_attention(both_ways, states, states, states, None)
    with pytest.raises(UserError, match="a mask"):
        varlen_attention(nn.Identity(), states, states, states, torch.ones(2, 2))


@pytest.mark.parametrize(
    ("attention", "packing", "device", "expected"),
    [
        ("auto", True, "cpu", True),
        ("auto", False, "cpu", False),
        ("auto", True, "cuda", False),
        ("sdpa", True, "cpu", False),
        ("varlen", False, "cuda", True),
    ],
)
def test_auto_takes_it_for_packs_on_a_cpu(
    attention: Any, packing: bool, device: str, expected: bool, family_folder: Any
) -> None:
    model = AutoModelForCausalLM.from_pretrained(family_folder("llama"))
    assert use_varlen(model, TrainConfig(attention=attention, packing=packing), torch.device(device)) == expected


@pytest.mark.slow
def test_a_model_that_loses_the_lengths_of_samples_computes_packs_with_a_mask(family_folder: Any, group: None) -> None:
    folder, mesh = family_folder("nemotron"), make_mesh(VARLEN, CPU)
    with pytest.raises(UserError, match=r"varlen does not support Nemotron.*\n.*do not pass the lengths of samples on"):
        build(str(folder), VARLEN.model_copy(update={"dtype": "float32"}), mesh, CPU)
    model = build(str(folder), TrainConfig(packing=True, dtype="float32"), mesh, CPU).eval()
    samples, other = make_samples(), load(folder, varlen=False)
    packed, apart = model(collate([samples], packed=True)), other(collate([[sample] for sample in samples]))
    torch.testing.assert_close(packed.loss, apart.loss, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, True])
def test_masks_are_made_for_a_model_that_makes_them_without_the_positions(
    compiled: bool, family_folder: Any, group: None
) -> None:
    folder, samples = family_folder("gpt_oss"), make_samples()
    assert unsupported(load(folder, varlen=False).model)
    torch.compiler.set_default_backend("eager")
    try:
        config = TrainConfig(packing=True, dtype="float32", compile=compiled)
        model, other = build(str(folder), config, make_mesh(config, CPU), CPU), load(folder, varlen=False)
        packed = model(collate([samples[:2], samples[2:]], packed=True)).loss
        apart = other(collate([[sample] for sample in samples])).loss
        packed.backward()
        apart.backward()
    finally:
        torch.compiler.set_default_backend(None)  # type: ignore[arg-type]
    torch.testing.assert_close(packed, apart, rtol=1e-5, atol=1e-5)
    for (name, ours), theirs in zip(model.model.named_parameters(), other.model.parameters(), strict=True):
        if theirs.grad is not None:
            torch.testing.assert_close(ours.grad.full_tensor(), theirs.grad, rtol=2e-4, atol=1e-4, msg=name)


def test_an_exported_model_does_not_name_it(family_folder: Any, tmp_path: Path) -> None:
    model = load(family_folder("llama"), varlen=True).model
    model.save_pretrained(tmp_path)  # type: ignore[operator]
    assert "varlen" not in (tmp_path / "config.json").read_text()
