"""TRL's SFTTrainer with the smoothed loss: the same arguments, and rows with an `alpha` column beside TRL's own.

SFTTrainer takes a loss function too, but then runs a second forward pass for its metrics in every step, and neither its
packing nor its padding-free batches let a column through; this subclass does as TRL advises and overrides `compute_loss`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from trl import SFTTrainer, pack_dataset

from ual_ray import columns as col
from ual_ray.integrations.collator import SmoothedCollator
from ual_ray.integrations.forward import SmoothedOutput, smoothed

PACKED = ["input_ids", "labels", col.ALPHA]


class SmoothedSFTTrainer(SFTTrainer):
    """SFTTrainer whose rows (text or chat, prepared by TRL) have an alpha in [0, 1]; evaluation gives the unsmoothed NLL.

    Logs, beside the smoothed loss, nll and smoothing (nats per target token) and mean_token_accuracy in [0, 1].
    """

    def __init__(self, *args: Any, z_loss: float = 0.0, **kwargs: Any) -> None:
        """Take SFTTrainer's arguments. z_loss: coefficient of lse^2, 0 or above."""
        super().__init__(*args, **kwargs)
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
        """Give the smoothed loss as transformers' Trainer takes it from a model that makes its own."""
        loss, outputs = super(SFTTrainer, self).compute_loss(model, inputs, True, num_items_in_batch)
        self._log_sums(outputs)
        return (loss, outputs) if return_outputs else loss

    def _log_sums(self, outputs: SmoothedOutput) -> None:
        names = {"nll": "nll", "smoothing": "smoothing", "top1": "mean_token_accuracy"}
        sums = {name: self.accelerator.gather_for_metrics(outputs[name]).sum().item() for name in (*names, "target_tokens")}
        metrics = self._metrics["train" if self.model.training else "eval"]
        for name, title in names.items():
            metrics[title].append(sums[name] / max(1, sums["target_tokens"]))

    def _prepare_dataset(
        self, dataset: Any, processing_class: Any, args: Any, packing: bool, formatting_func: Any, dataset_name: str
    ) -> Any:
        dataset = super()._prepare_dataset(dataset, processing_class, args, False, formatting_func, dataset_name)
        if not packing:
            return dataset
        spread = dataset.map(_spread, desc=f"Spreading alpha over {dataset_name} dataset")
        packed = pack_dataset(spread.select_columns(PACKED), args.max_length, args.packing_strategy)
        return packed.shuffle(seed=args.seed) if args.shuffle_dataset else packed

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        self._signature_columns = list(dict.fromkeys([*self._signature_columns, col.ALPHA]))


def _spread(row: dict[str, Any]) -> dict[str, Any]:
    return {col.ALPHA: [row[col.ALPHA]] * len(row["input_ids"])}
