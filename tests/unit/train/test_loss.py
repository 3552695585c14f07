"""The loss against its definition, written out with V-sized targets in float64, and against every trap known of it."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from ual_ray.train.loss import (
    CHUNK_BYTES,
    chunk_rows,
    smoothed_linear_cross_entropy,
    smoothed_linear_cross_entropy_with_metrics,
)
from ual_ray.train.token_losses import eaft, prior_leaning

IGNORE = -100
OPTIONS = {
    "plain": {},
    "bias": {"bias": True},
    "padding": {"vocab_size": 17},
    "softcap": {"softcap": 2.5},
    "z_loss": {"z_loss": 0.02},
    "padding and bias": {"vocab_size": 17, "bias": True},
    "token weights": {"token_weight": True},
    "prior": {"prior": True},
    "prior, padding and bias": {"prior": True, "vocab_size": 17, "bias": True},
    "prior and softcap": {"prior": True, "softcap": 2.5},
    "token loss": {"token_loss": prior_leaning},
    "token loss, weights, prior and softcap": {"token_loss": eaft, "token_weight": True, "prior": True, "softcap": 2.5},
    "everything": {"vocab_size": 17, "bias": True, "softcap": 2.5, "z_loss": 0.02, "token_weight": True, "prior": True},
}
all_options = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())


def make_inputs(
    tokens: int = 11,
    width: int = 5,
    vocabulary: int = 23,
    *,
    vocab_size: int | None = None,
    bias: bool = False,
    token_weight: bool = False,
    prior: bool = False,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    **options: Any,
) -> dict[str, Any]:
    """Arguments of the loss: every third token is ignored, alphas differ by token and include 0 and 1, weights include 0."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, width, generator=generator, dtype=torch.float64)
    weight = torch.randn(vocabulary, width, generator=generator, dtype=torch.float64)
    labels = torch.randint(vocab_size or vocabulary, (tokens,), generator=generator)
    labels[2::3] = IGNORE
    alpha = torch.rand(tokens, generator=generator, dtype=torch.float64)
    alpha[:1], alpha[1:2] = 0.0, 1.0
    offset = torch.randn(vocabulary, generator=generator, dtype=torch.float64) if bias else None
    given = None
    if token_weight:
        given = 3 * torch.rand(tokens, generator=generator, dtype=torch.float64)
        given[3:4] = 0.0
    towards = None
    if prior:
        towards = torch.rand(vocabulary, generator=generator, dtype=torch.float64)
        towards[vocab_size or vocabulary :] = 0.0
        towards[1 : 2 if (vocab_size or vocabulary) > 1 else 1] = 0.0
        towards /= towards.sum()
    inputs = {"hidden": hidden, "weight": weight, "bias": offset}
    leaves = {name: None if t is None else t.to(dtype).requires_grad_() for name, t in inputs.items()}
    constants = {"labels": labels, "alpha": alpha, "token_weight": given, "prior": towards}
    return {**leaves, **constants, "vocab_size": vocab_size, **options}


def as_float64(inputs: dict[str, Any]) -> dict[str, Any]:
    """Copies of the same values, as new leaves."""
    leaves = {"hidden", "weight", "bias"}
    return {
        name: value.detach().double().requires_grad_() if name in leaves and value is not None else value
        for name, value in inputs.items()
    }


def brute_force(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    alpha: Tensor,
    *,
    bias: Tensor | None = None,
    token_weight: Tensor | None = None,
    prior: Tensor | None = None,
    vocab_size: int | None = None,
    softcap: float | None = None,
    z_loss: float = 0.0,
    token_loss: Any = None,
    **_: Any,
) -> Tensor:
    """Loss of every token by the definition: cross-entropy against (1 - alpha) one-hot + alpha q, q = 1 / K by default."""
    logits = (hidden @ weight.T + (0 if bias is None else bias))[:, :vocab_size]
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    size = logits.shape[1]
    one_hot = F.one_hot(labels.clamp(min=0), size).to(logits.dtype)
    towards = logits.new_full((size,), 1 / size) if prior is None else prior[:vocab_size].to(logits.dtype)
    wanted = (1 - alpha)[:, None] * one_hot + alpha[:, None] * towards
    losses = -(wanted * logits.log_softmax(1)).sum(1) + z_loss * logits.logsumexp(1).square()
    if token_loss is not None:
        nll = F.cross_entropy(logits, labels.clamp(min=0), reduction="none")
        losses = losses * token_loss(nll.detach(), logits.detach().softmax(1))
    return (losses if token_weight is None else token_weight * losses).where(labels != IGNORE, 0.0)


