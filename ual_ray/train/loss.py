"""Cross-entropy with one label-smoothing value per token, straight from the hidden states, without the N x V logits.

For the logits z of one token, its label y, smoothing a and weight w, over the K real entries of the vocabulary, with a prior q
(by default q_k = 1 / K):

    loss = w (NLL + a (z_y - q.z) + z_loss lse^2)        NLL = lse - z_y, lse = logsumexp(z)
    d loss / d z_k = w (p_k (1 + 2 z_loss lse) - (1 - a) [k = y] - a q_k)

This is the cross-entropy against (1 - a) one-hot + a q: label smoothing (Szegedy et al. 2016) whose strength follows
the uncertainty of each sample, as in Uncertainty-Aware Learning (UAL, arXiv 2406.04854).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import Function, once_differentiable

from ual_ray.models.product_speed import slower_than_float32
from ual_ray.train.loss_inputs import Inputs, Options, check

# Bytes of one chunk's float32 logits. On a CPU more is no faster, and half as much slows bfloat16 by a tenth; on an H100
# (bench/gpu_check.py) 96 MiB take 2.6 to 4.4 times as long as 1 GiB, and 2 GiB save 3 to 13% for 1.6 GB more.
CHUNK_BYTES = {"cpu": 96 * 2**20, "cuda": 2**30}
# Rows of the head's weights that are converted at one time.
SUM_BLOCK = 8192
# Tile size of a GPU's matrix product, in rows.
TILE = 128

_Gradients = list[Tensor | None]


class LossMetrics(NamedTuple):
    """Detached metrics per token, aligned with labels [N]; 0 or False where the label is ignored.

    nll: unsmoothed and unweighted, in nats; the only loss comparable across arms. smoothing: a (z_y - q.z), in nats.
    top1: the label is the argmax. target: the label is not ignored.
    """

    nll: Tensor
    smoothing: Tensor
    top1: Tensor
    target: Tensor


def smoothed_linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    alpha: Tensor,
    *,
    bias: Tensor | None = None,
    token_weight: Tensor | None = None,
    prior: Tensor | None = None,
    prior_hidden: Tensor | None = None,
    prior_weight: Tensor | None = None,
    prior_bias: Tensor | None = None,
    token_loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    ignore_index: int = -100,
    vocab_size: int | None = None,
    softcap: float | None = None,
    z_loss: float = 0.0,
    chunk_size: int | None = None,
    reduction: str = "sum",
) -> Tensor:
    """Cross-entropy of softmax(hidden @ weight.T + bias) with the smoothing alpha of each token, in nats.

    hidden: [N, H]. weight: [V, H]. bias: [V]. labels: [N] int64. alpha: [N] in [0, 1], a constant. token_weight: [N], 0 or
    above, a constant; 1 by default. prior: [V], what is smoothed towards, a distribution over the vocabulary, a constant;
    uniform by default. prior_hidden: [N, H], constants, in place of prior: hidden states whose distribution under the same
    head is what each token is smoothed towards, such as those of the model before training. prior_weight, prior_bias: [V, H]
    and [V], constants: the head of prior_hidden where it is another one. token_loss: a function of nll [n]
    and probabilities [n, K] that gives one more weight per token, without gradients (ual_ray.train.token_losses). vocab_size:
    rows of weight and bias from this index on are padding, treated as absent. softcap: z = softcap tanh(raw / softcap).
    z_loss: coefficient of lse^2. chunk_size: how many tokens' logits exist at one time. Matrix products are in the dtype of
    the inputs, under autocast in its dtype; all else is in float32, for float64 inputs in float64.
    Returns the sum over target tokens, or with reduction="none" [N], 0 where the label is ignored ("none" computes the
    logits again in backward). Raises ValueError for an argument outside its range.
    Source: UAL, arXiv 2406.04854; label smoothing: Szegedy et al. 2016.
    """
    before = (prior_hidden, prior_weight, prior_bias)
    options = Options(ignore_index, vocab_size, softcap, z_loss, chunk_size, reduction, token_loss=token_loss)
    return _loss_and_metrics(Inputs(hidden, weight, bias, labels, alpha, token_weight, prior, *before), options)[0]


def smoothed_linear_cross_entropy_with_metrics(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    alpha: Tensor,
    *,
    bias: Tensor | None = None,
    token_weight: Tensor | None = None,
    prior: Tensor | None = None,
    prior_hidden: Tensor | None = None,
    prior_weight: Tensor | None = None,
    prior_bias: Tensor | None = None,
    token_loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    ignore_index: int = -100,
    vocab_size: int | None = None,
    softcap: float | None = None,
    z_loss: float = 0.0,
    chunk_size: int | None = None,
) -> tuple[Tensor, LossMetrics]:
    """Return the summed `smoothed_linear_cross_entropy` (same arguments, units, errors, source) and its metrics."""
    before = (prior_hidden, prior_weight, prior_bias)
    options = Options(ignore_index, vocab_size, softcap, z_loss, chunk_size, "sum", token_loss=token_loss)
    return _loss_and_metrics(Inputs(hidden, weight, bias, labels, alpha, token_weight, prior, *before), options)


def chunk_rows(tokens: int, vocabulary: int, device_type: str) -> int:
    """Return the default number of `tokens` per chunk: those whose float32 logits fit into CHUNK_BYTES."""
    rows = max(1, CHUNK_BYTES.get(device_type, CHUNK_BYTES["cpu"]) // (4 * vocabulary))
    if device_type != "cuda" or rows >= tokens:
        return min(rows, max(1, tokens))
    # Equal chunks of whole tiles: a small last chunk would cost as much as a full one.
    return TILE * math.ceil(tokens / math.ceil(tokens / rows) / TILE)


def _loss_and_metrics(inputs: Inputs, options: Options) -> tuple[Tensor, LossMetrics]:
    """Drop ignored tokens before any work is done on them, and insert zeros at their positions afterwards."""
    check(inputs, options)
    target = inputs.labels != options.ignore_index
    rows = target.nonzero().squeeze(1)
    if len(rows) < len(target):
        own = {name: getattr(inputs, name) for name in ("hidden", "labels", "alpha", "token_weight", "prior_hidden")}
        inputs = inputs._replace(**{name: own[name].index_select(0, rows) for name in own if own[name] is not None})

    def put_back(values: Tensor) -> Tensor:
        return torch.zeros_like(target, dtype=values.dtype).index_copy(0, rows, values)

    # Read here, as inside a Function gradients are off, and its backward runs outside autocast.
    options = options._replace(grad_enabled=torch.is_grad_enabled(), matmul_dtype=_matmul_dtype(inputs.hidden))
    loss, nll, smoothing, top1 = _ChunkedLoss.apply(*inputs, options)
    loss = put_back(loss) if options.reduction == "none" else loss
    return loss, LossMetrics(put_back(nll), put_back(smoothing), put_back(top1), target)


class _ChunkedLoss(Function):
    """Computes the gradients of a sum in forward, while the logits exist; for "none" in backward, from the upstream ones."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, ...]:
        *inputs, options = arguments
        wanted = ctx.needs_input_grad[:3] if options.reduction == "sum" and options.grad_enabled else (False,) * 3
        (loss, *metrics), gradients = _run(Inputs(*inputs), options, wanted)
        ctx.options, ctx.dtypes = options, [None if tensor is None else tensor.dtype for tensor in inputs[:3]]
        ctx.mark_non_differentiable(*metrics)
        if options.reduction == "none":
            ctx.save_for_backward(*inputs)
            return loss, *metrics
        ctx.save_for_backward(*gradients)
        return loss.sum(), *metrics

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.options.reduction == "none":
            gradients = _run(Inputs(*ctx.saved_tensors), ctx.options, ctx.needs_input_grad[:3], upstream)[1]
        else:
            # Multiplied and rounded in one pass; not in place, as with retain_graph it may run again.
            gradients = [
                None if saved is None else torch.mul(saved, upstream, out=torch.empty_like(saved, dtype=dtype))
                for saved, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
            ]
        # For "none", autograd casts every gradient to the dtype of its input.
        return *gradients, *(None,) * (len(Inputs._fields) - len(gradients)), None


