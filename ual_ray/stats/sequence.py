"""Several arms, each with hypotheses in an order that was fixed before the results: one family, corrected as one. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ual_ray.stats.bootstrap import holm

# The p-values of hypotheses that are tested at once, and such steps in their order.
Step = Sequence[float]
Chain = Sequence[Step]


def holm_in_order(chains: Sequence[Chain]) -> list[list[NDArray[np.float64]]]:
    """Adjust the p-values of arms that are tested side by side, each along its chain; compare each directly with the level.

    Within a chain, a step is tested only where all of the steps before it were significant, and then without a penalty for
    them; the p-values of one step are corrected by Holm's step-down. Every one of m chains has the level / m, and a chain that
    is significant to its end leaves its share to the others. So a false rejection anywhere in the family is as rare as the
    level (the graphs of Bretz et al. 2009, Statistics in Medicine 28:586); chains of one p-value each give Holm's step-down.
    """
    gated = [_gated(chain) for chain in chains]
    whole = np.array([max((float(step.max()) for step in chain), default=0.0) for chain in gated])
    order, m = np.argsort(whole, kind="stable"), len(gated)
    # Adjusted p-value of this: the c chains that end first are significant to their ends.
    ended = np.concatenate([[0.0], np.maximum.accumulate(whole[order] * np.arange(m, 0, -1))])
    adjusted: list[list[NDArray[np.float64]]] = [[] for _ in gated]
    for rank, chain in enumerate(order):
        shares = [(ended[c], m - c) for c in range(rank + 1)]
        adjusted[chain] = [
            np.minimum(1.0, np.min([np.maximum(needed, share * step) for needed, share in shares], axis=0))
            for step in gated[chain]
        ]
    return adjusted


def _gated(chain: Chain) -> list[NDArray[np.float64]]:
    """Correct every step for itself, and let none be more significant than the least significant of the steps before."""
    found, before = [], 0.0
    for step in chain:
        found.append(np.maximum(before, holm(step)))
        before = float(found[-1].max(initial=before))
    return found