def gradients(loss: Tensor, inputs: dict[str, Any]) -> dict[str, Tensor]:
    """Gradients of the loss by whatever requires one."""
    leaves = {name: t for name, t in inputs.items() if isinstance(t, Tensor) and t.requires_grad}
    return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor], **tolerance: float) -> None:
    """Compare gradients by name."""
    torch.testing.assert_close(actual, expected, check_dtype=False, **tolerance)


class Recorder(TorchDispatchMode):
    """Sizes of all tensors that any operation returns, and the names of the operations."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0
        self.operations: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.operations.append(func.overloadpacket.__name__)
        self.largest = max([self.largest, *(t.numel() for t in tree_leaves(result) if isinstance(t, Tensor))])
        return result

    @property
    def products(self) -> int:
        return sum(name in ("mm", "addmm_", "addmm") for name in self.operations)


class TestDefinition:
    @all_options
    @pytest.mark.parametrize("chunk_size", [1, 3, 8, 100, None])
    def test_sum_and_gradients_equal_brute_force(self, options: dict[str, Any], chunk_size: int | None) -> None:
        inputs = make_inputs(**options)
        expected = brute_force(**inputs).sum()
        actual = smoothed_linear_cross_entropy(**inputs, chunk_size=chunk_size)
        torch.testing.assert_close(actual, expected)
        assert_same(gradients(0.7 * actual, inputs), gradients(0.7 * expected, inputs))

    @all_options
    @pytest.mark.parametrize("chunk_size", [1, 3, None])
    def test_unreduced_equals_brute_force_under_random_upstream(self, options: dict[str, Any], chunk_size: int | None) -> None:
        inputs = make_inputs(**options)
        upstream = torch.randn(11, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        expected = brute_force(**inputs)
        actual = smoothed_linear_cross_entropy(**inputs, chunk_size=chunk_size, reduction="none")
        torch.testing.assert_close(actual, expected)
        assert_same(gradients(actual @ upstream, inputs), gradients(expected @ upstream, inputs))

    @all_options
    def test_unreduced_sums_to_the_sum(self, options: dict[str, Any]) -> None:
        inputs = make_inputs(**options)
        total = smoothed_linear_cross_entropy(**inputs)
        tokens = smoothed_linear_cross_entropy(**inputs, reduction="none")
        torch.testing.assert_close(tokens.sum(), total)
        assert_same(gradients(tokens.sum(), inputs), gradients(total, inputs))

    # Finite differences also go through the weight of a token loss, which is a constant to the gradient.
    @pytest.mark.parametrize("options", [options for options in OPTIONS.values() if "token_loss" not in options])
    @pytest.mark.parametrize("reduction", ["sum", "none"])
    def test_gradcheck(self, options: dict[str, Any], reduction: str) -> None:
        inputs = make_inputs(tokens=5, width=3, vocabulary=6, **{**options, **({"vocab_size": 4} if options else {})})
        names = [name for name in ("hidden", "weight", "bias") if inputs[name] is not None]

        def loss(*leaves: Tensor) -> Tensor:
            changed = inputs | dict(zip(names, leaves, strict=True))
            return smoothed_linear_cross_entropy(**changed, reduction=reduction, chunk_size=2)

        assert torch.autograd.gradcheck(loss, [inputs[name] for name in names])

    @settings(max_examples=80, deadline=None)
    @given(
        tokens=st.integers(0, 7),
        width=st.integers(1, 5),
        vocab_size=st.integers(1, 9),
        padding=st.integers(0, 3),
        chunk_size=st.integers(1, 9),
        bias=st.booleans(),
        token_weight=st.booleans(),
        prior=st.booleans(),
        softcap=st.none() | st.floats(0.5, 30),
        z_loss=st.sampled_from([0.0, 1e-4, 0.5]),
        token_loss=st.sampled_from([None, prior_leaning, eaft]),
        reduction=st.sampled_from(["sum", "none"]),
        seed=st.integers(0, 1000),
    )
    def test_any_shape_equals_brute_force(
        self, vocab_size: int, padding: int, chunk_size: int, reduction: str, **arguments: Any
    ) -> None:
        inputs = make_inputs(vocabulary=vocab_size + padding, vocab_size=vocab_size, **arguments)
        expected = brute_force(**inputs)
        expected = expected.sum() if reduction == "sum" else expected
        actual = smoothed_linear_cross_entropy(**inputs, chunk_size=chunk_size, reduction=reduction)
        torch.testing.assert_close(actual, expected)
        assert_same(gradients(actual.sum(), inputs), gradients(expected.sum(), inputs))

    @pytest.mark.parametrize(("alpha", "floor"), [(0.05, 0.74), (0.1, 1.40), (0.2, 2.66)])
    def test_least_loss_is_the_entropy_of_the_smoothed_target(self, alpha: float, floor: float) -> None:
        """At K = 49152; the logits are the logarithm of the target (1 - a) one-hot + a / K, where the gradient is 0."""
        size = 49152
        target = torch.full((size, 1), alpha / size, dtype=torch.float64)
        target[7] += 1 - alpha
        hidden = torch.ones(1, 1, dtype=torch.float64, requires_grad=True)
        loss = smoothed_linear_cross_entropy(
            hidden, target.log(), torch.tensor([7]), torch.tensor([alpha], dtype=torch.float64)
        )
        assert loss.item() == pytest.approx(floor, abs=0.006)
        loss.backward()
        torch.testing.assert_close(hidden.grad, torch.zeros_like(hidden), atol=1e-9, rtol=0)


class TestAgainstTorch:
    @pytest.mark.parametrize("alpha", [0.0, 0.1, 0.5, 1.0])
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
    def test_constant_alpha_is_label_smoothing(self, alpha: float, dtype: torch.dtype) -> None:
        inputs = make_inputs(tokens=40, dtype=dtype, bias=True)
        inputs["alpha"] = torch.full_like(inputs["alpha"], alpha)
        logits = F.linear(inputs["hidden"], inputs["weight"], inputs["bias"])
        expected = F.cross_entropy(logits, inputs["labels"], label_smoothing=alpha, reduction="sum")
        actual = smoothed_linear_cross_entropy(**inputs, chunk_size=7)
        assert actual.dtype == dtype
        torch.testing.assert_close(actual, expected)
        assert_same(gradients(actual, inputs), gradients(expected, inputs))

    def test_a_uniform_prior_is_the_default_one(self) -> None:
        inputs = make_inputs(tokens=40, bias=True, vocab_size=17)
        uniform = torch.zeros(23, dtype=torch.float64)
        uniform[:17] = 1 / 17
        expected = smoothed_linear_cross_entropy(**inputs)
        actual = smoothed_linear_cross_entropy(**inputs | {"prior": uniform})
        torch.testing.assert_close(actual, expected)
        assert_same(gradients(actual, inputs), gradients(expected, inputs))

    def test_a_weight_of_two_is_a_token_that_occurs_twice(self) -> None:
        once = make_inputs(tokens=6)
        once["labels"] = once["labels"].clamp(min=0)
        twice = once | {name: torch.cat([once[name], once[name][2:4]]) for name in ("hidden", "labels", "alpha")}
        expected = smoothed_linear_cross_entropy(**twice)
        weighted = once | {"token_weight": torch.tensor([1.0, 1, 2, 2, 1, 1])}
        actual = smoothed_linear_cross_entropy(**weighted)
        torch.testing.assert_close(actual, expected)
        torch.testing.assert_close(gradients(actual, once)["weight"], gradients(expected, once)["weight"])

    def test_mixed_alpha_smooths_every_token_by_its_own(self) -> None:
        inputs = make_inputs(tokens=12)
        inputs["alpha"] = torch.tensor([0.0, 0.1, 0.4] * 4, dtype=torch.float64).roll(1)
        logits = inputs["hidden"] @ inputs["weight"].T
        expected = torch.stack(
            [
                F.cross_entropy(row[None], label[None], label_smoothing=float(alpha), reduction="sum")
                for row, label, alpha in zip(logits, inputs["labels"], inputs["alpha"], strict=True)
            ]
        )
        actual = smoothed_linear_cross_entropy(**inputs, chunk_size=5, reduction="none")
        torch.testing.assert_close(actual, expected)


class TestNoSmoothingIsPlainFineTuning:
    """Alpha = 0 gives, bit for bit, what a loss that knows nothing of smoothing gives."""

    @staticmethod
    def plain(hidden: Tensor, weight: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Sum of the NLL, and its gradients by hidden states and weights, by the textbook."""
        logits = hidden @ weight.T
        largest, rows = logits.amax(1), torch.arange(len(labels))
        probabilities = logits.softmax(1)
        nll = (largest - logits[rows, labels]) - probabilities.amax(1).log()
        probabilities[rows, labels] -= 1
        return nll.sum(), probabilities @ weight, probabilities.T @ hidden

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_bit_for_bit(self, dtype: torch.dtype) -> None:
        inputs = make_inputs(tokens=64, width=32, vocabulary=500, dtype=dtype)
        inputs["labels"] = torch.arange(64) * 7
        inputs["alpha"] = torch.zeros(64)
        hidden, weight = inputs["hidden"].detach(), inputs["weight"].detach()
        loss, d_hidden, d_weight = self.plain(hidden, weight, inputs["labels"])
        actual, metrics = smoothed_linear_cross_entropy_with_metrics(**inputs)
        assert torch.equal(actual.detach(), loss)
        assert torch.equal(metrics.nll.sum(), loss)
        found = gradients(actual, inputs)
        assert torch.equal(found["hidden"], d_hidden)
        assert torch.equal(found["weight"], d_weight)

    @pytest.mark.parametrize("softcap", [None, 5.0])
    def test_smoothed_neighbours_do_not_touch_an_unsmoothed_token(self, softcap: float | None) -> None:
        inputs = make_inputs(tokens=30, dtype=torch.float32, softcap=softcap)
        inputs["alpha"] = torch.tensor([0.0, 0.3] * 15)
        mixed = smoothed_linear_cross_entropy(**inputs, reduction="none")
        plain = smoothed_linear_cross_entropy(**inputs | {"alpha": torch.zeros(30)}, reduction="none")
        assert torch.equal(mixed[::2], plain[::2])
        d_mixed, d_plain = (gradients(loss.sum(), inputs)["hidden"] for loss in (mixed, plain))
        assert torch.equal(d_mixed[::2], d_plain[::2])
        assert not torch.equal(d_mixed[1::2], d_plain[1::2])

    def test_a_token_barred_by_its_bias_leaves_no_trace(self) -> None:
        """A bias of -inf makes the mean logit -inf, and 0 * inf would be NaN."""
        inputs = make_inputs(bias=True)
        inputs["labels"][inputs["labels"] == 4] = 5
        inputs["bias"] = inputs["bias"].detach().clone().index_fill(0, torch.tensor([4]), -math.inf).requires_grad_()
        inputs["alpha"] = torch.zeros(11)
        expected = F.cross_entropy(
            F.linear(inputs["hidden"], inputs["weight"], inputs["bias"]), inputs["labels"], reduction="sum"
        )
        actual, metrics = smoothed_linear_cross_entropy_with_metrics(**inputs)
        torch.testing.assert_close(actual, expected)
        # Not to the last bit: how many numbers a sum adds at a time depends on the processor.
        torch.testing.assert_close(actual.detach(), metrics.nll.sum(), rtol=1e-12, atol=0)
        found = gradients(actual, inputs)
        assert_same(found, gradients(expected, inputs))
        assert found["bias"][4] == 0

    def test_certain_token_has_a_finite_loss_when_its_label_has_probability_zero(self) -> None:
        """The label's probability underflows in float32; its logarithm must not be taken."""
        hidden, weight = torch.ones(1, 1), torch.tensor([[500.0], [-500.0]])
        loss = smoothed_linear_cross_entropy(hidden, weight, torch.tensor([1]), torch.zeros(1))
        assert loss.item() == 1000.0


