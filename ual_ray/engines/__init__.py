"""Engines that answer requests, behind one contract: vLLM in this process, an OpenAI-compatible server, and a fake one.

engine = make_engine(EngineSpec(config.engine, model="demo"))
results = engine.run([Choice(...), Likelihood(...), Completion(...)])
"""

from __future__ import annotations

from ual_ray.engines.contract import Engine, EngineDied, EngineSpec, run_once

__all__ = ["Engine", "EngineDied", "EngineSpec", "make_engine", "run_once"]


def make_engine(spec: EngineSpec) -> Engine:
    """Build the engine that the configuration names. Raises UserError for a model without a chat template."""
    if spec.config.kind == "fake":
        from ual_ray.engines.fake import FakeEngine

        return FakeEngine(spec)
    if spec.config.kind == "openai":
        from ual_ray.engines.openai_engine import OpenAIEngine

        return OpenAIEngine(spec)
    from ual_ray.engines.vllm_engine import VLLMEngine

    return VLLMEngine(spec)
