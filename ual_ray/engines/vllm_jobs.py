"""Requests in vLLM's terms: the generations that each needs, and how their outputs are read."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from ual_ray.engines.compat_vllm import SCORED_FROM
from ual_ray.engines.reading import answer_place
from ual_ray.engines.reply_text import read_reply
from ual_ray.engines.requests import (
    Choice,
    ChoiceResult,
    Completion,
    CompletionResult,
    Failure,
    Likelihood,
    LikelihoodResult,
    Result,
    messages_of,
)
from ual_ray.engines.spellings import ChoiceTree, Spellings, Tokens, combined, plain
from ual_ray.engines.thoughts import THOUGHT_MARKS, marks_among, opens_thought
from ual_ray.errors import UserError
from ual_ray.models.chat import IGNORE_INDEX, ChatRenderer, Rendered

if TYPE_CHECKING:
    from vllm import RequestOutput, SamplingParams

# What is left for a reply behind its thought, and the mark of a thought that the prompt opened.
REPLY_TOKENS = 32
OPENING = THOUGHT_MARKS[0][0]


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


class Job(ABC):
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
class Thought(CompletionResult):
    """A reply that ended in one of the choices; `ids`: prompt and reply up to where the choice stands."""

    ids: tuple[int, ...] = ()


class ChoiceJob(Job):
    """Probabilities of choices: one generated token per question of their tree, behind the thought if there is one."""

    def __init__(self, request: Choice, renderer: ChatRenderer, spellings: Spellings, thought: Thought | None) -> None:
        """Make the questions. Raises UserError where tokens do not tell the choices apart."""
        self.tree, self.owners = _tree(request.choices, spellings)
        self.thought = thought
        ids = list(thought.ids) if thought else renderer.prompt_ids(messages_of(request.prompt))
        self.prompts = [
            Prompt([*ids, *prefix], sampling_of(max_tokens=1, logprob_token_ids=list(following), detokenize=False), 1)
            for prefix, following in self.tree.questions.items()
        ]

    def read(self, outputs: list[RequestOutput]) -> Result:
        """Combine the answers, and add what spells the same choice."""
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


class LikelihoodJob(Job):
    """NLL of given tokens.

    by_token: ask for the log-probabilities of these tokens alone (`prompt_logprob_token_ids`, which Model Runner V2 has), in
    place of `prompt_logprobs`, which ranks each token of the prompt among the whole vocabulary.
    """

    def __init__(self, request: Likelihood, renderer: ChatRenderer, by_token: bool = False) -> None:
        conversation = messages_of(request.conversation)
        self.sequences = renderer.sequences(
            conversation, last_reply_only=request.last_reply_only, content_only=request.content_only
        )
        self.prompts = [scored_prompt(rendered.input_ids, _first_target(rendered), by_token) for rendered in self.sequences]

    def read(self, outputs: list[RequestOutput]) -> Result:
        """Add the NLL of the targets."""
        nll = 0.0
        for rendered, output in zip(self.sequences, outputs, strict=True):
            values = log_probabilities(output, _first_target(rendered))
            if values is None:
                return Failure("engine: vLLM returned no scores for the prompt's tokens")
            scored = rendered.labels[len(rendered.labels) - len(values) :]
            nll -= math.fsum(value for label, value in zip(scored, values, strict=True) if label != IGNORE_INDEX)
        if math.isnan(nll):  # no comparison with it holds, and the first choice would be taken
            return Failure("engine: the model's probabilities are not numbers")
        targets = sum(rendered.target_tokens for rendered in self.sequences)
        return LikelihoodResult(nll, targets, prompt_tokens=sum(map(_prompt_length, outputs)), calls=len(outputs))


def scored_prompt(ids: list[int], first: int, by_token: bool) -> Prompt:
    """Ask for the log-probabilities of a prompt's tokens from `first` on, which is 1 or more: the first token has none."""
    if by_token:
        ask: dict[str, Any] = {
            "prompt_logprob_token_ids": [[token] for token in ids[first:]],
            "prompt_logprob_start": first - 1,
        }
    else:
        ask = {"prompt_logprobs": 0, "extra_args": {SCORED_FROM: first}}
    return Prompt(ids, sampling_of(max_tokens=1, detokenize=False, **ask), 1)


def log_probabilities(output: RequestOutput, first: int) -> list[float] | None:
    """Read the answer to `scored_prompt`; None where vLLM dropped it, as it does with a request that it has to begin again."""
    ids = output.prompt_token_ids or []
    if output.prompt_logprobs is not None:
        rows = output.prompt_logprobs[first:]
        return [row[token].logprob for token, row in zip(ids[first:], rows, strict=True)]
    scores = getattr(output, "prompt_token_id_logprobs", None)
    return None if scores is None or len(scores) != len(ids) - first else [float(score) for (score,) in scores]