class TestPaddingRows:
    @pytest.mark.parametrize("junk", [0.0, 1e4, math.inf, math.nan])
    def test_padding_rows_are_as_if_absent(self, junk: float) -> None:
        inputs = make_inputs(vocab_size=17, bias=True)
        without = inputs | {
            "weight": inputs["weight"].detach()[:17].clone().requires_grad_(),
            "bias": inputs["bias"].detach()[:17].clone().requires_grad_(),
        }
        with torch.no_grad():
            inputs["weight"][17:], inputs["bias"][17:] = junk, junk
        actual, expected = smoothed_linear_cross_entropy(**inputs), smoothed_linear_cross_entropy(**without)
        assert torch.equal(actual, expected)
        found, wanted = gradients(actual, inputs), gradients(expected, without)
        for name in ("weight", "bias"):
            assert torch.equal(found[name][:17], wanted[name])
            assert not found[name][17:].any()
        assert torch.equal(found["hidden"], wanted["hidden"])


class TestReduction:
    @pytest.mark.parametrize("splits", [[8], [1] * 8, [4, 4], [3, 0, 5]])
    def test_accumulation_divides_by_the_global_number_of_target_tokens(self, splits: list[int]) -> None:
        """1 x 8 = 8 x 1 = 2 ranks x 4: rows have unequal numbers of targets, and one has none."""
        length, rows = 6, 8
        inputs = make_inputs(tokens=rows * length)
        labels = inputs["labels"].view(rows, length)
        for row in range(rows):
            labels[row, :row] = IGNORE
        labels[5] = IGNORE
        targets = int((labels != IGNORE).sum())
        expected = brute_force(**inputs).sum() / targets
        total = torch.zeros((), dtype=torch.float64)
        for hidden, part, alpha in zip(
            *(inputs[name].split([split * length for split in splits]) for name in ("hidden", "labels", "alpha")),
            strict=True,
        ):
            loss = smoothed_linear_cross_entropy(hidden, inputs["weight"], part, alpha) / targets
            loss.backward()
            total += loss.detach()
        torch.testing.assert_close(total, expected.detach())
        accumulated = {name: inputs[name].grad for name in ("hidden", "weight")}
        assert_same(accumulated, gradients(expected, inputs))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_chunk_size_does_not_matter(self, dtype: torch.dtype) -> None:
        inputs = make_inputs(tokens=50, bias=True, dtype=dtype, softcap=3.0, z_loss=1e-3)
        losses = [smoothed_linear_cross_entropy(**inputs, chunk_size=size) for size in (1, 7, 25, 49, 1000)]
        found = [gradients(loss, inputs) for loss in losses]
        for loss, gradient in zip(losses, found, strict=True):
            torch.testing.assert_close(loss, losses[0])
            assert_same(gradient, found[0])

    @all_options
    @pytest.mark.parametrize("reduction", ["sum", "none"])
    @pytest.mark.parametrize("tokens", [6, 0])
    def test_without_targets_it_is_zero_with_a_valid_graph(self, options: dict[str, Any], reduction: str, tokens: int) -> None:
        inputs = make_inputs(tokens=tokens, **options)
        inputs["labels"].fill_(IGNORE)
        loss = smoothed_linear_cross_entropy(**inputs, reduction=reduction)
        assert loss.shape == (() if reduction == "sum" else (tokens,))
        assert not loss.any()
        loss.sum().backward()
        for leaf in (inputs["hidden"], inputs["weight"], inputs["bias"]):
            assert leaf is None or (leaf.grad is not None and not leaf.grad.any())

    def test_ignored_tokens_change_nothing(self) -> None:
        """Not even when their hidden states are NaN; and no work is spent on them."""
        inputs = make_inputs(tokens=12, dtype=torch.float32)
        kept = inputs["labels"] != IGNORE
        only = inputs | {name: inputs[name].detach()[kept] for name in ("hidden", "labels", "alpha")}
        only["hidden"].requires_grad_()
        with torch.no_grad():
            inputs["hidden"][~kept] = math.nan
        loss, expected = smoothed_linear_cross_entropy(**inputs), smoothed_linear_cross_entropy(**only)
        assert torch.equal(loss, expected)
        found, wanted = gradients(loss, inputs), gradients(expected, only)
        assert torch.equal(found["weight"], wanted["weight"])
        assert torch.equal(found["hidden"][kept], wanted["hidden"])
        assert not found["hidden"][~kept].any()
        with Recorder() as recorder:
            smoothed_linear_cross_entropy(**inputs, chunk_size=1)
        assert recorder.products == 3 * int(kept.sum())

    def test_another_ignore_index(self) -> None:
        inputs = make_inputs()
        expected = smoothed_linear_cross_entropy(**inputs)
        inputs["labels"] = inputs["labels"].where(inputs["labels"] != IGNORE, -1)
        assert torch.equal(smoothed_linear_cross_entropy(**inputs, ignore_index=-1), expected)


