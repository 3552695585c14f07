"""Conversations to ask an engine about, and the settings of one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ual_ray.config import EngineConfig
from ual_ray.engines import EngineSpec
from ual_ray.engines.requests import Turns

ASK: Turns = (("user", "Name a colour."),)
TOLD: Turns = (*ASK, ("assistant", "Blue."))
MORE: Turns = (*TOLD, ("user", "And one more, please."), ("assistant", "Green."))
NUMBERS = tuple(str(number) for number in range(101))
Tokenizers = Callable[[str], Any]


def spec_of(model: str = "m", adapter: str | None = None, trust: bool = False, **options: Any) -> EngineSpec:
    return EngineSpec(EngineConfig(**options), model, adapter, trust)
