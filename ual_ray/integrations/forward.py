"""A transformers causal LM whose own forward gives the smoothed loss: inside it weights are gathered and autocast is on.

Trainers call a loss function after forward, where neither may be so (FSDP, accelerate's mixed precision), and with logits
of [rows, length, vocabulary] in hand. So the loss is made in forward, from the hidden states, and the function only divides.
A collator that pads, flattens or packs rows expands one alpha, and one weight, per row to one per token.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from ual_ray import columns as col
from ual_ray.errors import UserError
from ual_ray.models.chat import IGNORE_INDEX
from ual_ray.models.compat_transformers import attention_implementation
from ual_ray.train.batches import Batch
from ual_ray.train.model import SUMS, SmoothedCausalLM, check_loss
from ual_ray.train.token_store import NO_BIN

# The labels under a second name: a Trainer with a loss function keeps `labels` from the model.
TARGETS = "targets"
Row = Mapping[str, Any]
OWN = (col.ALPHA, col.LOSS_WEIGHT)
NEUTRAL = {col.ALPHA: "0 = no smoothing", col.LOSS_WEIGHT: "1 = as the others"}
# Arguments of a model's forward that this one reads, or that change no loss.
READ = ("input_ids", "attention_mask", "position_ids", "labels", "token_type_ids", "cache_position", "logits_to_keep")
SWITCHES = ("use_cache", "return_dict", "output_attentions", "output_hidden_states", "output_router_logits")


@dataclass
class SmoothedOutput(ModelOutput):
    """What forward returns for a batch with alpha; scalars, in nats or tokens.

    loss: `smoothed_loss` of this. loss_sum: smoothed loss (plus z-loss) summed over the micro-batch's target tokens, in
    evaluation the NLL alone. The others are detached sums over the same tokens, float64; nll is unsmoothed.
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
    _check_supported(causal_lm)
    mixes_packs = False
    if "flash" not in attention_implementation(causal_lm):  # which takes no float32, as weights may still be here
        check_loss(losses, causal_lm.device)
        mixes_packs = not _separates_packs(losses, causal_lm.device)
    # The loss is divided by the target tokens of the whole step, whatever the model's own does.
    causal_lm.accepts_loss_kwargs = True
    plain = causal_lm.forward
    unread = {*inspect.signature(plain).parameters} - {*READ, *SWITCHES}

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        alpha, weight, targets = (kwargs.pop(name, None) for name in (col.ALPHA, col.LOSS_WEIGHT, TARGETS))
        labels = kwargs.get("labels", targets)
        if alpha is None or labels is None:
            return plain(*args, **kwargs)
        _check_batch(causal_lm, {name for name in unread if kwargs.get(name) is not None}, mixes_packs, kwargs)
        losses.training, losses.z_loss = self.training, z_loss if self.training else 0.0
        return _forward(
            losses, alpha if self.training else torch.zeros_like(alpha), weight, *args, **kwargs | {"labels": labels}
        )

    forward.__signature__ = _with_alpha(inspect.signature(plain))  # type: ignore[attr-defined]
    causal_lm.forward = MethodType(forward, causal_lm)
    # Of the model that is called: peft calls the forward of what it wraps, without hooks.
    model.register_forward_hook(_check_output, with_kwargs=True)
    return model


def _check_output(model: nn.Module, _: Any, batch: Mapping[str, Any], output: Any) -> None:
    """Raise UserError where something has replaced the forward since, as trainers do for other kernels.

    Without gradients the output is for metrics alone, as in TRL's trainer with a loss function.
    """
    trains = torch.is_grad_enabled() and any(batch.get(name) is not None for name in ("labels", TARGETS))
    if trains and batch.get(col.ALPHA) is not None and not isinstance(output, SmoothedOutput):
        raise UserError(
            "the model's forward was replaced after smoothed(model): its loss would not be smoothed",
            got=f"{type(output).__name__} for a batch with alpha",
            fix="leave out what replaces it, such as use_liger_kernel=True with its fused loss, or do it before",
        )


def _check_supported(causal_lm: Any) -> None:
    """Raise UserError for what the model's own forward adds to its loss or logits, and this one would leave out."""
    if getattr(causal_lm.config.get_text_config(), "output_router_logits", False):
        raise UserError(
            "the smoothed loss has no auxiliary loss for the balance of experts",
            got=f"output_router_logits=True in the configuration of {type(causal_lm).__name__}",
            fix="set router_aux_loss_coef=0.0 in SFTConfig, or model.config.output_router_logits=False",
        )
    if hasattr(causal_lm.get_output_embeddings(), "base_layer"):
        raise UserError(
            "an adapter on the output layer would not be trained",
            got="an adapter in the place of the output layer, whose own weight the loss is computed from",
            fix="leave the output layer out of target_modules; modules_to_save trains it whole",
        )


def _separates_packs(losses: SmoothedCausalLM, device: torch.device) -> bool:
    """Tell whether the samples of a pack do not reach each other, if need be by masks instead of positions."""
    for way in (lambda: None, losses.with_masks):
        way()
        try:
            check_loss(losses, device, packing=True)
        except UserError:
            continue
        return True
    return False