class TestMetrics:
    @all_options
    def test_metrics_are_those_of_every_token(self, options: dict[str, Any]) -> None:
        inputs = make_inputs(tokens=31, **options)
        best = brute_force_argmax(**inputs)
        inputs["labels"][:6] = best[:6]
        loss, metrics = smoothed_linear_cross_entropy_with_metrics(**inputs, chunk_size=4)
        target = inputs["labels"] != IGNORE
        assert torch.equal(metrics.target, target)
        unweighted = inputs | {"token_weight": None, "token_loss": None, "z_loss": 0.0}
        unsmoothed = unweighted | {"alpha": torch.zeros_like(inputs["alpha"])}
        torch.testing.assert_close(metrics.nll, brute_force(**unsmoothed).detach())
        smoothed = brute_force(**unweighted).detach()
        torch.testing.assert_close(metrics.smoothing, smoothed - metrics.nll)
        assert torch.equal(metrics.top1, (best == inputs["labels"]) & target)
        assert metrics.top1.sum() >= 6
        assert not any(metric.requires_grad for metric in metrics)
        assert torch.equal(loss, smoothed_linear_cross_entropy(**inputs, chunk_size=4))
        assert_same(gradients(loss, inputs), gradients(brute_force(**inputs).sum(), inputs))

    def test_a_label_that_ties_with_the_argmax_is_not_the_argmax(self) -> None:
        """In bfloat16 ties are common: counting them would flatter the accuracy."""
        labels = torch.tensor([0, 3])
        _, metrics = smoothed_linear_cross_entropy_with_metrics(torch.zeros(2, 2), torch.ones(4, 2), labels, torch.zeros(2))
        assert metrics.top1.tolist() == [True, False]

    def test_metrics_cost_no_extra_pass(self) -> None:
        inputs = make_inputs()
        with Recorder() as without:
            smoothed_linear_cross_entropy(**inputs)
        with Recorder() as with_metrics:
            smoothed_linear_cross_entropy_with_metrics(**inputs)
        assert with_metrics.products == without.products == 3


