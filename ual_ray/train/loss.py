"""Cross-entropy with one label-smoothing value per token, straight from the hidden states: the N x V logits never exist.

For the logits z of one token, its label y and its smoothing a, over the K real entries of the vocabulary:

    loss = NLL + a (z_y - zbar) + z_loss lse^2        NLL = lse - z_y, lse = logsumexp(z), zbar = mean(z)
    d loss / d z_k = p_k (1 + 2 z_loss lse) - (1 - a) [k = y] - a / K

This is the cross-entropy against (1 - a) one-hot + a / K: label smoothing (Szegedy et al. 2016) whose strength follows each
sample's uncertainty, as in Uncertainty-Aware Learning (arXiv 2406.04854).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

DEFAULT_CHUNK_BYTES = 128 * 2**20


class LossMetrics(NamedTuple):
    """Detached facts about each token, aligned with labels [N]; 0 or False where the label is ignored.

    nll: unsmoothed, in nats; the only loss that can be compared across arms. smoothing: a (z_y - zbar), in nats. top1: the
    label is the argmax. target: the label is not ignored.
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
    ignore_index: int = -100,
    vocab_size: int | None = None,
    softcap: float | None = None,
    z_loss: float = 0.0,
    chunk_size: int | None = None,
    reduction: str = "sum",
) -> Tensor:
    """Cross-entropy of softmax(hidden @ weight.T + bias) with the smoothing alpha of each token, in nats.

    hidden: [N, H]. weight: [V, H]. bias: [V]. labels: [N] int64. alpha: [N] in [0, 1]; a constant, no gradient flows to it.
    vocab_size: rows of weight and bias from here on are padding, treated as absent. softcap: z = softcap tanh(raw / softcap).
    z_loss: coefficient of lse^2. chunk_size: tokens whose logits exist at one time. Matrix products are in the dtype of the
    inputs, under autocast in autocast's; all else is in float32, for float64 inputs in float64.
    Returns the sum over the target tokens, or with reduction="none" [N], 0 where the label is ignored ("none" computes the
    logits once more in backward). Raises ValueError for an argument outside its range. Source: UAL, arXiv 2406.04854; label
    smoothing: Szegedy et al. 2016.
    """
    options = _Options(ignore_index, vocab_size, softcap, z_loss, chunk_size, reduction)
    return _loss_and_metrics(_Inputs(hidden, weight, bias, labels, alpha), options)[0]


def smoothed_linear_cross_entropy_with_metrics(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    alpha: Tensor,
    *,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    vocab_size: int | None = None,
    softcap: float | None = None,
    z_loss: float = 0.0,
    chunk_size: int | None = None,
) -> tuple[Tensor, LossMetrics]:
    """Return `smoothed_linear_cross_entropy` (its arguments, units, errors, source), summed, with metrics at no extra pass."""
    options = _Options(ignore_index, vocab_size, softcap, z_loss, chunk_size, "sum")
    return _loss_and_metrics(_Inputs(hidden, weight, bias, labels, alpha), options)


class _Inputs(NamedTuple):
    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    labels: Tensor
    alpha: Tensor


class _Options(NamedTuple):
    ignore_index: int
    vocab_size: int | None
    softcap: float | None
    z_loss: float
    chunk_size: int | None
    reduction: str
    grad_enabled: bool = False
    matmul_dtype: torch.dtype = torch.float32


class _Gradients(NamedTuple):
    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None


def _loss_and_metrics(inputs: _Inputs, options: _Options) -> tuple[Tensor, LossMetrics]:
    """Leave ignored tokens out before any work is done on them, and put zeros in their places afterwards."""
    _check(inputs, options)
    target = inputs.labels != options.ignore_index
    rows = target.nonzero().squeeze(1)
    some_ignored = len(rows) < len(target)
    if some_ignored:
        hidden, labels, alpha = (tensor.index_select(0, rows) for tensor in (inputs.hidden, inputs.labels, inputs.alpha))
        inputs = inputs._replace(hidden=hidden, labels=labels, alpha=alpha)
    # Neither can be asked for inside a Function: there, gradients are always off, and backward is outside autocast.
    options = options._replace(grad_enabled=torch.is_grad_enabled(), matmul_dtype=_matmul_dtype(inputs))
    loss, *metrics = _ChunkedLoss.apply(*inputs, options)
    if some_ignored:
        metrics = [_put_back(values, rows, target) for values in metrics]
        loss = _put_back(loss, rows, target) if options.reduction == "none" else loss
    return loss, LossMetrics(*metrics, target)


