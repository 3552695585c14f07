"""Primary measures of which two models have no comparison: inconclusive, for a stated reason, and not left out. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ual_ray.config import BASE
from ual_ray.config.report import WIN_RATE
from ual_ray.stats.alignment import Aligned
from ual_ray.stats.metrics import Numbers

NOBODY = "no model has it"


@dataclass(frozen=True)
class Absent:
    """A primary measure that could not be computed for an arm and a reference, and why."""

    arm: str
    reference: str
    measure: str
    reason: str


def absent_measures(
    aligned: Mapping[str, Mapping[str, Aligned]],
    pairs: Iterable[tuple[str, str]],
    compared: Collection[tuple[str, str, str]],
    primary: Sequence[str],
) -> tuple[Absent, ...]:
    """List the primary measures, apart from win rates, that pairs lack; compared: (arm, reference, measure) of those there."""
    lacking = [(arm, reference, name) for arm, reference in pairs for name in primary if name != WIN_RATE]
    return tuple(Absent(*one, _reason(aligned, *one)) for one in lacking if one not in compared)


def _reason(aligned: Mapping[str, Mapping[str, Aligned]], arm: str, reference: str, measure: str) -> str:
    benchmark, _, metric = measure.rpartition(".")
    models = aligned.get(benchmark, {})
    values = {
        model: {seed: numbers[metric] for seed, numbers in by_seed.items() if metric in numbers}
        for model, by_seed in models.items()
    }
    if not any(values.values()):
        return NOBODY
    mine, theirs = (values.get(model, {}) for model in (arm, reference))
    if without := [model for model, own in ((arm, mine), (reference, theirs)) if not own]:
        return f"{' and '.join(without)} {'has' if len(without) == 1 else 'have'} no values of it"
    if reference != BASE and not mine.keys() & theirs.keys():
        listed = (", ".join(map(str, sorted(own))) for own in (mine, theirs))
        return "no training seed is there for both: {} of {}, {} of {}".format(
            *(part for pair in zip(listed, (arm, reference), strict=True) for part in pair)
        )
    counts = (f"{_answered(own.values()):,} of {model}" for model, own in ((arm, mine), (reference, theirs)))
    return f"no question has values of every training of both, with {' and '.join(counts)}; evaluate both on the same ones"


def _answered(values: Iterable[Numbers]) -> int:
    """Count the questions on which a training of a model has a value."""
    return int(np.logical_or.reduce([np.isfinite(part).all(axis=1) for part in values]).sum())
