"""Engines: the fake one's contract, and what stands around vLLM (a stand-in here) in the real one."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from ual_ray.config import EngineConfig
from ual_ray.elicit import engines
from ual_ray.elicit.engines import FakeEngine, VLLMEngine, make_engine
from ual_ray.elicit.requests import (
    Choice,
    ChoiceResult,
    Completion,
    CompletionResult,
    Failure,
    Likelihood,
    LikelihoodResult,
    Turns,
)
from ual_ray.rendering import IGNORE_INDEX, ChatRenderer

ASK: Turns = (("user", "Name a colour."),)
TOLD: Turns = (*ASK, ("assistant", "Blue."))


# --- the fake --------------------------------------------------------------------------------------------------------


def fake(model: str = "m", **options: Any) -> FakeEngine:
    engine = make_engine(EngineConfig(kind="fake", **options), model)
    assert isinstance(engine, FakeEngine)
    return engine


def test_the_fake_answers_in_order_and_in_kind() -> None:
    requests = [Choice(ASK, ("A", "B", "C")), Likelihood(TOLD), Completion(ASK, 9, n=3)]
    choice, likelihood, completion = fake().run(requests)
    assert isinstance(choice, ChoiceResult) and sum(map(math.exp, choice.log_probabilities)) == pytest.approx(1)
    assert len(choice.log_probabilities) == 3
    assert isinstance(likelihood, LikelihoodResult) and likelihood.target_tokens > 0 and likelihood.nll_sum >= 0
    assert isinstance(completion, CompletionResult) and len(completion.texts) == 3
    assert fake().run(requests[::-1]) == [completion, likelihood, choice]


def test_the_fakes_answers_depend_on_the_request_and_the_model() -> None:
    requests = [Likelihood((("user", f"q{number}"), ("assistant", "a"))) for number in range(20)]
    assert len({result for result in fake().run(requests)}) == 20
    assert fake("other").run(requests) != fake().run(requests)


def test_the_fake_refuses_what_is_too_long() -> None:
    fits, long = (Choice((("user", "word " * words),), ("A", "B")) for words in (16, 17))
    first, second = fake(max_model_len=16).run([fits, long])
    assert isinstance(first, ChoiceResult)
    assert second == Failure("overlong: 17 tokens, engine.max_model_len is 16")


# --- vLLM's surroundings ---------------------------------------------------------------------------------------------

POISON = "poison"


class StandIn:
    """Has `vllm.LLM`'s interface; the log-probability of token t is -t / 100."""

    def __init__(self, renderer: ChatRenderer, **options: Any) -> None:
        self.options = options
        self.batches: list[int] = []
        self.broken = False
        self._renderer = renderer

    def generate(self, prompts: list[dict[str, Any]], sampling: list[Any], use_tqdm: bool) -> list[Any]:
        self.batches.append(len(prompts))
        ids = [prompt["prompt_token_ids"] for prompt in prompts]
        if self.broken or any(POISON in self._renderer.decode(one) for one in ids):
            raise RuntimeError("the kernel fell over")
        return [self._output(tokens, wanted) for tokens, wanted in zip(ids, sampling, strict=True)]

    def _output(self, tokens: list[int], wanted: Any) -> Any:
        values = {token: SimpleNamespace(logprob=-token / 100) for token in getattr(wanted, "logprob_token_ids", [])}
        count = getattr(wanted, "n", 1)
        samples = [SimpleNamespace(text=f"t{at}", token_ids=[1, 2], logprobs=[values]) for at in range(count)]
        given = [None, *({token: SimpleNamespace(logprob=-token / 100)} for token in tokens[1:])]
        return SimpleNamespace(prompt_token_ids=tokens, prompt_logprobs=given, outputs=samples)


Build = Callable[..., tuple[VLLMEngine, StandIn, ChatRenderer]]


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch, chat_tokenizer: Callable[[str], Any]) -> Build:
    """Make a VLLMEngine on a real tokenizer, with a stand-in for the package vllm."""

    def make(style: str = "chatml", **options: Any) -> tuple[VLLMEngine, StandIn, ChatRenderer]:
        renderer = ChatRenderer(chat_tokenizer(style))
        made: list[StandIn] = []

        def language_model(**arguments: Any) -> StandIn:
            made.append(StandIn(renderer, **arguments))
            return made[0]

        monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=language_model, SamplingParams=SimpleNamespace))
        monkeypatch.setattr(engines.os, "environ", {})
        monkeypatch.setattr(engines, "resolve_model", lambda name: f"/models/{name}")
        monkeypatch.setattr(engines, "load_renderer", lambda *_: renderer)
        engine = make_engine(EngineConfig(**options), "tiny")
        assert isinstance(engine, VLLMEngine)
        return engine, made[0], renderer

    return make


