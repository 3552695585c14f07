"""The maps from uncertainty to alpha, and the controls that tell "uncertainty helps" from "smoothing helps".

Pure: no Ray, no vLLM, no MLflow, no language model. Uncertainty is in [0, 1], higher = more uncertain, NaN = missing; alpha is
the smoothing mass in [0, 1). A map is a function of the rows and its section `arms.<arm>`, and returns an alpha per row. The
base maps are increasing, as in UAL (arXiv 2406.04854, where the map is linear); their formulas' constants are this project's
choice and are recorded with every run. config/registry.py lists them.

The loss is a mean over tokens, so means of alpha that are to be equal are weighted by the length of the response in tokens
(`lengths`): where longer rows are more uncertain, arms of equal mean per row differ in how much they smooth. Where rows count
differently in the loss, their tokens count by these weights too, and rows of weight 0 not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from ual_ray.config import ArmConfig, SmoothConfig
from ual_ray.config.load import explain
from ual_ray.config.registry import BASE_MAPS, MAPS, Registry
from ual_ray.errors import UserError
from ual_ray.formatting import plural

Array = NDArray[np.float64]
# Rows of one source and of one such share of its lengths are alike to `shuffled_within`.
LENGTH_STRATA = 4
LARGEST_ALPHA = 1 - 1e-9
# Raise it when the map inverted gives other alphas to the same rows.
INVERTED_VERSION = 2
# Raise it when maps that stretch the scores impute others.
IMPUTED_VERSION = 2
# What a row without a length counts for: nothing next to the others, and all alike where none has one.
NO_LENGTH = 1e-9


@dataclass(frozen=True)
class Rows:
    """What a map may read of the rows, [n] each: uncertainty, response length (above 0, in any unit), source; and the seed.

    mass: how much a row counts in the loss, its length by its weight.
    """

    uncertainty: Array
    length: Array
    source: NDArray[Any]
    seed: int
    mass: Array

    @staticmethod
    def of(uncertainty: Array, lengths: Any = None, sources: Any = None, seed: int = 0, weights: Any = None) -> Rows:
        """Fill in what is not known: equal lengths, one source, equal weights."""
        length = np.ones_like(uncertainty) if lengths is None else np.maximum(np.asarray(lengths, dtype=np.float64), NO_LENGTH)
        source = np.zeros(len(uncertainty), dtype=np.int64) if sources is None else np.asarray(sources)
        return Rows(uncertainty, length, source, seed, length if weights is None else length * np.asarray(weights))

    def where(self, kept: NDArray[np.bool_]) -> Rows:
        """Keep some of the rows."""
        return Rows(self.uncertainty[kept], self.length[kept], self.source[kept], self.seed, self.mass[kept])

    def mean(self, alpha: Array) -> float:
        """Average over responses weighted by their length and their weight, as the loss does."""
        return float(alpha @ self.mass / self.mass.sum())


@dataclass(frozen=True)
class WithoutScores:
    """Decorator of a map that reads no uncertainty: it is also called for rows without a score, with NaN."""

    alphas: Callable[[Rows, SmoothConfig], Array]

    def __call__(self, rows: Rows, spec: SmoothConfig) -> Array:
        """Return the alphas."""
        return self.alphas(rows, spec)


def assign_alpha(
    uncertainty: Sequence[float] | Array,
    spec: SmoothConfig | Mapping[str, Any] | str,
    seed: int = 0,
    lengths: Sequence[float] | Array | None = None,
    sources: Sequence[str] | NDArray[Any] | None = None,
    weights: Sequence[float] | Array | None = None,
) -> Array:
    """Give every row its alpha.

    uncertainty: [n], in [0, 1], higher = more uncertain, NaN = missing. spec: the section `arms.<arm>`, also as a mapping or
    as the map's name. seed: of the shuffled controls. lengths: [n], of the responses, for means per token; equal by default.
    sources: [n], of the rows, for controls within sources; one by default. weights: [n], in the loss, 0 or above; equal by
    default. Returns alpha: [n], in [0, 1); NaN = excluded from training, as all of weight 0 are. Raises UserError for values
    outside [0, 1], an unknown spec, or a mean that cannot be reached.
    """
    spec = _as_spec(spec)
    values = np.asarray(uncertainty, dtype=np.float64)
    if values.ndim != 1:
        raise UserError("uncertainty must be one-dimensional", got=f"shape {values.shape}")
    if len(bad := values[(values < 0) | (values > 1)]):
        raise UserError(
            "uncertainty is outside [0, 1]",
            got=f"{float(bad[0])} in {len(bad)} of {plural(len(values), 'row')}",
            expected="[0, 1], NaN = missing",
            fix="scale the column uncertainty to [0, 1], higher = more uncertain",
        )
    rows = Rows.of(values, lengths, sources, seed, weights)
    counted, alpha = rows.mass > 0, np.full_like(values, np.nan)
    alpha[counted] = _assign(rows.where(counted), spec)
    return alpha


def _assign(rows: Rows, spec: SmoothConfig) -> Array:
    """Give every row its alpha, those without a score too."""
    values, missing = rows.uncertainty, np.isnan(rows.uncertainty)
    alphas = MAPS[spec.map]
    if isinstance(alphas, WithoutScores):
        own = one_number_each(alphas, rows, spec, MAPS, spec.map)
        # Excluded here too, so that every arm trains on the same rows.
        return np.where(missing & (spec.missing == "exclude"), np.nan, own)
    if len(values) and missing.all():
        raise _without_scores(len(values), f"map: {spec.map}", "elicit again, or use map: constant")
    if spec.missing == "impute" and missing.any():
        rows = _imputed(rows)
        missing = np.zeros_like(missing)
    alpha = np.full_like(values, np.nan if spec.missing == "exclude" else spec.missing_alpha)
    if not missing.all():
        alpha[~missing] = one_number_each(alphas, rows.where(~missing), spec, MAPS, spec.map)
    return alpha


def one_number_each(function: Callable[[Any, Any], Any], rows: Rows, spec: Any, registry: Registry, name: str) -> Array:
    """Return what a map or weight of the registry gives rows, as an array [n]: alphas are in [0, 1), weights 0 or above.

    Anything else raises UserError: NaN would exclude a row, and one number for all, or a table, stand for other values.
    """
    with registry.calling(name):
        found, count = function(rows, spec), len(rows.uncertainty)
    alphas = registry.kind == "map"
    below = 1.0 if alphas else np.inf
    numbers = f"{plural(count, 'number')} {'in [0, 1)' if alphas else 'of 0 or above'}"
    parts = {
        "what": f"the {registry.kind} '{name}' does not give every row its {'alpha' if alphas else registry.kind}",
        "expected": f"an array of {numbers}, one for each row",
        "fix": f"correct {registry.where(name)}",
    }
    try:
        values = np.asarray(found)
    except ValueError as error:  # lists of different lengths
        raise UserError(**parts, got=f"{type(found).__name__}: {error}") from error
    if values.dtype.kind not in "fiu" or values.shape != (count,):
        raise UserError(**parts, got=f"{type(found).__name__}: an array of {values.dtype} of shape {[*values.shape]}")
    values = values.astype(np.float64)
    if len(bad := np.flatnonzero(~((values >= 0) & (values < below)))):
        got = f"{values[bad[0]]:g} for the uncertainty {rows.uncertainty[bad[0]]:g}"
        raise UserError(**parts, got=f"{got}; {len(bad)} of {plural(count, 'row')} have such a value")
    return values


def _base(rows: Rows, spec: SmoothConfig) -> Array:
    return one_number_each(BASE_MAPS[spec.base], rows, spec, BASE_MAPS, spec.base)


def linear(rows: Rows, spec: SmoothConfig) -> Array:
    """Alpha = alpha_min + (alpha_max - alpha_min) U."""
    return _between(rows.uncertainty, spec)


def minmax(rows: Rows, spec: SmoothConfig) -> Array:
    """Stretch the data set's U to [0, 1], then as `linear`; equal U everywhere gives the middle."""
    span = np.ptp(rows.uncertainty)
    lowest = rows.uncertainty.min()
    return _between((rows.uncertainty - lowest) / span if span > 0 else np.full_like(rows.uncertainty, 0.5), spec)