def _run(
    inputs: Inputs, options: Options, wanted: tuple[bool, ...], upstream: Tensor | None = None
) -> tuple[list[Tensor], _Gradients]:
    """Return loss, nll, smoothing and top1 of each token, and the wanted gradients of sum(upstream * loss)."""
    hidden, weight, bias, labels, alpha, token_weight, prior, prior_hidden, *prior_head = inputs
    exact = torch.promote_types(hidden.dtype, torch.float32)
    alpha, token_weight = alpha.to(exact), None if token_weight is None else token_weight.to(exact)
    # Slow low precision costs a float32 copy of the weights: halving the chunks makes room, and is as fast in float32.
    # So do the probabilities of a prior per token, and the tanh of a soft-cap.
    own = (slower_than_float32(options.matmul_dtype, weight.device), prior_hidden is not None, options.softcap is not None)
    row = len(weight) * (1 + sum(own))
    chunk_size = options.chunk_size or chunk_rows(len(labels), row, weight.device.type)
    results = [hidden.new_empty(len(labels), dtype=dtype) for dtype in (exact, exact, exact, torch.bool)]
    gradients = [
        torch.empty_like(hidden) if wanted[0] else None,
        torch.zeros_like(weight, dtype=exact) if wanted[1] else None,
        weight.new_zeros(len(weight), dtype=exact) if wanted[2] else None,
    ]
    with torch.autocast(hidden.device.type, enabled=False):
        head = _Head(weight, bias, prior, options, min(chunk_size, len(labels)), gradients)
        before = head.other(*prior_head)
        for start in range(0, len(labels), chunk_size):
            rows = slice(start, start + chunk_size)
            h, y, a = head.cast(hidden[rows]), labels[rows], alpha[rows]
            towards = None if prior_hidden is None else head.probabilities(head.cast(prior_hidden[rows]), *before)
            (loss, *values), lse, probabilities = _chunk_loss(head, h, y, a, options.z_loss, towards)
            weights = [] if token_weight is None else [token_weight[rows]]
            if options.token_loss is not None:
                weights.append(options.token_loss(values[0], probabilities))
            values = [math.prod(weights, start=loss), *values]
            factors = weights if upstream is None else [*weights, upstream[rows]]
            for result, value in zip(results, values, strict=True):
                result[rows] = value
            if any(wanted):
                d_logits, uniform = probabilities, a / head.share
                if options.z_loss:
                    d_logits *= (1 + 2 * options.z_loss * lse)[:, None]
                d_logits.scatter_add_(1, y[:, None], (a - 1)[:, None])
                if towards is not None:
                    uniform = torch.zeros_like(a)
                    d_logits.addcmul_(towards, a[:, None], value=-1)
                for factor in factors:
                    d_logits *= factor[:, None]
                    uniform *= factor
                head.backward(d_logits, uniform, h, rows)
        head.finish()
    return results, gradients


