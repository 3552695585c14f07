"""A transformers causal LM whose own forward gives the smoothed loss: inside it weights are gathered and autocast is on.

Trainers call a loss function after forward, where neither may be so (FSDP, accelerate's mixed precision), and with logits
of [rows, length, vocabulary] in hand. So the loss is made in forward, from the hidden states, and the function only divides.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from ual_ray import columns as col
from ual_ray.models.compat_transformers import attention_implementation
from ual_ray.train.batches import Batch
from ual_ray.train.model import SUMS, SmoothedCausalLM, check_loss
from ual_ray.train.token_store import NO_BIN

# The labels under a second name: a Trainer with a loss function keeps `labels` from the model.
TARGETS = "targets"


@dataclass
class SmoothedOutput(ModelOutput):
    """What forward returns for a batch with alpha; scalars, in nats or tokens.

    loss: `smoothed_loss` of this. loss_sum: smoothed loss (plus z-loss) summed over the micro-batch's target tokens, in
    evaluation unsmoothed. The others are detached sums over the same tokens, float64; nll is unsmoothed.
    """

    loss: Tensor | None = None
    loss_sum: Tensor | None = None
    nll: Tensor | None = None
    smoothing: Tensor | None = None
    top1: Tensor | None = None
    target_tokens: Tensor | None = None


def smoothed_loss(
    outputs: SmoothedOutput, labels: Tensor | None = None, num_items_in_batch: Tensor | int | None = None
) -> Tensor:
    """Give the loss per target token, in nats: the `compute_loss_func` of transformers' Trainer.

    num_items_in_batch: the target tokens of the whole optimizer step, over all ranks and micro-batches, which Trainer
    counts; None divides by the micro-batch's own. labels are not used, as `outputs` has seen them. Raises TypeError for
    outputs of a model that is not `smoothed`, or of a batch without alpha.
    """
    if not isinstance(outputs, SmoothedOutput):
        raise TypeError(
            "smoothed_loss needs smoothed(model) and batches of SmoothedCollator: these outputs have no smoothed loss"
        )
    count = outputs.target_tokens if num_items_in_batch is None else num_items_in_batch
    # A batch whose every label is masked has a loss of 0, not of 0/0.
    return outputs.loss_sum / torch.as_tensor(count).to(outputs.loss_sum).clamp(min=1)


def smoothed(model: nn.Module, z_loss: float = 0.0) -> nn.Module:
    """Change the forward of a transformers causal LM in place, also inside a PeftModel; return the model.

    A batch with `alpha` ([rows, length] in [0, 1], from SmoothedCollator; and maybe `loss_weight`, 0 or above) gives a
    SmoothedOutput, without ever making logits; any other call goes to the model's own forward. z_loss: coefficient of lse^2,
    0 or above. Under DeepSpeed ZeRO-3 the head is not gathered: use FSDP. Raises UserError for an architecture whose logits
    this loss does not know.
    """
    causal_lm: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    losses = SmoothedCausalLM(causal_lm, z_loss)
    if "flash" not in attention_implementation(causal_lm):  # which takes no float32, as weights may still be here
        check_loss(losses, causal_lm.device)
    plain = causal_lm.forward

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        alpha, weight, targets = (kwargs.pop(name, None) for name in (col.ALPHA, col.LOSS_WEIGHT, TARGETS))
        labels = kwargs.get("labels", targets)
        if alpha is None or labels is None:
            return plain(*args, **kwargs)
        losses.training = self.training
        return _forward(
            losses, alpha if self.training else torch.zeros_like(alpha), weight, *args, **kwargs | {"labels": labels}
        )

    forward.__signature__ = _with_alpha(inspect.signature(plain))  # type: ignore[attr-defined]
    causal_lm.forward = MethodType(forward, causal_lm)
    return model


def _with_alpha(signature: inspect.Signature) -> inspect.Signature:
    """Add self, alpha and loss_weight: Trainer reads from a method's signature which columns of the rows the model takes."""
    parameters = [inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY), *signature.parameters.values()]
    at = len(parameters) - (parameters[-1].kind == inspect.Parameter.VAR_KEYWORD)
    own = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in (col.ALPHA, col.LOSS_WEIGHT)]
    parameters[at:at] = own
    return signature.replace(parameters=parameters)


def _forward(
    losses: SmoothedCausalLM,
    alpha: Tensor,
    weight: Tensor | None,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    *,
    labels: Tensor,
    num_items_in_batch: Tensor | int | None = None,
    **_: Any,
) -> SmoothedOutput:
    if position_ids is None:
        position_ids = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
    no_bin = torch.full_like(input_ids, NO_BIN)
    sums = losses(Batch(input_ids, position_ids, attention_mask, labels, alpha, no_bin, weight))
    values = dict(zip(SUMS, sums.by_bin.sum(0), strict=True))
    output = SmoothedOutput(None, sums.loss, *(values[name] for name in ("nll", "smoothing", "top1", "target_tokens")))
    output.loss = smoothed_loss(output, labels, num_items_in_batch)
    return output
