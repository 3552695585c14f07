"""A stand-in for the package vllm, whose log-probabilities follow from the tokens."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from ual_ray.engines.vllm_engine import VLLMEngine
from ual_ray.models.chat import ChatRenderer

POISON = "poison"


class EngineDeadError(Exception):
    """Stands for vLLM's own."""


class StandIn:
    """Has `vllm.LLM`'s interface; the log-probability of token t is -(t + 1) / 1000."""

    def __init__(self, tokenizer: Any, cheap: bool, **options: Any) -> None:
        self.options = options
        self.batches: list[list[Any]] = []
        self.loras: list[Any] = []
        self.broken: Exception | None = None
        self.unfinished = False
        self.llm_engine = SimpleNamespace(engine_core=SimpleNamespace(), has_unfinished_requests=lambda: self.unfinished)
        self._tokenizer = tokenizer
        self._cheap = cheap

    def collective_rpc(self, method: str) -> list[bool]:
        assert method == "ual_use_cheap_likelihood"
        return [True, self._cheap]

    def generate(self, prompts: list[dict[str, Any]], sampling: list[Any], use_tqdm: bool, lora_request: Any) -> list[Any]:
        self.batches.append(sampling)
        self.loras.append(lora_request)
        ids = [prompt["prompt_token_ids"] for prompt in prompts]
        if self.broken:
            raise self.broken
        if any(POISON in self._tokenizer.decode(one) for one in ids):
            raise RuntimeError("the kernel fell over")
        return [self._output(tokens, wanted) for tokens, wanted in zip(ids, sampling, strict=True)]

    def _output(self, tokens: list[int], wanted: Any) -> Any:
        values = {token: value(token) for token in getattr(wanted, "logprob_token_ids", [])}
        count = getattr(wanted, "n", 1)
        sure = -0.5 if getattr(wanted, "logprobs", None) is not None else None
        samples = [
            SimpleNamespace(text=f"t{at}", token_ids=[1, 2], logprobs=[values], cumulative_logprob=sure, finish_reason="stop")
            for at in range(count)
        ]
        given = [None, *({token: value(token)} for token in tokens[1:])]
        return SimpleNamespace(prompt_token_ids=tokens, prompt_logprobs=given, outputs=samples)


def value(token: int) -> Any:
    return SimpleNamespace(logprob=-(token + 1) / 1000)


BuildVLLM = Callable[..., tuple[VLLMEngine, StandIn, ChatRenderer]]
