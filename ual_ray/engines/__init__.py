"""Engines that answer requests, behind one contract: vLLM in this process, an OpenAI-compatible server, and a fake one.

engine = make_engine(EngineSpec(config.engine, model="demo"))
results = engine.run([Choice(...), Likelihood(...), Completion(...)])
"""

from ual_ray.config.registry import ENGINES
from ual_ray.engines.requests import Engine, EngineDied, EngineSpec, run_once

__all__ = ["ENGINES", "Engine", "EngineDied", "EngineSpec", "make_engine", "run_once", "template_hash_of"]


def make_engine(spec: EngineSpec) -> Engine:
    """Build the engine that engine.kind names. Raises UserError for a model without a chat template."""
    return ENGINES[spec.config.kind](spec)


def template_hash_of(spec: EngineSpec) -> str:
    """Read the template hash of an engine without loading it; "" for a kind whose class does not state it."""
    kind = ENGINES[spec.config.kind]
    return str(kind.read_template_hash(spec) if hasattr(kind, "read_template_hash") else getattr(kind, "template_hash", ""))
