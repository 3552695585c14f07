"""The model as it is trained: a transformers causal LM whose forward gives the smoothed loss, sharded by FSDP2."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from ual_ray.config import TrainConfig
from ual_ray.errors import UserError
from ual_ray.train.batches import Batch, Sample, collate
from ual_ray.train.loss import smoothed_linear_cross_entropy_with_metrics

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class ForwardSums(NamedTuple):
    """Sums over the target tokens of a micro-batch; only `loss` carries gradients. All scalars, in nats or tokens."""

    loss: torch.Tensor
    nll: torch.Tensor
    smoothing: torch.Tensor
    top1: torch.Tensor
    alpha: torch.Tensor
    target_tokens: torch.Tensor


class SmoothedCausalLM(nn.Module):
    """Body, head and loss in one module, so that FSDP gathers the head once per micro-batch and no logits are kept."""

    def __init__(self, model: nn.Module, z_loss: float = 0.0) -> None:
        """Wrap a transformers causal LM."""
        super().__init__()
        self.model = model
        self._z_loss = z_loss
        config: Any = model.config
        text: Any = config.get_text_config() if hasattr(config, "get_text_config") else config
        self._vocab_size = int(text.vocab_size)
        self._softcap = getattr(text, "final_logit_softcapping", None)
        # Cohere multiplies its logits, Granite divides them.
        self._logit_scale = getattr(text, "logit_scale", None) or 1 / (getattr(text, "logits_scaling", None) or 1)

    def forward(self, batch: Batch) -> ForwardSums:
        """Sum the loss over the batch's target tokens: position t predicts token t + 1 with the alpha of that token."""
        causal_lm: Any = self.model
        body = causal_lm.get_decoder()
        head = causal_lm.get_output_embeddings()
        hidden = body(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).last_hidden_state
        hidden = hidden if self._logit_scale == 1 else hidden * self._logit_scale
        labels = batch.labels[:, 1:].flatten()
        alpha = batch.alpha[:, 1:].flatten()
        loss, metrics = smoothed_linear_cross_entropy_with_metrics(
            hidden[:, :-1].flatten(0, 1),
            head.weight,
            labels,
            alpha,
            bias=getattr(head, "bias", None),
            vocab_size=self._vocab_size,
            softcap=self._softcap,
            z_loss=self._z_loss,
        )
        sums = (metrics.nll.sum(), metrics.smoothing.sum(), metrics.top1.sum(), alpha[metrics.target].sum())
        return ForwardSums(loss, *sums, metrics.target.sum())


@torch.no_grad()
def check_loss(model: SmoothedCausalLM) -> None:
    """Raise UserError when the loss from the hidden states is not that of the model's own logits.

    Some architectures do more to their logits than `forward` knows; training them would be silently wrong.
    """
    ids = list(range(1, 9))
    sums = model.eval()(collate([Sample("check", ids, ids, 0.0)]))
    logits = model.model(torch.tensor([ids])).logits[0, :-1].float()
    expected = nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="sum")
    if not torch.isclose(sums.loss, expected, rtol=1e-3):
        raise UserError(
            f"models of the kind {type(model.model).__name__} cannot be trained yet",
            value=f"NLL {sums.loss:.4f} from the hidden states, {expected:.4f} from the model's logits",
            fix="the model changes its logits in a way that ual_ray.train.model does not know",
        )


def load_causal_lm(path: str, trust_remote_code: bool = False) -> nn.Module:
    """Load float32 weights, from safetensors only."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, use_safetensors=True, trust_remote_code=trust_remote_code
    )


def shard(model: SmoothedCausalLM, mesh: DeviceMesh, config: TrainConfig) -> SmoothedCausalLM:
    """Shard every decoder layer, then the rest, over the mesh. Weights stay float32; arithmetic is `config.dtype`."""
    precision = MixedPrecisionPolicy(param_dtype=DTYPES[config.dtype], reduce_dtype=torch.float32)
    causal_lm: Any = model.model
    for layer in causal_lm.get_decoder().layers:
        fully_shard(layer, mesh=mesh, mp_policy=precision, reshard_after_forward=config.reshard_after_forward)
    # The root's inputs are token ids and alpha: cast to bfloat16, an alpha of 0.1 would be another number.
    uncast = replace(precision, cast_forward_inputs=False)
    fully_shard(model, mesh=mesh, mp_policy=uncast)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # The loss is already divided by the step's global number of target tokens: FSDP has to add, not to average.
            module.set_gradient_divide_factor(1.0)
            # Gloo knows only the plain sum.
            module.set_force_sum_reduction_for_comms(True)
    return model
