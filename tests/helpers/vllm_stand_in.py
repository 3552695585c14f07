"""A stand-in for the package vllm, whose log-probabilities follow from the tokens."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from ual_ray.engines.vllm_engine import VLLMEngine
from ual_ray.models.chat import ChatRenderer

POISON = "poison"
FINAL_ONLY = "final only"


class EngineDeadError(Exception):
    """Stands for vLLM's own."""


class StandIn:
    """Has the interface of `vllm.LLM` and of its engine; the log-probability of token t is -(t + 1) / 1000."""

    def __init__(self, tokenizer: Any, cheap: bool, by_token: Callable[[int], float] | None, **options: Any) -> None:
        self.options = options
        # Those that loaded it or entered it.
        self.threads = {threading.get_ident()}
        # The log-probability of a token whose place is asked for; None = it cannot be asked for.
        self._by_token = by_token
        self.vllm_config = SimpleNamespace(use_v2_model_runner=by_token is not None)
        self.batches: list[list[Any]] = []
        self.loras: list[Any] = []
        self.asked: list[str] = []
        self.refuses: Exception | None = None
        self.breaks: Exception | None = None
        # Steps that a request takes, whose output is what is left of it.
        self.steps = 1
        self.engine_core = SimpleNamespace()
        self.llm_engine = self
        self._new: list[Any] = []
        self._running: list[list[Any]] = []
        self._tokenizer = tokenizer
        self._cheap = cheap

    def collective_rpc(self, method: str) -> list[bool]:
        self.asked.append(method)
        return [True, self._cheap]

    def has_unfinished_requests(self) -> bool:
        return bool(self._new or self._running)

    def add_request(self, name: str, prompt: dict[str, Any], sampling: Any, lora_request: Any) -> None:
        assert sampling.output_kind == FINAL_ONLY
        self.threads.add(threading.get_ident())
        if self.refuses:
            raise self.refuses
        ids = prompt["prompt_token_ids"]
        if POISON in self._tokenizer.decode(ids):
            raise RuntimeError("the kernel fell over")
        self._new.append((name, ids, sampling))
        self.loras.append(lora_request)

    def step(self) -> list[Any]:
        """Count a step of all requests, and finish those that had theirs; those that came since are a batch."""
        self.threads.add(threading.get_ident())
        if self._new:
            self.batches.append([sampling for _, _, sampling in self._new])
        self._running.extend([self.steps, *request] for request in self._new)
        self._new = []
        if self.breaks:
            raise self.breaks
        for request in self._running:
            request[0] -= 1
        done = [request for request in self._running if not request[0]]
        self._running = [request for request in self._running if request[0]]
        outputs = [self._output(ids, sampling) for _, _, ids, sampling in done]
        for output, (_, name, *_) in zip(outputs, done, strict=True):
            output.request_id, output.finished = name, True
        return outputs[::-1]

    def _output(self, tokens: list[int], wanted: Any) -> Any:
        values = {token: value(token) for token in getattr(wanted, "logprob_token_ids", [])}
        count = getattr(wanted, "n", 1)
        sure = -0.5 if getattr(wanted, "logprobs", None) is not None else None
        samples = [
            SimpleNamespace(text=f"t{at}", token_ids=[1, 2], logprobs=[values], cumulative_logprob=sure, finish_reason="stop")
            for at in range(count)
        ]
        answer = SimpleNamespace(prompt_token_ids=tokens, prompt_logprobs=None, prompt_token_id_logprobs=None, outputs=samples)
        if hasattr(wanted, "prompt_logprobs"):
            answer.prompt_logprobs = [None, *({token: value(token)} for token in tokens[1:])]
        if hasattr(wanted, "prompt_logprob_token_ids"):
            assert self._by_token is not None
            assert wanted.prompt_logprob_token_ids == [[token] for token in tokens[wanted.prompt_logprob_start + 1 :]]
            scores = [[self._by_token(token)] for (token,) in wanted.prompt_logprob_token_ids]
            answer.prompt_token_id_logprobs = None if math.isnan(scores[0][0]) else scores
        return answer


def value(token: int) -> Any:
    return SimpleNamespace(logprob=-(token + 1) / 1000)


BuildVLLM = Callable[..., tuple[VLLMEngine, StandIn, ChatRenderer]]
