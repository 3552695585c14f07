"""What every engine promises, and how its requests are sent."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from ual_ray.config import EngineConfig
from ual_ray.engines.requests import Request, Result


@dataclass(frozen=True)
class EngineSpec:
    """How to build an engine: its settings, the model (a name that `resolve_model` takes), and a LoRA adapter's directory."""

    config: EngineConfig
    model: str
    adapter: str | None = None
    trust_remote_code: bool = False


class Engine(Protocol):
    """Answers requests; every request gets a result, in order, and a request that cannot be answered gets a Failure.

    `template_hash` identifies the chat template that prompts are rendered with.
    """

    template_hash: str

    def run(self, requests: Sequence[Request]) -> list[Result]:
        """Answer all requests. Raises EngineDied when the engine cannot go on, and UserError for what the user has to mend."""


class EngineDied(RuntimeError):
    """The engine is beyond repair; the actor that holds it has to be replaced."""


def run_once(engine: Engine, requests: Iterable[Request]) -> dict[Request, Result]:
    """Send each different request once; the engine's answers must be as many as the requests."""
    unique = list(dict.fromkeys(requests))
    results = engine.run(unique) if unique else []
    assert len(results) == len(unique), f"the engine answered {len(results)} of {len(unique)} requests"
    return dict(zip(unique, results, strict=True))
