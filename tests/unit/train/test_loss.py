"""The loss against its definition and against torch's own, without smoothing, and with padding rows."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_reference import OPTIONS, all_options, assert_same, brute_force, gradients, make_inputs
from torch import Tensor

from ual_ray.train.loss import smoothed_linear_cross_entropy, smoothed_linear_cross_entropy_with_metrics
from ual_ray.train.token_losses import eaft, prior_leaning


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

    # Finite differences also go through the weight of a token loss and a token's prior, which are constants to the gradient.
    @pytest.mark.parametrize("options", [x for x in OPTIONS.values() if not {"token_loss", "prior_hidden"} & set(x)])
    @pytest.mark.parametrize("reduction", ["sum", "none"])
    @pytest.mark.slow
    def test_gradcheck(self, options: dict[str, Any], reduction: str) -> None:
        inputs = make_inputs(tokens=5, width=3, vocabulary=6, **{**options, **({"vocab_size": 4} if options else {})})
        names = [name for name in ("hidden", "weight", "bias") if inputs[name] is not None]

        def loss(*leaves: Tensor) -> Tensor:
            changed = inputs | dict(zip(names, leaves, strict=True))
            return smoothed_linear_cross_entropy(**changed, reduction=reduction, chunk_size=2)

        assert torch.autograd.gradcheck(loss, [inputs[name] for name in names])

    @pytest.mark.slow
    @settings(max_examples=80, deadline=None)
    @given(
        tokens=st.integers(0, 7),
        width=st.integers(1, 5),
        vocab_size=st.integers(1, 9),
        padding=st.integers(0, 3),
        chunk_size=st.integers(1, 9),
        bias=st.booleans(),
        token_weight=st.booleans(),
        towards=st.sampled_from([None, "prior", "prior_hidden", "prior_hidden prior_weight"]),
        softcap=st.none() | st.floats(0.5, 30),
        z_loss=st.sampled_from([0.0, 1e-4, 0.5]),
        token_loss=st.sampled_from([None, prior_leaning, eaft]),
        reduction=st.sampled_from(["sum", "none"]),
        seed=st.integers(0, 1000),
    )
    def test_any_shape_equals_brute_force(
        self, vocab_size: int, padding: int, chunk_size: int, reduction: str, towards: str | None, **arguments: Any
    ) -> None:
        prior = dict.fromkeys(towards.split() if towards else [], True)
        inputs = make_inputs(vocabulary=vocab_size + padding, vocab_size=vocab_size, **prior, **arguments)
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

    def test_smoothing_towards_a_distribution_per_token_is_cross_entropy_with_these_as_targets(self) -> None:
        inputs = make_inputs(tokens=40, prior_hidden=True)
        inputs["alpha"] = torch.ones_like(inputs["alpha"])
        towards = (inputs["prior_hidden"] @ inputs["weight"].T).softmax(1).detach()
        known = inputs["labels"] >= 0
        expected = F.cross_entropy((inputs["hidden"] @ inputs["weight"].T)[known], towards[known], reduction="sum")
        actual = smoothed_linear_cross_entropy(**inputs, chunk_size=7)
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
