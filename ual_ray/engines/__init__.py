"""Engines that answer requests, behind one contract: vLLM in this process, an OpenAI-compatible server, and a fake one.

engine = make_engine(EngineSpec(config.engine, model="demo"))
results = engine.run([Choice(...), Likelihood(...), Completion(...)])
"""

from __future__ import annotations

from ual_ray.config.registry import ENGINES
from ual_ray.engines.contract import Engine, EngineDied, EngineSpec, run_once

__all__ = ["ENGINES", "Engine", "EngineDied", "EngineSpec", "make_engine", "run_once"]


def make_engine(spec: EngineSpec) -> Engine:
    """Build the engine that engine.kind names. Raises UserError for a model without a chat template."""
    engine: Engine = ENGINES[spec.config.kind](spec)
    return engine
