"""F: uncertainty -> alpha. The maps, and the controls that tell "uncertainty helps" from "smoothing helps".

Pure: no Ray, no vLLM, no MLflow, no language model. Uncertainty is in [0, 1], higher = more uncertain, NaN = missing; alpha is
the smoothing mass in [0, 1). Every map but `inverted` and `shuffled` is increasing, as in UAL (arXiv 2406.04854, where F is
linear); the formulas' constants are this project's choice and are recorded with every run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from ual_ray.config import SmoothConfig
from ual_ray.config.load import explain
from ual_ray.errors import UserError

Array = NDArray[np.float64]


def assign_alpha(uncertainty: Sequence[float] | Array, spec: SmoothConfig | Mapping[str, Any] | str, seed: int = 0) -> Array:
    """Give every row its alpha.

    uncertainty: [n], in [0, 1], higher = more uncertain, NaN = missing. spec: the section `arms.<arm>`, as a mapping or the
    map's name too. seed: of the control `shuffled`. Returns alpha: [n], in [0, 1); NaN = excluded from training.
    Raises UserError for values outside [0, 1], an unknown spec, or a mean that cannot be reached.
    """
    spec = _as_spec(spec)
    values = np.asarray(uncertainty, dtype=np.float64)
    if values.ndim != 1:
        raise UserError("uncertainty must be one-dimensional", got=f"shape {values.shape}")
    missing = np.isnan(values)
    if ((values[~missing] < 0) | (values[~missing] > 1)).any():
        raise UserError("uncertainty is outside [0, 1]", got=values[~missing].tolist()[:5], expected="[0, 1], NaN = missing")
    if spec.map == "none":
        return _exclude(np.zeros_like(values), missing, spec)
    if spec.map == "constant":
        constant = np.full_like(values, spec.alpha_mean)
        return _exclude(
            np.where(missing, spec.missing_alpha, constant) if spec.missing == "default" else constant, missing, spec
        )
    if not len(values):
        return values.copy()
    if missing.all():
        raise UserError("no row has an uncertainty", got=f"{len(values)} rows", fix="elicit again, or use map: constant")
    return _with_missing(values, missing, spec, seed)


def linear(uncertainty: Array, low: float, high: float) -> Array:
    """Alpha = low + (high - low) U."""
    return low + (high - low) * uncertainty


def minmax(uncertainty: Array, low: float, high: float) -> Array:
    """Stretch the data set's U to [0, 1], then apply linear; equal U everywhere gives the middle."""
    span = np.ptp(uncertainty)
    stretched = (uncertainty - uncertainty.min()) / span if span > 0 else np.full_like(uncertainty, 0.5)
    return linear(stretched, low, high)


def rank(uncertainty: Array, low: float, high: float) -> Array:
    """Apply linear to the rank of U, in [0, 1]; ties share the mean of their ranks."""
    _, inverse, counts = np.unique(uncertainty, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(counts) - (counts + 1) / 2
    top = len(uncertainty) - 1
    return linear(mean_rank[inverse] / top if top > 0 else np.full_like(uncertainty, 0.5), low, high)


def mean_matched(uncertainty: Array, mean: float, cap: float) -> Array:
    """Alpha = min(s U, cap), with the one scale s at which the mean alpha is `mean`: fair against constant smoothing.

    Raises UserError when even clipping every uncertain row leaves the mean below `mean`.
    """
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


def describe(alpha: Array) -> dict[str, float]:
    """Summarise a distribution of alphas: rows, excluded rows, mean, standard deviation, quartiles and extremes."""
    kept = alpha[~np.isnan(alpha)]
    summary = {"rows": float(len(alpha)), "excluded": float(len(alpha) - len(kept))}
    if not len(kept):
        return summary
    quantiles = np.quantile(kept, [0, 0.25, 0.5, 0.75, 1])
    names = ("min", "q25", "median", "q75", "max")
    return summary | {"mean": float(kept.mean()), "std": float(kept.std())} | dict(zip(names, quantiles.tolist(), strict=True))


def _with_missing(values: Array, missing: NDArray[np.bool_], spec: SmoothConfig, seed: int) -> Array:
    if spec.missing == "impute":
        return _map_or_control(np.where(missing, values[~missing].mean(), values), spec, seed)
    alpha = np.full_like(values, np.nan if spec.missing == "exclude" else spec.missing_alpha)
    alpha[~missing] = _map_or_control(values[~missing], spec, seed)
    return alpha


def _map_or_control(uncertainty: Array, spec: SmoothConfig, seed: int) -> Array:
    if spec.map == "shuffled":
        return np.random.default_rng(seed).permutation(_apply(uncertainty, spec.base, spec))
    if spec.map == "inverted":
        return _hand_out_backwards(_apply(uncertainty, spec.base, spec), uncertainty)
    return _apply(uncertainty, spec.map, spec)


def _apply(uncertainty: Array, name: str, spec: SmoothConfig) -> Array:
    if name == "mean_matched":
        return mean_matched(uncertainty, spec.alpha_mean, spec.alpha_cap)
    return {"linear": linear, "minmax": minmax, "rank": rank}[name](uncertainty, spec.alpha_min, spec.alpha_max)


def _hand_out_backwards(alpha: Array, uncertainty: Array) -> Array:
    """Keep the alphas and reverse who gets them: the most certain row gets the largest."""
    order = np.argsort(uncertainty, kind="stable")
    result = np.empty_like(alpha)
    result[order] = np.sort(alpha)[::-1]
    return result


def _exclude(alpha: Array, missing: NDArray[np.bool_], spec: SmoothConfig) -> Array:
    """Drop rows without a score here too when the policy is exclude, so that every arm trains on the same rows."""
    return np.where(missing, np.nan, alpha) if spec.missing == "exclude" else alpha


def _as_spec(spec: SmoothConfig | Mapping[str, Any] | str) -> SmoothConfig:
    if isinstance(spec, SmoothConfig):
        return spec
    try:
        return SmoothConfig.model_validate({"map": spec} if isinstance(spec, str) else dict(spec))
    except ValidationError as error:
        raise UserError("\n".join(explain(SmoothConfig, problem) for problem in error.errors())) from error