def _chunk_loss(
    head: _Head, hidden: Tensor, labels: Tensor, alpha: Tensor, z_loss: float, towards: Tensor | None
) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
    """Return (loss, nll, smoothing, top1), lse, and the probabilities, which overwrite the logits.

    towards: each token's own prior [chunk, K], where it has one.
    """
    logits, mean = head.logits_and_mean(hidden)
    if towards is not None:
        # Not the product of both where the prior is 0: the logit may be -inf there.
        mean = (towards * logits).masked_fill_(towards == 0, 0.0).sum(1)
    at_label = logits.gather(1, labels[:, None]).squeeze(1)
    largest, argmax = logits.max(1)
    probabilities = torch.softmax(logits, 1, out=logits)
    # The largest probability is at least 1 / K, so its logarithm is finite; the label's can be -inf.
    log_largest = probabilities.gather(1, argmax[:, None]).squeeze(1).log_()
    lse = largest - log_largest
    nll = (largest - at_label) - log_largest
    # Not just alpha * x: with alpha = 0, an infinite x (a token excluded by its bias) must not give NaN.
    smoothing = torch.where(alpha > 0, alpha * (at_label - mean), 0.0)
    loss = nll + smoothing + z_loss * lse.square() if z_loss else nll + smoothing
    return (loss, nll, smoothing, argmax == labels), lse, probabilities


