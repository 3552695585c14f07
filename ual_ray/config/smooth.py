"""Stage 2: from uncertainty to alpha."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from ual_ray.config.names import BaseMapName, MapName
from ual_ray.config.registry import MAPS
from ual_ray.config.section import Section, key


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
