"""Engines that answer requests, behind one contract: vLLM in this process, an OpenAI-compatible server, and a fake one.

engine = make_engine(EngineSpec(config.engine, model="demo"))
results = engine.run([Choice(...), Likelihood(...), Completion(...)])
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ual_ray.config import EngineConfig
from ual_ray.elicit.requests import Request, Result


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


def make_engine(spec: EngineSpec) -> Engine:
    """Build the engine that the configuration names. Raises UserError for a model without a chat template."""
    if spec.config.kind == "fake":
        from ual_ray.elicit.engines.fake import FakeEngine

        return FakeEngine(spec)
    if spec.config.kind == "openai":
        from ual_ray.elicit.engines.endpoint import EndpointEngine

        return EndpointEngine(spec)
    from ual_ray.elicit.engines.in_process import VLLMEngine

    return VLLMEngine(spec)
