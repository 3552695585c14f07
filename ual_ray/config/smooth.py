"""Stage 2: from uncertainty to alpha; and what else an arm may differ in from the others."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from ual_ray.config.names import NO_SMOOTHING, BaseMapName, LossName, MapName, PriorName, UncertaintyName, WeightName
from ual_ray.config.registry import MAPS, WEIGHTS
from ual_ray.config.section import Section, Share, key
from ual_ray.config.train import TrainConfig


class SmoothConfig(Section):
    """Stage 2, one per arm: the map from uncertainty to the smoothing value alpha of every row."""

    map: MapName = key("mean_matched", affects="alphas", description=f"map from uncertainty to alpha: {', '.join(MAPS)}")
    base: BaseMapName = key(
        "mean_matched",
        affects="alphas",
        description="map whose alphas a control (shuffled, shuffled_within, per_source_constant, inverted) reassigns, or whose "
        "mean per token it gives to every row (constant)",
    )
    alpha_mean: float = key(
        0.1,
        ge=0,
        lt=1,
        affects="alphas",
        description="mean alpha per token (mean_matched), or the alpha of every row (constant of base mean_matched); like "
        "every alpha in [0, 1)",
    )
    alpha_cap: float = key(0.4, ge=0, lt=1, affects="alphas", description="maximum alpha of a row (mean_matched)")
    alpha_min: float = key(
        0.0, ge=0, lt=1, affects="alphas", description="alpha of the least uncertain row (linear, minmax, rank)"
    )
    alpha_max: float = key(
        0.2, ge=0, lt=1, affects="alphas", description="alpha of the most uncertain row (linear, minmax, rank)"
    )
    missing: Literal["impute", "default", "exclude"] = key(
        "impute",
        affects="alphas",
        description="rows without a score: impute (mean uncertainty), default (missing_alpha), or exclude",
    )
    missing_alpha: float = key(
        0.0, ge=0, lt=1, affects="alphas", description="alpha of rows without a score, for missing=default"
    )

    @model_validator(mode="after")
    def _order_alphas(self) -> SmoothConfig:
        if self.alpha_min > self.alpha_max:
            raise ValueError(f"alpha_min ({self.alpha_min}) must not be above alpha_max ({self.alpha_max})")
        if self.alpha_mean > self.alpha_cap:
            raise ValueError(f"alpha_mean ({self.alpha_mean}) must not be above alpha_cap ({self.alpha_cap})")
        return self


# What the maps read; a control reads what its base reads.
READS = {
    NO_SMOOTHING: (),
    "mean_matched": ("alpha_mean", "alpha_cap"),
    **dict.fromkeys(("linear", "minmax", "rank"), ("alpha_min", "alpha_max")),
}
CONTROLS = ("constant", "per_source_constant", "shuffled", "shuffled_within", "inverted")


class ArmConfig(SmoothConfig):
    """An arm; the keys that are named as keys of `train` replace these for the arm where they are not null."""

    uncertainty: UncertaintyName | None = key(
        None, affects="alphas", description="estimator whose uncertainty the arm reads; null = that of elicit.uncertainty"
    )
    weight: WeightName = key(
        "none", affects="alphas", description=f"weight of a row in the loss, from its uncertainty: {', '.join(WEIGHTS)}"
    )
    filter_share: Share = key(
        0.2, gt=0, lt=1, affects="alphas", description="share of the most uncertain rows to leave out (weight: filter)"
    )
    # Recorded with the alphas: it decides whether the arm is a control.
    loss: LossName | None = key(None, affects="alphas", description="train.loss of this arm; null = train.loss")
    loss_strength: float | None = key(
        None, gt=0, affects="", description="train.loss_strength of this arm; null = train.loss_strength"
    )
    prior: PriorName | None = key(None, affects="", description="train.prior of this arm; null = train.prior")
    prior_file: str | None = key(
        None, affects="", names="file", description="train.prior_file of this arm; null = train.prior_file"
    )
    learning_rate: float | None = key(
        None, gt=0, affects="", description="train.learning_rate of this arm; null = train.learning_rate"
    )
    epochs: int | None = key(None, ge=1, affects="", description="train.epochs of this arm; null = train.epochs")

    def never_smooths(self) -> str | None:
        """Name the setting that keeps every alpha at 0; None where a row may get another one, as by maps of other packages."""
        if self.map == NO_SMOOTHING:
            return f"map={NO_SMOOTHING}"
        largest = next((name for name in ("alpha_mean", "alpha_max") if name in (self._alphas() or ())), None)
        if largest is None or getattr(self, largest) or (self.missing == "default" and self.missing_alpha):
            return None
        return f"{largest}=0"

    def unread(self) -> list[str]:
        """List KEY=VALUE of what is set to another value than its default and does nothing; none for maps of other packages."""
        if (alphas := self._alphas()) is None:
            return []
        # One alpha for all rows needs no scores, but to tell the rows that have none.
        default = self.missing == "default" and self.map != NO_SMOOTHING
        alike = self.map == NO_SMOOTHING or (self.map == "constant" and self.base == "mean_matched")
        read = {
            **dict.fromkeys(("alpha_mean", "alpha_cap", "alpha_min", "alpha_max"), False),
            **dict.fromkeys(alphas, True),
            "base": self.map in CONTROLS,
            "filter_share": self.weight == "filter",
            "missing_alpha": default,
            "uncertainty": not alike or default or self.weight != "none" or self.missing == "exclude",
        }
        fields = type(self).model_fields
        found = {name: getattr(self, name) for name, used in read.items() if not used}
        return [f"{name}={value}" for name, value in found.items() if value != fields[name].default]

    def _alphas(self) -> tuple[str, ...] | None:
        return READS.get(self.base if self.map in CONTROLS else self.map)

    def training(self, train: TrainConfig) -> TrainConfig:
        """Return the training settings of this arm. Raises pydantic's error where they do not go together."""
        own = {name: value for name in TrainConfig.model_fields if (value := getattr(self, name, None)) is not None}
        # What belongs to the loss or the prior of the others does not come with another one.
        own |= {"loss_strength": self.loss_strength} if self.loss not in (None, train.loss) else {}
        own |= {"prior_file": self.prior_file} if self.prior not in (None, train.prior) else {}
        return TrainConfig.model_validate(train.model_dump() | own) if own else train
