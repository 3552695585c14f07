"""Weights of rows in the loss, from their uncertainty: what uncertainty can do apart from smoothing. Pure.

A weight function takes the rows (`maps.Rows`: uncertainty in [0, 1], higher = more uncertain, none missing) and the arm, and
returns a weight per row, 0 or above; 0 leaves the row out. Weights are scaled to a mean of 1 per token, so that an arm is not
just one of another learning rate.
"""

import numpy as np

from ual_ray.config import ArmConfig
from ual_ray.config.registry import WEIGHTS
from ual_ray.errors import UserError
from ual_ray.formatting import plural
from ual_ray.smooth.maps import Array, Rows, one_number_each

# Raise it when rows of an arm that excludes those without a score are weighed otherwise.
EXCLUDED_VERSION = 2


def assign_weights(rows: Rows, arm: ArmConfig) -> Array:
    """Give every row its weight [n], with a mean of 1 per token over the rows that are kept.

    A row without a score gets the mean weight of the others, and 0 where missing: exclude leaves it out. Raises UserError when
    no row would have a weight above 0, and for weights that are not a number of 0 or above for each row.
    """
    missing = np.isnan(rows.uncertainty)
    if arm.weight == "none" or not len(missing):
        return np.ones_like(rows.uncertainty)
    if missing.all():
        raise UserError("no row has an uncertainty to weight it by", got=plural(len(missing), "row"), fix="use weight: none")
    scored = rows.where(~missing)
    found = one_number_each(WEIGHTS[arm.weight], scored, arm, WEIGHTS, arm.weight)
    if not (found > 0).any():
        raise UserError(f"weight: {arm.weight} gives every row the weight 0", fix="use another weight, or other scores")
    weights = np.full_like(rows.uncertainty, 0.0 if arm.missing == "exclude" else scored.mean(found))
    weights[~missing] = found
    kept = weights > 0
    return weights / rows.where(kept).mean(weights[kept])


def none(rows: Rows, arm: ArmConfig) -> Array:
    """Weigh all rows alike."""
    return np.ones_like(rows.uncertainty)


def certainty(rows: Rows, arm: ArmConfig) -> Array:
    """Weigh by 1 - U."""
    return 1 - rows.uncertainty


def most_certain(rows: Rows, arm: ArmConfig) -> Array:
    """Keep all but the share `filter_share` of the rows with the highest U; rows as uncertain as the last one kept stay.

    Raises UserError where all would.
    """
    kept = rows.uncertainty <= np.quantile(rows.uncertainty, 1 - arm.filter_share, method="lower")
    if kept.all():
        raise UserError(
            f"weight: filter leaves none of {plural(len(kept), 'row')} out: as many are as uncertain as the most uncertain one",
            got=f"filter_share {arm.filter_share:g}",
            fix="raise filter_share, or use scores with more different values",
        )
    return kept.astype(np.float64)


def flow(rows: Rows, arm: ArmConfig) -> Array:
    """Weigh by exp(-l / tau), l = -log(1 - U), tau = the median of l: FLOW (arXiv 2502.02797), with U from `nll`.

    U of the estimator `nll` is 1 - exp(-mean NLL), so l is the row's NLL under the elicitor, which is the base model there.
    """
    nll = -np.log(np.maximum(1 - rows.uncertainty, np.finfo(np.float64).tiny))
    return np.exp(-nll / max(float(np.median(nll)), np.finfo(np.float64).tiny))
