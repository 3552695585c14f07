"""The loss in a training: reduction, metrics, memory, the autograd graph, and arguments that are refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from loss_reference import IGNORE, Recorder, all_options, assert_same, brute_force, gradients, make_inputs
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ual_ray.train.loss import (
    CHUNK_BYTES,
    chunk_rows,
    smoothed_linear_cross_entropy,
    smoothed_linear_cross_entropy_with_metrics,
)

OWN_HEAD = {"prior_hidden": torch.zeros(5, 3), "prior_weight": torch.zeros(7, 3)}


def brute_force_argmax(hidden: Tensor, weight: Tensor, bias: Tensor | None, vocab_size: int | None, **_: Any) -> Tensor:
    """A soft-cap keeps the order of the logits."""
    return (hidden @ weight.T + (0 if bias is None else bias))[:, :vocab_size].argmax(1)


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


class TestMemoryAndGraph:
    @all_options
    @pytest.mark.parametrize("reduction", ["sum", "none"])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.slow
    def test_logits_of_all_tokens_never_exist(self, options: dict[str, Any], reduction: str, dtype: torch.dtype) -> None:
        tokens, width, vocabulary, chunk_size = 120, 6, 512, 10
        inputs = make_inputs(tokens, width, vocabulary, dtype=dtype, **{**options, "vocab_size": None})
        inputs["labels"] = torch.arange(tokens)
        with Recorder() as recorder:
            loss = smoothed_linear_cross_entropy(**inputs, chunk_size=chunk_size, reduction=reduction)
            loss.sum().backward()
        assert recorder.largest <= chunk_size * vocabulary < tokens * vocabulary / 10

    @pytest.mark.parametrize(("softcap", "rows"), [(None, 16), (3.0, 8)])
    def test_default_chunk_is_bounded_with_the_tanh_of_a_soft_cap(
        self, monkeypatch: pytest.MonkeyPatch, softcap: float | None, rows: int
    ) -> None:
        monkeypatch.setitem(CHUNK_BYTES, "cpu", 16 * 512 * 4)
        inputs = make_inputs(tokens=120, vocabulary=512, softcap=softcap)
        with Recorder() as recorder:
            smoothed_linear_cross_entropy(**inputs).backward()
        assert recorder.largest == rows * 512

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
            ({"prior": torch.full((7,), 0.2)}, r"sum of prior over the vocabulary: got \[1.4.*; expected 1"),
            ({"prior": torch.tensor([1.5, -0.5, 0, 0, 0, 0, 0])}, r"prior: got \[-0.5\]; expected 0 or above"),
            ({"prior": torch.full((7,), 1 / 7), "vocab_size": 5}, r"sum of prior over the vocabulary: got \[0.714"),
            ({"prior_weight": torch.zeros(7, 3)}, "prior_weight: got no prior_hidden; expected the states"),
            (OWN_HEAD | {"prior_weight": torch.zeros(6, 3)}, r"shape of prior_weight: got \[6, 3\]; expected \[7, 3\]"),
            (
                OWN_HEAD | {"prior_weight": torch.zeros(7, 3, requires_grad=True)},
                "prior_weight: got a tensor that requires grad",
            ),
            (OWN_HEAD | {"prior_bias": torch.zeros(6)}, r"shape of prior_bias: got \[6\]; expected \[7\]"),
            ({"prior_bias": torch.zeros(7)}, "prior_bias: got no prior_weight; expected the weight"),
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