def brute_force_argmax(hidden: Tensor, weight: Tensor, bias: Tensor | None, vocab_size: int | None, **_: Any) -> Tensor:
    """A soft-cap keeps the order of the logits."""
    return (hidden @ weight.T + (0 if bias is None else bias))[:, :vocab_size].argmax(1)


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
        assert products == [torch.float32] * ((3 if reduction == "sum" else 4) * math.ceil(43 / 9))
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


class TestMemoryAndGraph:
    @all_options
    @pytest.mark.parametrize("reduction", ["sum", "none"])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_logits_of_all_tokens_never_exist(self, options: dict[str, Any], reduction: str, dtype: torch.dtype) -> None:
        tokens, width, vocabulary, chunk_size = 120, 6, 512, 10
        inputs = make_inputs(tokens, width, vocabulary, dtype=dtype, **{**options, "vocab_size": None})
        inputs["labels"] = torch.arange(tokens)
        with Recorder() as recorder:
            loss = smoothed_linear_cross_entropy(**inputs, chunk_size=chunk_size, reduction=reduction)
            loss.sum().backward()
        assert recorder.largest <= chunk_size * vocabulary < tokens * vocabulary / 10

    def test_default_chunk_is_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(CHUNK_BYTES, "cpu", 8 * 512 * 4)
        inputs = make_inputs(tokens=120, vocabulary=512)
        with Recorder() as recorder:
            smoothed_linear_cross_entropy(**inputs).backward()
        assert recorder.largest == 8 * 512

    @pytest.mark.parametrize("tokens", [1, 100, 1700, 4096, 16384, 16385])
    @pytest.mark.parametrize("vocabulary", [1000, 49152, 128256, 262144])
    def test_a_gpus_chunks_are_few_equal_and_whole_tiles(self, tokens: int, vocabulary: int) -> None:
        rows = chunk_rows(tokens, vocabulary, "cuda")
        most = CHUNK_BYTES["cuda"] // (4 * vocabulary)
        assert math.ceil(tokens / rows) == math.ceil(tokens / most)
        assert rows < most + 128
        assert rows == tokens <= most or rows % 128 == 0
        assert chunk_rows(tokens, vocabulary, "cpu") == min(tokens, CHUNK_BYTES["cpu"] // (4 * vocabulary))
        assert chunk_rows(tokens, 10**9, "cpu") == 1

    @pytest.mark.parametrize("chunk_size", [8, 3])
    def test_evaluation_computes_no_gradient(self, chunk_size: int) -> None:
        inputs = make_inputs(tokens=12)
        with Recorder() as recorder, torch.no_grad():
            loss = smoothed_linear_cross_entropy(**inputs, chunk_size=chunk_size)
        assert not loss.requires_grad
        assert recorder.products == math.ceil(8 / chunk_size)

    @pytest.mark.parametrize("frozen", ["hidden", "weight"])
    @pytest.mark.parametrize("reduction", ["sum", "none"])
    def test_no_gradient_is_made_for_what_is_frozen(self, frozen: str, reduction: str) -> None:
        inputs = make_inputs(bias=True)
        expected = gradients(brute_force(**inputs).sum(), inputs)
        inputs[frozen].requires_grad_(False)
        with Recorder() as recorder:
            loss = smoothed_linear_cross_entropy(**inputs, reduction=reduction)
            found = gradients(loss.sum(), inputs)
        assert recorder.products == (2 if reduction == "sum" else 3)
        assert_same(found, {name: gradient for name, gradient in expected.items() if name != frozen})

    @pytest.mark.parametrize("reduction", ["sum", "none"])
    def test_backward_can_run_twice(self, reduction: str) -> None:
        inputs = make_inputs(bias=True)
        loss = 3 * smoothed_linear_cross_entropy(**inputs, reduction=reduction).sum()
        leaves = [inputs[name] for name in ("hidden", "weight", "bias")]
        first = torch.autograd.grad(loss, leaves, retain_graph=True)
        second = torch.autograd.grad(loss, leaves)
        for one, other in zip(first, second, strict=True):
            assert torch.equal(one, other)

    def test_second_derivatives_are_refused(self) -> None:
        """They would be silently wrong: the first ones are constants of the forward pass."""
        inputs = make_inputs()
        loss = smoothed_linear_cross_entropy(**inputs).square()
        (d_hidden,) = torch.autograd.grad(loss, inputs["hidden"], create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            d_hidden.sum().backward()

    @pytest.mark.parametrize("use_reentrant", [True, False])
    @pytest.mark.parametrize("reduction", ["sum", "none"])
    def test_activation_checkpointing(self, use_reentrant: bool, reduction: str) -> None:
        inputs = make_inputs()

        def loss_of(hidden: Tensor) -> Tensor:
            changed = inputs | {"hidden": torch.tanh(hidden)}
            return smoothed_linear_cross_entropy(**changed, reduction=reduction).sum()

        expected = gradients(loss_of(inputs["hidden"]), inputs)
        checkpoint(loss_of, inputs["hidden"], use_reentrant=use_reentrant).backward()
        assert_same({name: inputs[name].grad for name in expected}, expected)

    def test_tied_weights_get_both_gradients(self) -> None:
        inputs = make_inputs(tokens=6)
        ids = torch.tensor([0, 3, 3, 5, 22, 1])
        tied = inputs["weight"]
        found, expected = (
            torch.autograd.grad(loss(**inputs | {"hidden": tied[ids]}).sum(), tied)[0]
            for loss in (smoothed_linear_cross_entropy, brute_force)
        )
        torch.testing.assert_close(found, expected)


class TestArguments:
    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"hidden": torch.zeros(5)}, r"shape of hidden: got \[5\]; expected \[N, H\]"),
            ({"weight": torch.zeros(7, 4)}, r"shape of weight: got \[7, 4\]; expected \[V, 3\]"),
            ({"weight": torch.zeros(3)}, r"shape of weight: got \[3\]"),
            ({"weight": torch.zeros(0, 3)}, "vocab_size: got 0; expected 1 to V = 0"),
            ({"weight": torch.zeros(7, 3).double()}, "dtype of weight: got torch.float64; expected torch.float32"),
            ({"bias": torch.zeros(6)}, r"shape of bias: got \[6\]; expected \[7\]"),
            ({"labels": torch.zeros(4, dtype=torch.long)}, r"shape of labels: got \[4\]; expected \[5\]"),
            ({"labels": torch.zeros(5)}, "dtype of labels: got torch.float32; expected torch.int64"),
            (
                {"labels": torch.tensor([0, 7, 1, 9, 2])},
                r"labels: got \[7, 9\]; expected 0 to 6, or ignore_index = -100",
            ),
            ({"labels": torch.tensor([0, -1, 1, 1, 2])}, r"labels: got \[-1\]"),
            ({"labels": torch.full((5,), 5), "vocab_size": 5}, r"labels: got \[5, 5, 5\]; expected 0 to 4"),
            ({"alpha": torch.zeros(6)}, r"shape of alpha: got \[6\]; expected \[5\]"),
            ({"alpha": torch.zeros(5, 1)}, r"shape of alpha: got \[5, 1\]"),
            ({"alpha": torch.zeros(5, dtype=torch.long)}, "dtype of alpha: got torch.int64"),
            ({"alpha": torch.tensor([0, 0.5, 1, 1.5, 0])}, r"alpha: got \[1.5\]; expected 0 to 1"),
            ({"alpha": torch.tensor([0, -0.5, 1, 0, 0])}, r"alpha: got \[-0.5\]"),
            ({"alpha": torch.tensor([0, math.nan, 1, 0, 0])}, r"alpha: got \[nan\]"),
            (
                {"alpha": torch.zeros(5, requires_grad=True)},
                "alpha: got a tensor that requires grad; expected a constant",
            ),
            ({"token_weight": torch.ones(6)}, r"shape of token_weight: got \[6\]; expected \[5\]"),
            ({"token_weight": torch.tensor([0, 1, -2.0, 1, 1])}, r"token_weight: got \[-2.0\]; expected 0 or above"),
            ({"token_weight": torch.full((5,), math.inf)}, r"token_weight: got \[inf, inf, inf\]"),
            ({"token_weight": torch.ones(5, requires_grad=True)}, "token_weight: got a tensor that requires grad"),
            ({"prior": torch.full((5,), 0.2)}, r"shape of prior: got \[5\]; expected \[7\]"),
            ({"prior": torch.full((7,), 0.2)}, "sum of prior over the vocabulary: got 1.4.*; expected 1"),
            ({"prior": torch.tensor([1.5, -0.5, 0, 0, 0, 0, 0])}, "prior: got a negative probability"),
            ({"prior": torch.full((7,), 1 / 7), "vocab_size": 5}, "sum of prior over the vocabulary: got 0.714"),
            ({"vocab_size": 8}, "vocab_size: got 8; expected 1 to V = 7"),
            ({"vocab_size": 0}, "vocab_size: got 0"),
            ({"softcap": 0.0}, "softcap: got 0.0; expected None, or above 0"),
            ({"softcap": math.nan}, "softcap: got nan"),
            ({"z_loss": -0.1}, "z_loss: got -0.1; expected 0 or above"),
            ({"chunk_size": 0}, "chunk_size: got 0; expected None, or 1 or above"),
            ({"reduction": "mean"}, "reduction: got 'mean'; expected 'sum' or 'none'"),
        ],
    )
    def test_message_names_the_argument_what_was_got_and_what_is_expected(self, wrong: dict[str, Any], message: str) -> None:
        right = {
            "hidden": torch.zeros(5, 3),
            "weight": torch.zeros(7, 3),
            "labels": torch.zeros(5, dtype=torch.long),
            "alpha": torch.zeros(5),
        }
        smoothed_linear_cross_entropy(**right)
        with pytest.raises(ValueError, match=message):
            smoothed_linear_cross_entropy(**right | wrong)
        if "reduction" not in wrong:
            with pytest.raises(ValueError, match=message):
                smoothed_linear_cross_entropy_with_metrics(**right | wrong)