class _Head:
    """The output layer without its padding rows; processes one chunk of tokens at a time in reused buffers.

    Allocating each chunk's logits can cost as much time as the product that fills them. The prior's term of the gradient,
    -alpha q_k (about -2e-6 for a uniform one), is a product of a token's alpha and of q, so it is added exactly, through
    weighted sums of weight rows and of hidden states; added to low-precision probabilities it would be rounded away.
    A uniform prior is written as q_k = 1 with share = K, any other one with share = 1.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, prior: Tensor | None, options: Options, rows: int, gradients: _Gradients
    ) -> None:
        self._rounded, exact = options.matmul_dtype, torch.promote_types(options.matmul_dtype, torch.float32)
        # Where low precision is slow, its values are multiplied as float32: faster, and without intermediate rounding.
        self._dtype = dtype = exact if slower_than_float32(options.matmul_dtype, weight.device) else options.matmul_dtype
        self.size = options.vocab_size or len(weight)
        self._softcap = options.softcap
        self._gradients = gradients
        self._weight = self.cast(weight[: self.size])
        self._bias = None if bias is None else bias[: self.size].to(exact)
        self._prior = None if prior is None else prior[: self.size].to(exact)
        self.share = self.size if prior is None else 1
        self._weight_sum = self._weight.sum(0, dtype=exact) if self._prior is None else _weighted_sum(self._prior, self._weight)
        self._uniform_states = torch.zeros_like(self._weight_sum)
        self._uniform = self._weight_sum.new_zeros(())
        self._is_exact = dtype == exact
        self._logits = self._weight.new_empty(rows, self.size, dtype=exact)
        self._low = self._logits if self._is_exact else torch.empty_like(self._logits, dtype=dtype)
        self._tanh = torch.empty_like(self._logits) if self._softcap else self._logits
        self._is_wide = not self._is_exact and _has_wide_products(weight.device)
        own_product = gradients[1] is not None and not (self._is_exact or self._is_wide)
        self._product = torch.empty_like(self._weight) if own_product else None

    def cast(self, values: Tensor) -> Tensor:
        """Round to the dtype of the products, and convert to the dtype that they are computed in."""
        return values.to(self._rounded).to(self._dtype)

    def logits_and_mean(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Return z [chunk, K] and zbar [chunk]; without a soft-cap zbar needs no pass over z."""
        logits = self._logits_of(hidden, self._weight, self._bias)
        if self._softcap:
            return logits, logits.mean(1) if self._prior is None else logits @ self._prior
        total = hidden.to(logits.dtype) @ self._weight_sum
        if self._bias is not None:
            # Not the product of both: an entry that is excluded by its bias of -inf may have a prior of 0.
            total += (self._bias if self._prior is None else torch.where(self._prior > 0, self._bias * self._prior, 0)).sum()
        return logits, total / self.share

    def _logits_of(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        logits = self._logits[: len(hidden)]
        if self._is_wide:
            torch.mm(hidden, weight.T, out_dtype=logits.dtype, out=logits)
        else:
            low = torch.mm(hidden, weight.T, out=self._low[: len(hidden)])
            if not self._is_exact:
                logits.copy_(low)
        if bias is not None:
            logits += bias
        if self._softcap:
            tanh = torch.div(logits, self._softcap, out=self._tanh[: len(hidden)]).tanh_()
            torch.mul(tanh, self._softcap, out=logits)
        return logits

    def other(self, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return another head as `probabilities` takes it; this one's own without a weight."""
        if weight is None:
            return self._weight, self._bias
        return self.cast(weight[: self.size]), None if bias is None else bias[: self.size].to(self._logits.dtype)

    def probabilities(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the distributions [chunk, K] of hidden states; to be called before the chunk's own logits are computed."""
        return torch.softmax(self._logits_of(hidden, weight, bias), 1)

    def backward(self, d_logits: Tensor, uniform: Tensor, hidden: Tensor, rows: slice) -> None:
        """Add one chunk to the gradients; overwrites d_logits. uniform: [chunk], times q to be subtracted from d_logits."""
        if self._softcap:
            d_logits -= uniform[:, None] if self._prior is None else torch.outer(uniform, self._prior)
            d_logits *= self._tanh[: len(hidden)].square_().neg_().add_(1)
            uniform = torch.zeros_like(uniform)
        self._uniform_states += hidden.to(uniform.dtype).T @ uniform
        self._uniform += uniform.sum()
        d_hidden, d_weight, d_bias = self._gradients
        low = d_logits if self._is_exact else self._low[: len(hidden)].copy_(d_logits)
        if d_hidden is not None:
            product = torch.mm(low, self._weight, out_dtype=uniform.dtype) if self._is_wide else low @ self._weight
            d_hidden[rows] = product.to(uniform.dtype).addr_(uniform, self._weight_sum, alpha=-1)
        if d_weight is not None:
            self._add_product(d_weight[: self.size], low.T, hidden)
        if d_bias is not None:
            d_bias[: self.size] += d_logits.sum(0)

    def _add_product(self, total: Tensor, first: Tensor, second: Tensor) -> None:
        """Add a product to a float32 (float64) total, in as few passes as the device allows."""
        if self._is_wide:
            torch.addmm(total, first, second, out_dtype=total.dtype, out=total)
        elif self._product is None:
            total.addmm_(first, second)
        else:
            total += torch.mm(first, second, out=self._product)

    def finish(self) -> None:
        """Subtract the prior's term of all chunks from the head's gradients; for a uniform one the same row for every k."""
        _, d_weight, d_bias = self._gradients
        if d_weight is not None and self._prior is None:
            d_weight[: self.size] -= self._uniform_states
        elif d_weight is not None and self._prior is not None:
            d_weight[: self.size].addr_(self._prior, self._uniform_states, alpha=-1)
        if d_bias is not None:
            d_bias[: self.size] -= self._uniform if self._prior is None else self._uniform * self._prior


def _weighted_sum(factors: Tensor, rows: Tensor) -> Tensor:
    """Return factors @ rows in the dtype of the factors, without a copy of all rows in it."""
    blocks = zip(factors.split(SUM_BLOCK), rows.split(SUM_BLOCK), strict=True)
    return torch.stack([own @ block.to(factors.dtype) for own, block in blocks]).sum(0)


def _has_wide_products(device: torch.device) -> bool:
    """Whether products of 16-bit factors can be output as, or accumulated in, float32, which saves conversion passes."""
    return device.type == "cuda" and torch.version.cuda is not None and "dtype_out" in torch.ops.aten.addmm.overloads()


def _matmul_dtype(hidden: Tensor) -> torch.dtype:
    autocast = torch.is_autocast_enabled(hidden.device.type) and hidden.dtype != torch.float64
    return torch.get_autocast_dtype(hidden.device.type) if autocast else hidden.dtype