def _check_batch(causal_lm: Any, unread: set[str], mixes_packs: bool, batch: Mapping[str, Any]) -> None:
    """Raise UserError for a batch with inputs that would be left out, and for a pack whose samples would see each other."""
    _check_supported(causal_lm)
    if unread:
        raise UserError(
            "the smoothed loss would be computed without some of the model's inputs",
            got=", ".join(sorted(unread)),
            expected="token ids, their mask and positions",
            fix="leave the others out, or train with the model's own loss",
        )
    positions = batch.get("position_ids")
    if mixes_packs and batch.get("attention_mask") is None and positions is not None and (positions.diff(dim=1) != 1).any():
        raise UserError(
            f"{type(causal_lm).__name__} cannot be trained on packed or padding-free batches",
            got="layers in which the samples of a pack reach each other",
            fix="set packing=False and padding_free=False, or use a collator that pads",
        )


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
        real = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        position_ids = (real.cumsum(1) - 1).clamp(min=0)  # padding on the left has no positions
    no_bin = torch.full_like(input_ids, NO_BIN)
    sums = losses(Batch(input_ids, position_ids, attention_mask, labels, alpha, no_bin, weight))
    values = dict(zip(SUMS, sums.by_bin.sum(0), strict=True))
    output = SmoothedOutput(None, sums.loss, *(values[name] for name in ("nll", "smoothing", "top1", "target_tokens")))
    output.loss = smoothed_loss(output, labels, num_items_in_batch)
    return output


class SmoothedCollator:
    """Wraps a collator of causal-LM rows, such as DataCollatorForSeq2Seq, DataCollatorWithFlattening or TRL's own.

    Rows have input_ids, labels and alpha: one number for the row, or one per token, as a pack of several rows needs; and,
    alike, a loss_weight where rows count differently.
    """

    def __init__(self, collator: Callable[[list[dict[str, Any]]], dict[str, Any]]) -> None:
        """Wrap a collator that returns input_ids and labels of [rows, length]."""
        self._collator = collator

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Collate; add alpha, and loss_weight if rows have it, [rows, length] float32, and the labels under a second name.

        The label of a sample's first token is masked, as no token predicts it, nor padding on its left, so that Trainer counts
        targets correctly.
        Raises UserError for rows without alpha, ValueError for an alpha whose length differs from its row's.
        """
        alphas = [_per_token(row, col.ALPHA) for row in rows]
        weights = [_per_token(row, col.LOSS_WEIGHT) for row in rows] if any(col.LOSS_WEIGHT in row for row in rows) else []
        plain = [{name: value for name, value in row.items() if name not in OWN} for row in rows]
        batch = dict(self._collator(plain))
        if "attention_mask" not in batch and len(rows) > 1 == len(batch["input_ids"]):
            # Only positions keep flattened rows apart; collators may leave that to lengths for one kernel.
            batch.setdefault("position_ids", torch.cat([torch.arange(len(row["input_ids"])) for row in rows])[None])
        labels = batch["labels"].clone()
        labels[:, 0] = IGNORE_INDEX
        if "attention_mask" in batch:
            labels[:, 1:][batch["attention_mask"][:, :-1] == 0] = IGNORE_INDEX
        if "position_ids" in batch:
            labels[batch["position_ids"] == 0] = IGNORE_INDEX
        batch[col.ALPHA] = _placed(torch.cat(alphas), batch)
        if weights:
            batch[col.LOSS_WEIGHT] = _placed(torch.cat(weights), batch)
        return batch | {"labels": labels, TARGETS: labels}


def _per_token(row: Row, name: str) -> Tensor:
    given = row.get(name)
    if given is None or (isinstance(given, list) and None in given):
        raise UserError(
            f"a row has no {'smoothing value' if name == col.ALPHA else 'weight, and others have one'}",
            got=f"columns {sorted(row)}",
            expected=f"a column '{name}': a number per row, or a list of one per token",
            fix=f"add the column ({NEUTRAL[name]}); where the trainer has taken it out, set remove_unused_columns=False",
        )
    values, length = torch.as_tensor(given, dtype=torch.float32), len(row["input_ids"])
    if values.ndim == 1 and len(values) != length:
        raise ValueError(f"{name} has {len(values)} values for a row of {length} tokens; expected {length}, or one number")
    return values.expand(length)


def _placed(values: Tensor, batch: Mapping[str, Any]) -> Tensor:
    """Put the tokens' values, in the order of the rows, where the collator has put the tokens."""
    shape, mask = batch["input_ids"].shape, batch.get("attention_mask")
    # Without a mask the rows are concatenated, followed by padding.
    real = (torch.arange(shape.numel()) < len(values)).view(shape) if mask is None else mask.bool()
    if real.sum() != len(values) or (mask is None and shape[0] > 1 and shape.numel() != len(values)):
        raise ValueError(f"the collator made {int(real.sum())} tokens of {len(values)}: their values cannot be told apart")
    placed = torch.zeros(shape)
    placed[real] = values
    return placed