def test_results_are_scalars_read_at_the_right_tokens(build: Build) -> None:
    engine, _, renderer = build()
    choice, likelihood, completion = engine.run([Choice(ASK, ("B", "A")), Likelihood(TOLD), Completion(ASK, 5, n=3)])
    prompt_tokens = len(renderer.prompt_ids([{"role": "user", "content": "Name a colour."}]))
    rendered = renderer.conversation([{"role": role, "content": content} for role, content in TOLD])
    said = [label for label in rendered.labels if label != IGNORE_INDEX]
    assert choice == ChoiceResult(tuple(-renderer.token_id(text) / 100 for text in "BA"), prompt_tokens)
    assert isinstance(likelihood, LikelihoodResult)
    assert likelihood.nll_sum == pytest.approx(sum(said) / 100)
    assert (likelihood.target_tokens, likelihood.prompt_tokens) == (len(said), len(rendered.input_ids))
    assert completion == CompletionResult(("t0", "t1", "t2"), prompt_tokens, generated_tokens=6)


def test_an_overlong_request_never_reaches_the_engine(build: Build) -> None:
    engine, llm, _ = build(max_model_len=60)
    short, long, last = engine.run([Likelihood(TOLD), Completion(ASK, 60), Choice(ASK, ("A", "B"))])
    assert isinstance(long, Failure) and long.reason.startswith("overlong: ")
    assert isinstance(short, LikelihoodResult) and isinstance(last, ChoiceResult)
    assert llm.batches == [2]


def test_what_just_fits_is_answered(build: Build) -> None:
    _, _, renderer = build()
    tokens = len(renderer.prompt_ids([{"role": "user", "content": "Name a colour."}]))
    engine, _, _ = build(max_model_len=tokens + 10)
    fits, over = engine.run([Completion(ASK, 10), Completion(ASK, 11)])
    assert isinstance(fits, CompletionResult)
    assert over == Failure(f"overlong: {tokens + 11} tokens, engine.max_model_len is {tokens + 10}")


def test_only_overlong_requests_are_no_batch(build: Build) -> None:
    engine, llm, _ = build(max_model_len=16)
    (result,) = engine.run([Completion(ASK, 200)])
    assert isinstance(result, Failure)
    assert llm.batches == []


def test_a_request_that_the_engine_chokes_on_costs_only_itself(build: Build) -> None:
    engine, _, _ = build()
    first, poisoned, last = engine.run([Likelihood(TOLD), Completion((("user", POISON),), 5), Choice(ASK, ("A", "B"))])
    assert isinstance(poisoned, Failure) and "the kernel fell over" in poisoned.reason
    assert isinstance(first, LikelihoodResult) and isinstance(last, ChoiceResult)


def test_a_broken_engine_raises(build: Build) -> None:
    engine, llm, _ = build()
    llm.broken = True
    with pytest.raises(RuntimeError, match="fell over"):
        engine.run([Likelihood(TOLD), Completion(ASK, 5)])


@pytest.mark.parametrize(
    ("style", "bad"),
    [
        ("gemma", (("system", "Be brief."), *TOLD)),  # the template refuses the role
        ("rewriting", (*TOLD, ("user", "And?"), ("assistant", "Green."))),  # the template is no prefix code
    ],
)
def test_a_conversation_that_cannot_be_rendered_costs_only_itself(style: str, bad: Turns, build: Build) -> None:
    engine, _, _ = build(style)
    first, failed, last = engine.run([Likelihood(TOLD), Likelihood(bad), Choice(ASK, ("A", "B"))])
    assert isinstance(failed, Failure)
    assert isinstance(first, LikelihoodResult) and isinstance(last, ChoiceResult)


def test_the_template_hash_is_the_renderers(build: Build) -> None:
    engine, _, renderer = build("llama3")
    assert engine.template_hash == renderer.template_hash


def test_settings_reach_the_engine_and_arguments_win(build: Build) -> None:
    _, llm, _ = build(dtype="float16", max_model_len=77, arguments={"dtype": "float32", "max_num_seqs": 3})
    assert llm.options["model"] == "/models/tiny"
    assert (llm.options["dtype"], llm.options["max_model_len"], llm.options["max_num_seqs"]) == ("float32", 77, 3)
    assert llm.options["trust_remote_code"] is False
    assert engines.os.environ["OMP_NUM_THREADS"] == "1"


def test_on_gpus_one_engine_spans_them(build: Build) -> None:
    _, llm, _ = build(gpus_per_actor=2)
    assert (llm.options["tensor_parallel_size"], llm.options["enforce_eager"]) == (2, False)
    assert "OMP_NUM_THREADS" not in engines.os.environ
