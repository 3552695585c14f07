"""The output layer of a causal LM: from hidden states after the final norm to logits, as its architecture computes them."""

from typing import Any

import torch
from torch import Tensor, nn

from ual_ray.errors import UserError

# Loose enough for bfloat16 logits (3 digits); a missing scale or soft-cap differs by more.
TOLERANCE = 5e-3


class OutputHead:
    """logits = cap(scale * (hidden @ weight.T + bias)), with cap(z) = softcap * tanh(z / softcap) where there is a soft-cap.

    size: entries of the vocabulary; rows of weight and bias beyond it are padding. The layer is looked up at every use, as
    sharding and adapters replace what is in it.
    """

    def __init__(self, causal_lm: Any) -> None:
        """Take a transformers causal LM, with its head tied to the embedding or not."""
        self._causal_lm = causal_lm
        config = causal_lm.config.get_text_config()
        self.size = int(config.vocab_size)
        self.softcap: float | None = getattr(config, "final_logit_softcapping", None)
        # Cohere multiplies its logits, Granite divides them.
        self.scale: float = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1)

    @property
    def weight(self) -> Tensor:
        """Weight of the layer, [rows, H], padding included."""
        return self._causal_lm.get_output_embeddings().weight

    @property
    def bias(self) -> Tensor | None:
        """Bias to add to the product of `scaled` hidden states and `weight`, [rows]; None without one."""
        bias = getattr(self._causal_lm.get_output_embeddings(), "bias", None)
        return bias if bias is None or self.scale == 1 else bias * self.scale

    def scaled(self, hidden: Tensor) -> Tensor:
        """Scale hidden states, so that their product with `weight` is scaled as the logits are."""
        return hidden if self.scale == 1 else hidden * self.scale

    @torch.no_grad()
    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits of hidden states [n, H], without gradients, on the layer's device, as float32 of [n, size]."""
        weight, bias = self.weight[: self.size], self.bias
        inputs = self.scaled(hidden.to(weight.device, weight.dtype))
        logits = nn.functional.linear(inputs, weight, None if bias is None else bias[: self.size]).float()
        return torch.tanh(logits / self.softcap) * self.softcap if self.softcap else logits

    def check(self, nll: Tensor, logits: Tensor, labels: Tensor, what: str, fix: str) -> None:
        """Raise UserError(what, fix) unless the NLL from hidden states is that of the model's own logits.

        nll: scalar, in nats, summed over labels [n]. logits: [n, rows], what the model itself returns.
        """
        own = logits[:, : self.size].float()
        expected = nn.functional.cross_entropy(own, labels.to(own.device), reduction="sum").to(nll.device)
        if not torch.isclose(nll.float(), expected, rtol=TOLERANCE):
            raise UserError(
                what, got=f"NLL {nll:.4f} computed from the hidden states, {expected:.4f} from the model's own logits", fix=fix
            )
