"""The maps from uncertainty to alpha, and the controls that tell "uncertainty helps" from "smoothing helps".

Pure: no Ray, no vLLM, no MLflow, no language model. Uncertainty is in [0, 1], higher = more uncertain, NaN = missing; alpha is
the smoothing mass in [0, 1). A map is a function of the uncertainty, its section `arms.<arm>` and the seed, and returns an
alpha per row. The base maps are increasing, as in UAL (arXiv 2406.04854, where the map is linear); their formulas' constants
are this project's choice and are recorded with every run. config/registry.py lists them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from ual_ray.config import SmoothConfig
from ual_ray.config.load import explain
from ual_ray.config.registry import BASE_MAPS, MAPS
from ual_ray.errors import UserError

Array = NDArray[np.float64]


@dataclass(frozen=True)
class WithoutScores:
    """Decorator of a map that reads no uncertainty: it is also called for rows without a score, with NaN."""

    alphas: Callable[[Array, SmoothConfig, int], Array]

    def __call__(self, uncertainty: Array, spec: SmoothConfig, seed: int) -> Array:
        """Return the alphas."""
        return self.alphas(uncertainty, spec, seed)


def assign_alpha(uncertainty: Sequence[float] | Array, spec: SmoothConfig | Mapping[str, Any] | str, seed: int = 0) -> Array:
    """Give every row its alpha.

    uncertainty: [n], in [0, 1], higher = more uncertain, NaN = missing. spec: the section `arms.<arm>`, also as a mapping or
    as the map's name. seed: of the control `shuffled`. Returns alpha: [n], in [0, 1); NaN = excluded from training.
    Raises UserError for values outside [0, 1], an unknown spec, or a mean that cannot be reached.
    """
    spec = _as_spec(spec)
    values = np.asarray(uncertainty, dtype=np.float64)
    if values.ndim != 1:
        raise UserError("uncertainty must be one-dimensional", got=f"shape {values.shape}")
    missing = np.isnan(values)
    if ((values[~missing] < 0) | (values[~missing] > 1)).any():
        raise UserError("uncertainty is outside [0, 1]", got=values[~missing].tolist()[:5], expected="[0, 1], NaN = missing")
    alphas = MAPS[spec.map]
    if isinstance(alphas, WithoutScores):
        # Excluded here too, so that every arm trains on the same rows.
        return np.where(missing & (spec.missing == "exclude"), np.nan, alphas(values, spec, seed))
    if len(values) and missing.all():
        raise UserError("no row has an uncertainty", got=f"{len(values)} rows", fix="elicit again, or use map: constant")
    if spec.missing == "impute" and missing.any():
        values, missing = np.where(missing, values[~missing].mean(), values), np.zeros_like(missing)
    alpha = np.full_like(values, np.nan if spec.missing == "exclude" else spec.missing_alpha)
    if not missing.all():
        alpha[~missing] = alphas(values[~missing], spec, seed)
    return alpha


def linear(uncertainty: Array, spec: SmoothConfig, seed: int) -> Array:
    """Alpha = alpha_min + (alpha_max - alpha_min) U."""
    return _between(uncertainty, spec)


def minmax(uncertainty: Array, spec: SmoothConfig, seed: int) -> Array:
    """Stretch the data set's U to [0, 1], then as `linear`; equal U everywhere gives the middle."""
    span = np.ptp(uncertainty)
    return _between((uncertainty - uncertainty.min()) / span if span > 0 else np.full_like(uncertainty, 0.5), spec)


def rank(uncertainty: Array, spec: SmoothConfig, seed: int) -> Array:
    """As `linear` of the rank of U, in [0, 1]; ties share the mean of their ranks."""
    _, inverse, counts = np.unique(uncertainty, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(counts) - (counts + 1) / 2
    top = len(uncertainty) - 1
    return _between(mean_rank[inverse] / top if top > 0 else np.full_like(uncertainty, 0.5), spec)


def mean_matched(uncertainty: Array, spec: SmoothConfig, seed: int) -> Array:
    """Alpha = min(s U, alpha_cap), with the one scale s at which the mean is alpha_mean: fair against constant smoothing.

    Raises UserError when the mean stays below alpha_mean even with every uncertain row at alpha_cap.
    """
    mean, cap = spec.alpha_mean, spec.alpha_cap
    reachable = cap * float((uncertainty > 0).mean())
    if mean > reachable + 1e-12:
        raise UserError(
            "mean_matched cannot reach alpha_mean: too few rows have an uncertainty above 0",
            got=f"alpha_mean {mean}, reachable {reachable:.4f}",
            fix="lower alpha_mean, raise alpha_cap, or use map: rank",
        )
    # The rows clipped at the right scale are the k most uncertain ones: take the smallest k that is consistent.
    ordered = np.sort(uncertainty)[::-1]
    remaining = np.concatenate([np.cumsum(ordered[::-1])[::-1], [0.0]])
    for clipped in range(len(ordered)):
        if remaining[clipped] <= 0:
            break
        scale = (mean * len(ordered) - cap * clipped) / remaining[clipped]
        if scale * ordered[clipped] <= cap:
            return np.minimum(scale * uncertainty, cap)
    return np.where(uncertainty > 0, cap, 0.0)


@WithoutScores
def none(uncertainty: Array, spec: SmoothConfig, seed: int) -> Array:
    """Alpha = 0: training without smoothing."""
    return np.zeros_like(uncertainty)


@WithoutScores
def constant(uncertainty: Array, spec: SmoothConfig, seed: int) -> Array:
    """Alpha = alpha_mean for every row; missing_alpha for one without a score, if missing = default."""
    return np.where(np.isnan(uncertainty) & (spec.missing == "default"), spec.missing_alpha, spec.alpha_mean)


def shuffled(uncertainty: Array, spec: SmoothConfig, seed: int) -> Array:
    """The alphas of the base map in random order."""
    return np.random.default_rng(seed).permutation(BASE_MAPS[spec.base](uncertainty, spec, seed))


def inverted(uncertainty: Array, spec: SmoothConfig, seed: int) -> Array:
    """The alphas of the base map in reverse order: the most certain row gets the largest."""
    alpha = np.empty_like(uncertainty)
    alpha[np.argsort(uncertainty, kind="stable")] = np.sort(BASE_MAPS[spec.base](uncertainty, spec, seed))[::-1]
    return alpha


def describe(alpha: Array) -> dict[str, float]:
    """Summarise a distribution of alphas: rows, excluded rows, mean, standard deviation, quartiles and extremes."""
    kept = alpha[~np.isnan(alpha)]
    summary = {"rows": float(len(alpha)), "excluded": float(len(alpha) - len(kept))}
    if not len(kept):
        return summary
    quantiles = np.quantile(kept, [0, 0.25, 0.5, 0.75, 1])
    names = ("min", "q25", "median", "q75", "max")
    return summary | {"mean": float(kept.mean()), "std": float(kept.std())} | dict(zip(names, quantiles.tolist(), strict=True))


def _between(share: Array, spec: SmoothConfig) -> Array:
    return spec.alpha_min + (spec.alpha_max - spec.alpha_min) * share


def _as_spec(spec: SmoothConfig | Mapping[str, Any] | str) -> SmoothConfig:
    if isinstance(spec, SmoothConfig):
        return spec
    try:
        return SmoothConfig.model_validate({"map": spec} if isinstance(spec, str) else dict(spec))
    except ValidationError as error:
        raise UserError("\n".join(explain(SmoothConfig, problem) for problem in error.errors())) from error
