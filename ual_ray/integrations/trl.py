"""TRL's SFTTrainer with the smoothed loss: the same arguments, and rows with TRL's columns plus `alpha`.

SFTTrainer accepts a loss function, but then runs a second forward pass for its metrics in every step, and drops extra columns
in packing and padding-free batches; this subclass follows TRL's advice and overrides `compute_loss`.
"""

from typing import Any

from torch import Tensor, nn
from trl import SFTTrainer

from ual_ray.errors import UserError
from ual_ray.integrations.compat_trl import AlphaColumnSFTTrainer
from ual_ray.integrations.forward import SmoothedCollator, smoothed

# Sums of the output, and the names under which their means per target token are logged.
LOGGED = {"nll": "nll", "smoothing": "smoothing", "top1": "mean_token_accuracy"}


class SmoothedSFTTrainer(AlphaColumnSFTTrainer):
    """SFTTrainer whose rows (text or chat, prepared by TRL) have an alpha in [0, 1]; evaluation gives the unsmoothed NLL.

    Logs, besides the smoothed loss, nll and smoothing (nats per target token) and mean_token_accuracy in [0, 1]. On several
    ranks, rows that fill up the last batch of an evaluation may count twice, as in TRL.
    """

    def __init__(self, *args: Any, z_loss: float = 0.0, **kwargs: Any) -> None:
        """Take SFTTrainer's arguments. z_loss: coefficient of lse^2, 0 or above."""
        super().__init__(*args, **kwargs)
        if self.args.loss_type != "nll" or self.args.label_smoothing_factor:
            raise UserError(
                "SmoothedSFTTrainer has its own loss",
                got=f"loss_type={self.args.loss_type}, label_smoothing_factor={self.args.label_smoothing_factor}",
                fix="leave both out: the column 'alpha' is the label smoothing of each row",
            )
        smoothed(self.model, z_loss)
        self.model_accepts_loss_kwargs = True
        trainer: Any = self
        trainer.data_collator = SmoothedCollator(trainer.data_collator)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the smoothed loss, as transformers' Trainer takes it from a model that computes its own loss."""
        loss, outputs = super(SFTTrainer, self).compute_loss(model, inputs, True, num_items_in_batch)
        # In training, rows that fill up the last batches are trained on like others, and count.
        gather = self.accelerator.gather if self.model.training else self.accelerator.gather_for_metrics
        sums = {name: gather(outputs[name]).sum().item() for name in (*LOGGED, "target_tokens")}
        self.add_to_log({title: sums[name] for name, title in LOGGED.items()}, sums["target_tokens"])
        return (loss, outputs) if return_outputs else loss
