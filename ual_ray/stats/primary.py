"""The primary measures, tested in the order that was fixed before the results: which comparisons decide, and how. Pure.

Several arms, each with its hypotheses in order, are one family, and corrected as one.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ual_ray.config.evaluate import WIN_RATE
from ual_ray.stats.alignment import LEFT_OUT, NOBODY, Absent
from ual_ray.stats.bootstrap import INCONCLUSIVE, holm, verdict
from ual_ray.stats.comparison import Comparison, Comparisons, Role, pairs_of
from ual_ray.stats.metrics import metric_of

CHOSEN_AFTER = "chosen after the results"
# The p-values of hypotheses that are tested at once, and such steps in their order.
Step = Sequence[float]
Chain = Sequence[Step]


@dataclass(frozen=True)
class Tested:
    """A step of win rates after the correction over the chains; `closed`: why it is exploratory, None = it decides."""

    p_values: tuple[float, ...]
    closed: str | None


@dataclass(frozen=True)
class _Link:
    """One step of an arm's chain: a measure, its p-values, and the positions of their comparisons (none for win rates)."""

    arm: str
    measure: str
    p_values: tuple[float, ...]
    places: tuple[int, ...] = ()


def measure_of(entry: Comparison | Absent) -> str:
    """Name what a comparison is about as `report.primary` does."""
    return entry.measure if isinstance(entry, Absent) else f"{entry.benchmark}.{entry.metric}"


def settle(
    found: Comparisons, roles: Mapping[str, Role], judged: Mapping[str, Sequence[Step]] | None = None
) -> tuple[Comparisons, dict[str, list[Tested]]]:
    """Give the primary comparisons, and the win rates by arm, their corrected p-values and verdicts.

    judged: by arm, p-values of win rates in steps. An arm is tested along the measures in their order, all its references of
    one measure at once; what comes after a measure that was not significant is exploratory, and has no verdict. A measure that
    nobody has, or had, is left out; one that an arm or its reference lacks while others have it, that could not be computed
    for them, or that allows no verdict, is not significant. Arms under test, controls, and comparisons with the untrained
    model are families of their own, each by `holm_in_order`.
    """
    entries, tested = list(found.entries), dict[str, list[Tested]]()
    for links in _families(found, roles, judged or {}):
        adjusted = holm_in_order([[link.p_values for link in chain] for chain in links])
        for chain, p_values in zip(links, adjusted, strict=True):
            closed = CHOSEN_AFTER if found.chosen_after else None
            for link, own in zip(chain, p_values, strict=True):
                for place, p_holm in zip(link.places, own, strict=False):
                    entries[place] = _decided(entries[place], float(p_holm), closed, found.level)
                if link.measure == WIN_RATE and judged and link.arm in judged:
                    steps = tested.setdefault(link.arm, [])
                    steps.append(Tested(tuple(own.tolist())[: len(judged[link.arm][len(steps)])], closed))
                if closed is None and own.max() > 1 - found.level:
                    closed = f"exploratory, as {link.measure} comes first and is inconclusive"
    return replace(found, entries=tuple(entries)), tested


def _families(found: Comparisons, roles: Mapping[str, Role], judged: Mapping[str, Sequence[Step]]) -> list[list[list[_Link]]]:
    families: dict[str, dict[str, dict[str, list[int]]]] = {}
    for place, entry in enumerate(found.entries):
        if entry.primary:
            family = families.setdefault(_family(entry.arm, entry.reference, roles), {})
            family.setdefault(entry.arm, {}).setdefault(measure_of(entry), []).append(place)
    # While others have these measures.
    absent = [
        one for one in found.absent if one.reason == LEFT_OUT or (one.reason != NOBODY and (judged or one.measure != WIN_RATE))
    ]
    for one in absent:
        families.setdefault(_family(one.arm, one.reference, roles), {}).setdefault(one.arm, {}).setdefault(one.measure, [])
    if judged and WIN_RATE in found.primary:
        for arm in judged:
            families.setdefault("tested", {}).setdefault(arm, {})
    links = []
    for name, arms in families.items():
        rates = judged if name == "tested" and WIN_RATE in found.primary else {}
        measured = {measure for own in arms.values() for measure in own} | ({WIN_RATE} if rates else set())
        order = [measure for measure in found.primary if measure in measured]
        lacking = Counter((one.arm, one.measure) for one in absent if _family(one.arm, one.reference, roles) == name)
        links.append(
            [
                [
                    link
                    for measure in order
                    for link in _links(found, arm, measure, arms[arm], rates, lacking[arm, measure], roles)
                ]
                for arm in arms
            ]
        )
    return links


def _links(
    found: Comparisons,
    arm: str,
    measure: str,
    places: Mapping[str, list[int]],
    judged: Mapping[str, Sequence[Step]],
    lacking: int,
    roles: Mapping[str, Role],
) -> list[_Link]:
    if measure == WIN_RATE and judged.get(arm):
        # Those that were not judged were never to be tested; those that do not count any more may have been dropped for it.
        lost = {one.reference: one.reason for one in found.absent if (one.arm, one.measure) == (arm, measure)}
        dropped = [name for name, reason in lost.items() if reason == LEFT_OUT]
        first, *later = judged[arm]
        if "control" in map(roles.get, dropped) and not any(roles[name] == "control" for name in roles.keys() - lost.keys()):
            first = [1.0] * len(first)  # controls come first
        return [_Link(arm, measure, (*first, *[1.0] * len(dropped))), *(_Link(arm, measure, tuple(step)) for step in later)]
    own = places.get(measure, [])
    p_values = [found.entries[place].p_value if found.entries[place].allows_a_verdict else 1.0 for place in own]
    p_values += [1.0] * lacking
    return [_Link(arm, measure, tuple(p_values or [1.0]), tuple(own))]


def _family(arm: str, reference: str, roles: Mapping[str, Role]) -> str:
    if roles.get(reference) == "base":
        return "base"
    return "control" if roles.get(arm) == "control" else "tested"


def tests_of(arm: str, reference: str, roles: Mapping[str, Role], at_once: Collection[str] | None = None) -> int:
    """Count the tests that share the level with this one at most: every arm of its family, times the arm's references.

    at_once: the references that are tested in one step with this one; None = all of them.
    """
    family = [pair for pair in pairs_of(roles) if _family(*pair, roles) == _family(arm, reference, roles)]
    own = [other for name, other in family if name == arm and (at_once is None or other in at_once)]
    return max(1, len({name for name, _ in family})) * max(1, len(own))


def _decided(entry: Comparison, p_holm: float, closed: str | None, level: float) -> Comparison:
    if entry.reason is not None:
        # Its numbers tell nothing, such as those of cut answers, so it is not exploratory either.
        return replace(entry, p_holm=p_holm, verdict=INCONCLUSIVE)
    if closed is not None:
        return replace(entry, p_holm=p_holm, verdict=INCONCLUSIVE, exploratory=True, reason=closed)
    direction = metric_of(entry.metric).direction
    assert direction is not None, "a score without a direction is not compared"
    return replace(entry, p_holm=p_holm, verdict=verdict(entry.difference, p_holm, direction, entry.seeds, level))


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