def _put_back(values: Tensor, rows: Tensor, target: Tensor) -> Tensor:
    return torch.zeros_like(target, dtype=values.dtype).index_copy(0, rows, values)


class _ChunkedLoss(torch.autograd.Function):
    """Makes the gradients of a sum in forward, while the logits are there; "none" has to wait for each token's gradient."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, ...]:
        inputs, ctx.options = _Inputs(*arguments[:-1]), arguments[-1]
        in_forward = ctx.options.reduction == "sum" and ctx.options.grad_enabled
        (loss, *metrics), gradients = _run(inputs, ctx.options, ctx.needs_input_grad[:3] if in_forward else (False,) * 3)
        ctx.mark_non_differentiable(*metrics)
        if ctx.options.reduction == "none":
            ctx.save_for_backward(*inputs)
            return loss, *metrics
        ctx.save_for_backward(*gradients)
        ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in inputs[:3]]
        return loss.sum(), *metrics

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.options.reduction == "none":
            inputs = _Inputs(*ctx.saved_tensors)
            gradients = _run(inputs, ctx.options, ctx.needs_input_grad[:3], upstream)[1]
            dtypes = [None if tensor is None else tensor.dtype for tensor in inputs[:3]]
        else:
            # A new tensor, not in place: with retain_graph this runs again.
            gradients = _Gradients(*(None if saved is None else saved * upstream for saved in ctx.saved_tensors))
            dtypes = ctx.dtypes
        return (
            *(None if g is None else g.to(dtype) for g, dtype in zip(gradients, dtypes, strict=True)),
            None,
            None,
            None,
        )


def _run(
    inputs: _Inputs, options: _Options, wanted: tuple[bool, ...], upstream: Tensor | None = None
) -> tuple[list[Tensor], _Gradients]:
    """Return loss, nll, smoothing and top1 of each token, and the wanted gradients of sum(upstream * loss)."""
    hidden, weight, _, labels, alpha = inputs
    exact = torch.promote_types(hidden.dtype, torch.float32)
    alpha = alpha.to(exact)
    chunk_size = options.chunk_size or _default_chunk_size(len(labels), len(weight))
    results = [hidden.new_empty(len(labels), dtype=dtype) for dtype in (exact, exact, exact, torch.bool)]
    gradients = _Gradients(
        torch.empty_like(hidden) if wanted[0] else None,
        torch.zeros_like(weight, dtype=exact) if wanted[1] else None,
        weight.new_zeros(len(weight), dtype=exact) if wanted[2] else None,
    )
    with torch.autocast(hidden.device.type, enabled=False):
        head = _Head(inputs, options, exact, min(chunk_size, len(labels)))
        for start in range(0, len(labels), chunk_size):
            rows = slice(start, start + chunk_size)
            states = hidden[rows].to(options.matmul_dtype)
            chunk = _chunk_loss(head, states, labels[rows], alpha[rows], options.z_loss)
            for result, values in zip(results, chunk, strict=False):
                result[rows] = values
            if any(wanted):
                d_logits, uniform = (
                    _logit_gradient(chunk, labels[rows], alpha[rows], options.z_loss),
                    alpha[rows] / head.size,
                )
                if upstream is not None:
                    d_logits *= upstream[rows, None]
                    uniform = uniform * upstream[rows]
                head.backward(d_logits, uniform, states, rows, gradients)
        head.add_uniform_term(gradients)
    return results, gradients


class _Chunk(NamedTuple):
    loss: Tensor
    nll: Tensor
    smoothing: Tensor
    top1: Tensor
    lse: Tensor
    probabilities: Tensor


def _chunk_loss(head: _Head, hidden: Tensor, labels: Tensor, alpha: Tensor, z_loss: float) -> _Chunk:
    logits = head.logits(hidden)
    at_label = logits.gather(1, labels[:, None]).squeeze(1)
    mean = head.mean_logit(hidden, logits)
    largest, argmax = logits.max(1)
    probabilities = torch.softmax(logits, 1, out=logits)
    # The largest probability is at least 1 / K, so its logarithm is finite; that of the label's can be -inf.
    log_largest = probabilities.gather(1, argmax[:, None]).squeeze(1).log_()
    lse = largest - log_largest
    nll = (largest - at_label) - log_largest
    # Not alpha * x alone: without smoothing, an infinite x (a token that its bias bars) has to leave no trace.
    smoothing = torch.where(alpha > 0, alpha * (at_label - mean), 0.0)
    loss = nll + smoothing + z_loss * lse.square() if z_loss else nll + smoothing
    return _Chunk(loss, nll, smoothing, argmax == labels, lse, probabilities)


def _logit_gradient(chunk: _Chunk, labels: Tensor, alpha: Tensor, z_loss: float) -> Tensor:
    """Turn a chunk's probabilities, in place, into the gradient by its logits, all but the uniform term -alpha / K."""
    gradient = chunk.probabilities
    if z_loss:
        gradient *= (1 + 2 * z_loss * chunk.lse)[:, None]
    return gradient.scatter_add_(1, labels[:, None], (alpha - 1)[:, None])