def _first_target(rendered: Rendered) -> int:
    return next((at for at, label in enumerate(rendered.labels) if at and label != IGNORE_INDEX), 1)


class CompletionJob(Job):
    """Sampled or greedy replies to one prompt."""

    def __init__(self, request: Completion, renderer: ChatRenderer) -> None:
        self.n, self.confidence = request.n, request.confidence
        seed = request.seed if request.temperature > 0 else None
        # 0 = of the chosen token alone.
        ask: dict[str, Any] = {"logprobs": 0} if request.confidence else {}
        longest = request.max_tokens + request.thinking
        messages, thinks = messages_of(request.prompt), request.thinking > 0
        # Some templates open a thought whether it is asked for or not.
        self.opening = OPENING if opens_thought(renderer.text(messages, generation_prompt=True, thinking=thinks)) else ""
        # Some marks of thoughts are special tokens, without which a thought reads like a reply.
        marks = marks_among(renderer.special_tokens)
        whole = thinks or bool(request.choices)
        if whole or marks:
            ask["skip_special_tokens"] = False
        self._left_out = renderer.special_tokens - marks if marks and not whole else frozenset()
        sampling = sampling_of(n=self.n, max_tokens=longest, temperature=request.temperature, seed=seed, **ask)
        self.prompts = [Prompt(renderer.prompt_ids(messages, thinking=thinks), sampling, longest)]

    def read(self, outputs: list[RequestOutput]) -> CompletionResult:
        """Return the texts, with their finish reasons."""
        (output,) = outputs
        texts = tuple(self.opening + self._without_special(sample.text) for sample in output.outputs)
        assert len(texts) == self.n, f"{self.n} samples were asked for, {len(texts)} came"
        generated = sum(len(sample.token_ids) for sample in output.outputs)
        first = output.outputs[0]
        sure = getattr(first, "cumulative_logprob", None) if self.confidence else None
        scored = len(first.token_ids) if sure is not None else None
        reasons = tuple(sample.finish_reason for sample in output.outputs)
        return CompletionResult(
            texts, _prompt_length(output), generated, log_probability=sure, scored_tokens=scored, finish_reasons=reasons
        )

    def _without_special(self, text: str) -> str:
        """Leave out what vLLM would have left out, had the marks of thoughts not been to be kept."""
        return _any_of(self._left_out).sub("", text) if self._left_out else text


class ThoughtJob(CompletionJob):
    """The thought and the reply before a choice is scored where the reply gives it."""

    def __init__(self, request: Choice, renderer: ChatRenderer) -> None:
        """Ask for a completion that ends in one of the choices."""
        super().__init__(Completion(request.prompt, REPLY_TOKENS, thinking=request.thinking, choices=request.choices), renderer)
        self.choices, self.vocabulary = request.choices, renderer.vocabulary

    def read(self, outputs: list[RequestOutput]) -> CompletionResult:
        """Find where the reply gives its answer."""
        result = super().read(outputs)
        ((text, finish),) = result.replies
        value = read_reply(text, finish, self.choices)
        tokens = list(outputs[0].outputs[0].token_ids)
        texts = [plain(self.vocabulary[token] or "") for token in tokens]
        place = answer_place(texts, value, self.choices, self.opening) if isinstance(value, str) else None
        if place is None:
            return result
        ids = (*self.prompts[0].ids, *tokens[:place])
        return Thought(
            result.texts, result.prompt_tokens, result.generated_tokens, finish_reasons=result.finish_reasons, ids=ids
        )


def _tree(choices: Sequence[str], spellings: Spellings) -> tuple[ChoiceTree, list[int]]:
    try:
        return spellings.tree(choices)
    except ValueError as error:
        raise UserError(
            f"the elicitor's tokenizer does not tell the choices {list(choices)} apart", got=error, fix="use another elicitor"
        ) from error


def sampling_of(temperature: float = 0.0, **options: Any) -> SamplingParams:
    """Make sampling parameters, greedy by default, whose output comes once, at the end."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(temperature=temperature, output_kind=RequestOutputKind.FINAL_ONLY, **options)


@cache
def _any_of(tokens: frozenset[str]) -> re.Pattern[str]:
    return re.compile("|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True)))


def _prompt_length(output: RequestOutput) -> int:
    return len(output.prompt_token_ids or ())
