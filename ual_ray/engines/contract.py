"""The contract of all engines, and how to send requests to one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from ual_ray.config import EngineConfig
from ual_ray.engines.requests import Request, Result


@dataclass(frozen=True)
class EngineSpec:
    """How to build an engine: settings, model (a name that `resolve_model` accepts), and the directory of a LoRA adapter."""

    config: EngineConfig
    model: str
    adapter: str | None = None
    trust_remote_code: bool = False


class Engine(Protocol):
    """Answers requests: one result each, in order; a request that cannot be answered gets a Failure.

    Built from an EngineSpec. `template_hash` identifies the chat template that prompts are rendered with. An engine that asks
    a server also has a static `check(config: EngineConfig, model: str)`, which raises UserError if the server is unusable, and
    one whose `template_hash` needs a tokenizer a static `read_template_hash(spec: EngineSpec)`, which loads no weights.
    """

    template_hash: str

    def run(self, requests: Sequence[Request]) -> list[Result]:
        """Answer all requests. Raises EngineDied when the engine is unusable, and UserError for what the user has to fix."""


class EngineDied(RuntimeError):
    """The engine is unusable from now on; its actor has to be replaced."""


def run_once(engine: Engine, requests: Iterable[Request]) -> dict[Request, Result]:
    """Send each distinct request once, and return the results by request."""
    unique = list(dict.fromkeys(requests))
    results = engine.run(unique) if unique else []
    assert len(results) == len(unique), f"the engine answered {len(results)} of {len(unique)} requests"
    return dict(zip(unique, results, strict=True))