def rank(rows: Rows, spec: SmoothConfig) -> Array:
    """As `linear` of the rank of U, in [0, 1]; ties share the mean of their ranks."""
    _, inverse, counts = np.unique(rows.uncertainty, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(counts) - (counts + 1) / 2
    top = len(rows.uncertainty) - 1
    return _between(mean_rank[inverse] / top if top > 0 else np.full_like(rows.uncertainty, 0.5), spec)


def mean_matched(rows: Rows, spec: SmoothConfig) -> Array:
    """Alpha = min(s U, alpha_cap), with the one scale s at which the mean per token is alpha_mean.

    Fair against constant smoothing. Raises UserError when the mean stays below alpha_mean even with every uncertain row at
    alpha_cap.
    """
    reachable = spec.alpha_cap * rows.mean((rows.uncertainty > 0).astype(np.float64))
    if spec.alpha_mean > reachable + 1e-12:
        raise UserError(
            "mean_matched cannot reach alpha_mean: too few rows have an uncertainty above 0",
            got=f"alpha_mean {spec.alpha_mean}, reachable {reachable:.4f}",
            fix="lower alpha_mean, raise alpha_cap, or use map: rank",
        )
    return _scaled(rows.uncertainty, rows.mass, spec.alpha_mean, spec.alpha_cap)


@WithoutScores
def none(rows: Rows, spec: SmoothConfig) -> Array:
    """Alpha = 0: training without smoothing."""
    return np.zeros_like(rows.uncertainty)


@WithoutScores
def constant(rows: Rows, spec: SmoothConfig) -> Array:
    """The mean per token of the base map, which is alpha_mean for mean_matched, for every row; missing scores as elsewhere."""
    missing = np.isnan(rows.uncertainty)
    if spec.base == "mean_matched":
        mean = spec.alpha_mean
    elif missing.all():
        raise _without_scores(len(missing), f"base: {spec.base}", "use base: mean_matched, which smooths by alpha_mean")
    else:
        own = _imputed(rows) if spec.missing == "impute" else rows.where(~missing)
        mean = own.mean(_base(own, spec))
    return np.where(missing & (spec.missing == "default"), spec.missing_alpha, mean)


def per_source_constant(rows: Rows, spec: SmoothConfig) -> Array:
    """Every row of a source gets its mean alpha of the base map per token: what is gained is not owed to single rows."""
    alpha = _base(rows, spec)
    for own in _groups(rows.source):
        alpha[own] = rows.where(own).mean(alpha[own])
    return alpha


def shuffled(rows: Rows, spec: SmoothConfig) -> Array:
    """The alphas of the base map in random order, at its mean per token."""
    alpha = _base(rows, spec)
    return _matched(np.random.default_rng(rows.seed).permutation(alpha), alpha, rows)


def shuffled_within(rows: Rows, spec: SmoothConfig) -> Array:
    """As `shuffled`, among rows of one source and of similar length: uncertain sources and long rows stay uncertain."""
    alpha, random = _base(rows, spec), np.random.default_rng(rows.seed)
    mixed = alpha.copy()
    for own in _groups(rows.source):
        places = np.flatnonzero(own)
        for stratum in np.array_split(places[np.argsort(rows.length[places], kind="stable")], LENGTH_STRATA):
            mixed[stratum] = random.permutation(alpha[stratum])
    return _matched(mixed, alpha, rows)


def inverted(rows: Rows, spec: SmoothConfig) -> Array:
    """The alphas of the base map in reverse order, at its mean per token: the most certain row gets the largest.

    Rows of one uncertainty are in random order, as the order of rows may be that of their sources.
    """
    base = _base(rows, spec)
    alpha = np.empty_like(base)
    at_random = np.random.default_rng(rows.seed).permutation(len(base))
    alpha[np.lexsort((at_random, rows.uncertainty))] = np.sort(base)[::-1]
    return _matched(alpha, base, rows)


def describe(alpha: Array, mass: Array | None = None) -> dict[str, float]:
    """Summarise alphas: rows, excluded rows, mean per row and by `Rows.mass`, standard deviation, quartiles, extremes."""
    there = ~np.isnan(alpha)
    kept = alpha[there]
    summary = {"rows": float(len(alpha)), "excluded": float(len(alpha) - len(kept))}
    if not len(kept):
        return summary
    quantiles = np.quantile(kept, [0, 0.25, 0.5, 0.75, 1])
    names = ("min", "q25", "median", "q75", "max")
    weights = None if mass is None else mass[there]
    means = {"mean": float(kept.mean()), "mean_by_length": float(np.average(kept, weights=weights))}
    return summary | means | {"std": float(kept.std())} | dict(zip(names, quantiles.tolist(), strict=True))


def _imputed(rows: Rows) -> Rows:
    """Give rows without a score the mean of the others."""
    missing = np.isnan(rows.uncertainty)
    if not missing.any():
        return rows
    known = rows.uncertainty[~missing]
    # Rounded, the mean of equal scores is beyond them, which `minmax` and `rank` would stretch.
    mean = np.clip(known.mean(), known.min(), known.max())
    return replace(rows, uncertainty=np.where(missing, mean, rows.uncertainty))


def _without_scores(count: int, what: str, fix: str) -> UserError:
    return UserError(f"no row has an uncertainty, which {what} reads", got=plural(count, "row"), fix=fix)


def _between(share: Array, spec: SmoothConfig) -> Array:
    return spec.alpha_min + (spec.alpha_max - spec.alpha_min) * share


def _matched(alpha: Array, base: Array, rows: Rows) -> Array:
    """Scale alphas to the mean per token of the base map's; rows that count alike need no scaling."""
    if not len(alpha) or np.ptp(rows.mass) == 0:
        return alpha
    return _scaled(alpha, rows.mass, rows.mean(base), LARGEST_ALPHA)


def _scaled(values: Array, weights: Array, mean: float, cap: float) -> Array:
    """Return min(s values, cap), with the one scale s at which its weighted mean is `mean`; at the cap if none is so high."""
    # The values clipped at the right scale are the k largest ones: take the smallest k that is consistent.
    order = np.argsort(values, kind="stable")[::-1]
    ordered, own = values[order], weights[order]
    clipped = np.concatenate([[0.0], np.cumsum(own)])
    remaining = np.concatenate([np.cumsum((ordered * own)[::-1])[::-1], [0.0]])
    for k in range(len(ordered)):
        if remaining[k] <= 0:
            break
        scale = (mean * clipped[-1] - cap * clipped[k]) / remaining[k]
        if scale * ordered[k] <= cap:
            return np.minimum(scale * values, cap)
    return np.where(values > 0, cap, 0.0)


def _groups(labels: NDArray[Any]) -> Iterator[NDArray[np.bool_]]:
    _, inverse = np.unique(labels, return_inverse=True)
    for place in range(inverse.max(initial=-1) + 1):
        yield inverse == place


def _as_spec(spec: SmoothConfig | Mapping[str, Any] | str) -> SmoothConfig:
    if isinstance(spec, SmoothConfig):
        return spec
    try:
        return ArmConfig.model_validate({"map": spec} if isinstance(spec, str) else dict(spec))
    except ValidationError as error:
        raise UserError("\n".join(explain(ArmConfig, problem) for problem in error.errors())) from error
