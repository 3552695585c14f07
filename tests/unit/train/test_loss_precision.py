"""The loss in low precision: how near it stays to the definition, and what is added up in float32."""

from __future__ import annotations

import math
import weakref
from functools import partial
from typing import Any

import pytest
import torch
from loss_reference import IGNORE, all_options, as_float64, brute_force, gradients, make_inputs
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ual_ray.train.loss import smoothed_linear_cross_entropy


class TestPrecision:
    @pytest.fixture(autouse=True, params=[True, False], ids=["slow low precision", "fast low precision"])
    def processor(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
        def is_slow(dtype: torch.dtype, device: torch.device) -> bool:
            return request.param and dtype in (torch.bfloat16, torch.float16)

        monkeypatch.setattr("ual_ray.train.loss.slower_than_float32", is_slow)

    @all_options
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_low_precision_is_near_brute_force(self, options: dict[str, Any], dtype: torch.dtype) -> None:
        inputs = make_inputs(tokens=64, dtype=dtype, **options)
        exact = as_float64(inputs)
        loss, expected = smoothed_linear_cross_entropy(**inputs, chunk_size=9), brute_force(**exact).sum()
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss.double(), expected, rtol=3e-3, atol=0)
        found, wanted = gradients(loss, inputs), gradients(expected, exact)
        for name, gradient in found.items():
            assert gradient.dtype == dtype
            assert (gradient - wanted[name]).norm() < 0.01 * wanted[name].norm(), name

    @all_options
    @pytest.mark.parametrize("reduction", ["sum", "none"])
    def test_products_that_stay_float32_are_as_near(
        self, options: dict[str, Any], reduction: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As GPUs make them; a CPU has none, so they are imitated here."""
        products = []

        def imitated(product: Any, *factors: Tensor, out_dtype: torch.dtype | None = None, **given: Any) -> Tensor:
            products.append(out_dtype)
            return product(*(factors if out_dtype is None else [factor.to(out_dtype) for factor in factors]), **given)

        for name in ("mm", "addmm"):
            monkeypatch.setattr(torch, name, partial(imitated, getattr(torch, name)))
        monkeypatch.setattr("ual_ray.train.loss._has_wide_products", lambda device: True)
        monkeypatch.setattr("ual_ray.train.loss.slower_than_float32", lambda *given: False)
        inputs = make_inputs(tokens=64, dtype=torch.bfloat16, **options)
        exact = as_float64(inputs)
        loss = smoothed_linear_cross_entropy(**inputs, chunk_size=9, reduction=reduction).sum()
        found, expected = gradients(loss, inputs), brute_force(**exact).sum()
        passes = 1 if reduction == "sum" else 2
        per_chunk = 2 + passes * (2 if "prior_hidden" in options else 1)
        assert products == [torch.float32] * (per_chunk * math.ceil(43 / 9))
        torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
        for name, wanted in gradients(expected, exact).items():
            assert (found[name] - wanted).norm() < 0.01 * wanted.norm(), name

    def test_alpha_over_k_survives_low_precision(self) -> None:
        """A smoothing of 0.05 / 8192 per logit is far below the resolution of bfloat16 beside a probability."""
        size, alpha = 8192, 0.05
        inputs = make_inputs(tokens=32, vocabulary=size, dtype=torch.float32)
        smoothed = inputs | {"alpha": torch.full((32,), alpha)}
        plain = inputs | {"alpha": torch.zeros(32)}
        with torch.autocast("cpu", torch.bfloat16):
            found = gradients(smoothed_linear_cross_entropy(**smoothed), inputs)["weight"]
            base = gradients(smoothed_linear_cross_entropy(**plain), inputs)["weight"]
        target = inputs["labels"] != IGNORE
        others = torch.ones(size, dtype=torch.bool).index_fill(0, inputs["labels"][target], False)
        uniform = -alpha / size * inputs["hidden"].detach()[target].bfloat16().float().sum(0)
        torch.testing.assert_close((found - base)[others], uniform.expand(int(others.sum()), -1), rtol=0.02, atol=1e-7)

    @pytest.mark.slow
    def test_gradients_of_many_chunks_add_up_in_float32(self) -> None:
        """A bfloat16 sum of equal terms stops growing at the 256th."""
        one = make_inputs(tokens=1, dtype=torch.bfloat16)
        many = one | {name: one[name].expand(1024, *one[name].shape[1:]) for name in ("hidden", "labels", "alpha")}
        (expected,) = torch.autograd.grad(smoothed_linear_cross_entropy(**one), one["weight"])
        (found,) = torch.autograd.grad(smoothed_linear_cross_entropy(**many, chunk_size=1), one["weight"])
        torch.testing.assert_close(found, 1024 * expected, rtol=0.01, atol=0)

    @pytest.mark.parametrize("hidden_dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("reduction", ["sum", "none"])
    def test_autocast_is_a_linear_layer_in_its_dtype(self, reduction: str, hidden_dtype: torch.dtype) -> None:
        """The gradients keep the dtypes of their inputs, and need no autocast of their own."""
        inputs = make_inputs(tokens=32, dtype=torch.float32)
        low = {name: inputs[name].detach().bfloat16().requires_grad_() for name in ("hidden", "weight")}
        with torch.autocast("cpu", torch.bfloat16):
            mixed = inputs | {"hidden": inputs["hidden"].detach().to(hidden_dtype).requires_grad_()}
            loss = smoothed_linear_cross_entropy(**mixed, reduction=reduction)
        expected = smoothed_linear_cross_entropy(**inputs | low, reduction=reduction)
        assert loss.dtype == torch.float32
        assert torch.equal(loss, expected)
        found, wanted = gradients(loss.sum(), mixed), gradients(expected.sum(), inputs | low)
        assert (found["weight"].dtype, found["hidden"].dtype) == (torch.float32, hidden_dtype)
        for name, gradient in found.items():
            assert torch.equal(gradient.bfloat16(), wanted[name])

    def test_float64_ignores_autocast(self) -> None:
        inputs = make_inputs(dtype=torch.float64)
        with torch.autocast("cpu", torch.bfloat16):
            loss = smoothed_linear_cross_entropy(**inputs)
        assert torch.equal(loss, smoothed_linear_cross_entropy(**inputs))


class Held(TorchDispatchMode):
    """Counts the float32 tensors of at least so many elements that exist at one time."""

    def __init__(self, elements: int) -> None:
        super().__init__()
        self._elements, self._seen, self.most = elements, list[weakref.ref[torch.Tensor]](), 0

    def __torch_dispatch__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = call(*args, **(kwargs or {}))
        large = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor) and leaf.numel() >= self._elements]
        self._seen += [weakref.ref(leaf) for leaf in large if leaf.dtype == torch.float32]
        alive = {tensor.data_ptr() for reference in self._seen if (tensor := reference()) is not None}
        self.most = max(self.most, len(alive))
        return result


@pytest.mark.parametrize("prior", [False, True])
def test_a_head_in_low_precision_costs_one_float32_tensor_of_its_size(prior: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # Where products in bfloat16 are slow, its float32 copy is another one.
    monkeypatch.setattr("ual_ray.train.loss.slower_than_float32", lambda *_: False)
    monkeypatch.setattr("ual_ray.train.loss.SUM_BLOCK", 256)
    tokens, vocabulary, width = 24, 2048, 64
    hidden = torch.randn(tokens, width, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(vocabulary, width, dtype=torch.bfloat16, requires_grad=True)
    labels, alpha = torch.arange(tokens), torch.full((tokens,), 0.2)
    towards = torch.full((vocabulary,), 1 / vocabulary) if prior else None
    with Held(vocabulary * width) as held:
        smoothed_linear_cross_entropy(hidden, weight, labels, alpha, prior=towards, chunk_size=8).backward()
    assert held.most == 1
    assert weight.grad is not None and weight.grad.dtype == torch.bfloat16
