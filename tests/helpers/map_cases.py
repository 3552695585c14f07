"""Uncertainties to draw, and a short call of the maps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from hypothesis import strategies as st

from ual_ray.config import registry
from ual_ray.config.registry import BASE_MAPS
from ual_ray.smooth.maps import assign_alpha

NAN = float("nan")
MAPS = list(BASE_MAPS)
CONTROLS = [name for name in registry.MAPS if name not in BASE_MAPS]

# Zeros, ties and clear differences; values so small that their inverse overflows are no uncertainties.
ninths = st.integers(1, 9).map(lambda digit: digit / 9)
scores = st.lists(st.one_of(st.just(0.0), ninths, st.floats(1e-6, 1)), min_size=1, max_size=40)
with_holes = st.lists(st.one_of(st.floats(0.01, 1), st.just(NAN)), min_size=1, max_size=30)
Spec = Mapping[str, Any]


def assign(uncertainty: list[float], seed: int = 0, **spec: Any) -> np.ndarray:
    return assign_alpha(uncertainty, spec, seed)
