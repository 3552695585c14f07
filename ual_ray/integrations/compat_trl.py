"""Parts of TRL's SFTTrainer that it does not document: preparing a data set, the columns it keeps, and its metrics.

When tests/unit/integrations/test_compat_trl.py or tests/integration/test_trl.py fail with another TRL: read `_prepare_dataset`,
`_set_signature_columns_if_needed`, `compute_loss` and `log` of `SFTTrainer` (trl/trainer/sft_trainer.py) of that version,
adapt this file, and move the bounds of trl in pyproject.toml.
"""

from collections import defaultdict
from copy import copy
from typing import Any

from datasets import Dataset
from trl import SFTTrainer, pack_dataset

from ual_ray import columns as col
from ual_ray.errors import UserError

SPREAD = (col.ALPHA, col.LOSS_WEIGHT)
PACKED = ("input_ids", "labels", *SPREAD)
TOKENS = "target_tokens"


class AlphaColumnSFTTrainer(SFTTrainer):
    """SFTTrainer that keeps `alpha` and `loss_weight` of its rows, also through packing, and logs means over tokens."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._sums: dict[str, defaultdict[str, float]] = {mode: defaultdict(float) for mode in ("train", "eval")}

    def add_to_log(self, sums: dict[str, float], tokens: float) -> None:
        """Add sums over so many tokens; their means since it logged last are logged under the names given."""
        own = self._sums["train" if self.model.training else "eval"]
        for name, value in {**sums, TOKENS: tokens}.items():
            own[name] += value

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log what TRL does, and the means. TRL would average the means of micro-batches, whatever their tokens."""
        mode = "train" if self.model.training else "eval"
        tokens = max(1.0, self._sums[mode].pop(TOKENS, 0.0))
        for name, value in self._sums[mode].items():
            self._metrics[mode][name] = [value / tokens]
        self._sums[mode].clear()
        super().log(logs, start_time)

    def _prepare_dataset(
        self, dataset: Any, processing_class: Any, args: Any, packing: bool, formatting_func: Any, dataset_name: str
    ) -> Any:
        first = next(iter(dataset))
        # Messages of a whole data set have the same keys; those of a stream need not.
        streamed = not isinstance(dataset, Dataset)
        if any(streamed or "extra" in message for message in first.get("messages") or () if isinstance(message, dict)):
            dataset = dataset.map(_check_messages)
        prepare, rest = super()._prepare_dataset, (formatting_func, dataset_name)
        if not packing or args.max_length is None:
            return prepare(dataset, processing_class, args, packing, *rest)
        # Rows are cut by packing, which may go on with the rest of one in the next pack.
        whole = copy(args)
        whole.max_length = None
        spread = prepare(dataset, processing_class, whole, False, *rest).map(_spread)
        columns = [name for name in PACKED if name in next(iter(spread))]
        packed = pack_dataset(spread.select_columns(columns), args.max_length, args.packing_strategy)
        return packed.shuffle(seed=args.seed) if args.shuffle_dataset else packed

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        self._signature_columns = list(dict.fromkeys([*self._signature_columns, *SPREAD]))


def _check_messages(row: dict[str, Any]) -> dict[str, Any]:
    """Raise UserError for what rows of `ual smooth` hold of a message besides its text, which TRL does not read."""
    given = {key for message in row["messages"] if isinstance(message.get("extra"), str) for key in col.extra_of(message)}
    if left_out := sorted(given - {col.REFERENCE}):
        raise UserError(
            "TRL would train messages without parts of them",
            got=f"{', '.join(left_out)} in the column 'extra' of messages",
            fix="use `ual train`, which hands them to the chat template, or leave these rows out",
        )
    return {}


def _spread(row: dict[str, Any]) -> dict[str, Any]:
    length = len(row["input_ids"])
    return {name: row[name] if isinstance(row[name], list) else [row[name]] * length for name in SPREAD if name in row}