class _Head:
    """The output layer without its padding rows; takes one chunk of tokens at a time through buffers that it reuses.

    Fresh pages for each chunk's logits can cost as much time as the product that fills them. The uniform term -alpha / K of
    the gradient (about 2e-6) is the same for all k, so it goes in through sums of weight rows and of hidden states, exactly;
    in low-precision logits it would vanish beside the probabilities.
    """

    def __init__(self, inputs: _Inputs, options: _Options, exact: torch.dtype, tokens: int) -> None:
        self.size = options.vocab_size or len(inputs.weight)
        self._softcap = options.softcap
        self._weight = inputs.weight[: self.size].to(options.matmul_dtype)
        self._bias = None if inputs.bias is None else inputs.bias[: self.size].to(exact)
        self._weight_sum = self._weight.sum(0, dtype=exact)
        self._is_exact = options.matmul_dtype == exact
        self._logits = self._weight.new_empty(tokens, self.size, dtype=exact)
        self._low = self._logits if self._is_exact else torch.empty_like(self._logits, dtype=options.matmul_dtype)
        self._tanh = torch.empty_like(self._logits) if self._softcap else self._logits
        self._product = torch.empty_like(self._weight[:0] if self._is_exact else self._weight)
        self._uniform_states = torch.zeros_like(self._weight_sum)
        self._uniform = self._weight_sum.new_zeros(())

    def logits(self, hidden: Tensor) -> Tensor:
        logits = self._logits[: len(hidden)]
        low = torch.mm(hidden, self._weight.T, out=self._low[: len(hidden)])
        if not self._is_exact:
            logits.copy_(low)
        if self._bias is not None:
            logits += self._bias
        if self._softcap:
            tanh = torch.div(logits, self._softcap, out=self._tanh[: len(hidden)]).tanh_()
            torch.mul(tanh, self._softcap, out=logits)
        return logits

    def mean_logit(self, hidden: Tensor, logits: Tensor) -> Tensor:
        if self._softcap:
            return logits.mean(1)
        mean = hidden.to(self._weight_sum.dtype) @ self._weight_sum / self.size
        return mean if self._bias is None else mean + self._bias.mean()

    def backward(self, d_logits: Tensor, uniform: Tensor, hidden: Tensor, rows: slice, gradients: _Gradients) -> None:
        """Add one chunk to the gradients; overwrites d_logits. uniform: [chunk], what is yet to be taken from every logit's."""
        if self._softcap:
            d_logits -= uniform[:, None]
            d_logits *= self._tanh[: len(hidden)].square_().neg_().add_(1)
            uniform = torch.zeros_like(uniform)
        low = d_logits if self._is_exact else self._low[: len(hidden)].copy_(d_logits)
        if gradients.hidden is not None:
            d_hidden = (low @ self._weight).to(d_logits.dtype)
            gradients.hidden[rows] = d_hidden.addr_(uniform, self._weight_sum, alpha=-1)
        if gradients.weight is not None and self._is_exact:
            gradients.weight[: self.size].addmm_(low.T, hidden)
        elif gradients.weight is not None:
            gradients.weight[: self.size] += torch.mm(low.T, hidden, out=self._product)
        if gradients.bias is not None:
            gradients.bias[: self.size] += d_logits.sum(0)
        self._uniform_states += uniform @ hidden.to(uniform.dtype)
        self._uniform += uniform.sum()

    def add_uniform_term(self, gradients: _Gradients) -> None:
        if gradients.weight is not None:
            gradients.weight[: self.size] -= self._uniform_states
        if gradients.bias is not None:
            gradients.bias[: self.size] -= self._uniform


