"""Parts of TRL's SFTTrainer that it does not document: preparing a data set, the columns it keeps, and its metrics.

When tests/unit/integrations/test_compat_trl.py or tests/integration/test_trl.py fail with another TRL: read `_prepare_dataset`,
`_set_signature_columns_if_needed`, `compute_loss` and `log` of `SFTTrainer` (trl/trainer/sft_trainer.py) of that version,
adapt this file, and move the bounds of trl in pyproject.toml.
"""

from typing import Any

from trl import SFTTrainer, pack_dataset

from ual_ray import columns as col

SPREAD = (col.ALPHA, col.LOSS_WEIGHT)
PACKED = ("input_ids", "labels", *SPREAD)


class AlphaColumnSFTTrainer(SFTTrainer):
    """SFTTrainer that keeps `alpha` and `loss_weight` of its rows, also through packing, and takes averages to log."""

    def log_averages(self, averages: dict[str, float]) -> None:
        """Log values of this step under the names given; TRL logs the mean of those since it logged last."""
        metrics = self._metrics["train" if self.model.training else "eval"]
        for name, value in averages.items():
            metrics[name].append(value)

    def _prepare_dataset(
        self, dataset: Any, processing_class: Any, args: Any, packing: bool, formatting_func: Any, dataset_name: str
    ) -> Any:
        dataset = super()._prepare_dataset(dataset, processing_class, args, False, formatting_func, dataset_name)
        if not packing:
            return dataset
        spread = dataset.map(_spread, desc=f"Spreading alpha and weight over {dataset_name} dataset")
        columns = [name for name in PACKED if name in spread.column_names]
        packed = pack_dataset(spread.select_columns(columns), args.max_length, args.packing_strategy)
        return packed.shuffle(seed=args.seed) if args.shuffle_dataset else packed

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        self._signature_columns = list(dict.fromkeys([*self._signature_columns, *SPREAD]))


def _spread(row: dict[str, Any]) -> dict[str, Any]:
    return {name: [row[name]] * len(row["input_ids"]) for name in SPREAD if name in row}