def _default_chunk_size(tokens: int, vocabulary: int) -> int:
    """Split the tokens evenly into as few chunks as keep a chunk's float32 logits within DEFAULT_CHUNK_BYTES."""
    chunks = math.ceil(tokens * vocabulary * 4 / DEFAULT_CHUNK_BYTES)
    return math.ceil(tokens / max(1, chunks)) or 1


def _matmul_dtype(inputs: _Inputs) -> torch.dtype:
    device = inputs.hidden.device.type
    if torch.is_autocast_enabled(device) and inputs.hidden.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return inputs.hidden.dtype


def _check(inputs: _Inputs, options: _Options) -> None:
    hidden, weight, bias, labels, alpha = inputs
    _require(hidden.ndim == 2, "shape of hidden", list(hidden.shape), "[N, H]")
    tokens, width = hidden.shape
    _require(weight.ndim == 2 and weight.shape[1] == width, "shape of weight", list(weight.shape), f"[V, {width}]")
    size = len(weight) if options.vocab_size is None else options.vocab_size
    _require(1 <= size <= len(weight), "vocab_size", size, f"1 to V = {len(weight)}")
    for name, tensor, length in (("labels", labels, tokens), ("alpha", alpha, tokens), ("bias", bias, len(weight))):
        if tensor is not None:
            _require(tensor.shape == (length,), f"shape of {name}", list(tensor.shape), f"[{length}]")
    autocast = _matmul_dtype(inputs) != hidden.dtype
    legal = f"{hidden.dtype}, as hidden, unless under autocast"
    _require(weight.dtype == hidden.dtype or autocast, "dtype of weight", weight.dtype, legal)
    _require(labels.dtype == torch.int64, "dtype of labels", labels.dtype, "torch.int64")
    _require(alpha.is_floating_point() and not alpha.requires_grad, "alpha", alpha, "a floating-point constant")
    softcap, z_loss, chunk_size, reduction = options.softcap, options.z_loss, options.chunk_size, options.reduction
    _require(softcap is None or 0 < softcap < math.inf, "softcap", softcap, "None or above 0")
    _require(0 <= z_loss < math.inf, "z_loss", z_loss, "0 or above")
    _require(chunk_size is None or chunk_size >= 1, "chunk_size", chunk_size, "None or at least 1")
    _require(reduction in ("sum", "none"), "reduction", repr(reduction), "'sum' or 'none'")
    wrong = (labels != options.ignore_index) & ((labels < 0) | (labels >= size))
    legal = f"0 to {size - 1}, or ignore_index = {options.ignore_index}"
    _require(not wrong.any(), "labels", lambda: labels[wrong][:3].tolist(), legal)
    wrong = ~((alpha >= 0) & (alpha <= 1))
    _require(not wrong.any(), "alpha", lambda: alpha[wrong][:3].tolist(), "0 to 1")


def _require(legal: bool, name: str, value: object, range_: str) -> None:
    if not legal:
        raise ValueError(f"{name}: found {value() if callable(value) else value}; legal: {range_}")
