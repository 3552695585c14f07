"""What stands around vLLM, which is a stand-in here, in the engine that runs it."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from engine_requests import ASK, MORE, NUMBERS, TOLD, Tokenizers, spec_of

from ual_ray.benchmarks.benchmark import Question
from ual_ray.benchmarks.multiple_choice import MultipleChoice
from ual_ray.config import EngineConfig
from ual_ray.engines import EngineDied, make_engine
from ual_ray.engines import vllm_engine as in_process
from ual_ray.engines.compat_vllm import EXTENSION, SCORED_FROM
from ual_ray.engines.requests import (
    Choice,
    ChoiceResult,
    Completion,
    CompletionResult,
    Failure,
    Likelihood,
    LikelihoodResult,
    Turns,
    messages_of,
    overlong,
)
from ual_ray.engines.vllm_engine import VLLMEngine, adapter_rank, check_parallel, engine_arguments
from ual_ray.errors import UserError
from ual_ray.models.chat import IGNORE_INDEX, ChatRenderer

# --- vLLM's surroundings ---------------------------------------------------------------------------------------------

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


Build = Callable[..., tuple[VLLMEngine, StandIn, ChatRenderer]]


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch, chat_tokenizer: Tokenizers) -> Build:
    """Make a VLLMEngine on a real tokenizer, with a stand-in for the package vllm."""

    def make(
        style: str = "chatml", cheap: bool = True, lora: str | None = None, **options: Any
    ) -> tuple[VLLMEngine, StandIn, ChatRenderer]:
        tokenizer = chat_tokenizer(style)
        renderer = ChatRenderer(tokenizer)
        made: list[StandIn] = []

        def language_model(**arguments: Any) -> StandIn:
            made.append(StandIn(tokenizer, cheap, **arguments))
            return made[0]

        vllm = SimpleNamespace(LLM=language_model, SamplingParams=SimpleNamespace)
        monkeypatch.setitem(sys.modules, "vllm", vllm)
        monkeypatch.setitem(sys.modules, "vllm.lora.request", SimpleNamespace(LoRARequest=lambda *given: given))
        monkeypatch.setitem(sys.modules, "vllm.v1.engine.exceptions", SimpleNamespace(EngineDeadError=EngineDeadError))
        monkeypatch.setattr(in_process.os, "environ", {})
        monkeypatch.setattr(in_process, "resolve_model", lambda name: f"/models/{name}")
        monkeypatch.setattr(in_process, "load_renderer", lambda *_: renderer)
        engine = make_engine(spec_of("tiny", lora, **options))
        assert isinstance(engine, VLLMEngine)
        return engine, made[0], renderer

    return make


def spelled(renderer: ChatRenderer, text: str) -> float:
    """Add the probabilities of all tokens that spell a letter."""
    ids = [number for number, token in enumerate(renderer.vocabulary) if token.strip("ĠĊ▁") == text]
    return math.log(math.fsum(math.exp(value(number).logprob) for number in ids))


def test_results_are_scalars_read_at_the_right_tokens(build: Build) -> None:
    engine, llm, renderer = build()
    choice, likelihood, completion = engine.run([Choice(ASK, ("B", "A")), Likelihood(TOLD), Completion(ASK, 5, n=3)])
    prompt_tokens = len(renderer.prompt_ids(messages_of(ASK)))
    rendered = renderer.conversation(messages_of(TOLD))
    said = [label for label in rendered.labels if label != IGNORE_INDEX]
    assert choice == ChoiceResult(tuple(spelled(renderer, text) for text in "BA"), prompt_tokens)
    assert isinstance(likelihood, LikelihoodResult)
    assert likelihood.nll_sum == pytest.approx(sum(token + 1 for token in said) / 1000)
    assert (likelihood.target_tokens, likelihood.prompt_tokens) == (len(said), len(rendered.input_ids))
    assert (likelihood.generated_tokens, likelihood.calls) == (0, 1)
    assert completion == CompletionResult(("t0", "t1", "t2"), prompt_tokens, generated_tokens=6, finish_reasons=("stop",) * 3)
    assert [len(batch) for batch in llm.batches] == [3]


def test_only_the_last_reply_is_scored_where_that_is_asked(build: Build) -> None:
    engine, llm, renderer = build()
    every, last = engine.run([Likelihood(MORE), Likelihood(MORE, last_reply_only=True)])
    first = engine.run([Likelihood(TOLD)])[0]
    assert isinstance(every, LikelihoodResult) and isinstance(last, LikelihoodResult) and isinstance(first, LikelihoodResult)
    assert every.nll_sum == pytest.approx(first.nll_sum + last.nll_sum)
    assert every.target_tokens == first.target_tokens + last.target_tokens
    rendered = renderer.conversation(messages_of(MORE), last_reply_only=True)
    labelled = [at for at, label in enumerate(rendered.labels) if label != IGNORE_INDEX]
    sampling = llm.batches[0][1]
    assert sampling.extra_args == {SCORED_FROM: labelled[0]}
    assert (sampling.prompt_logprobs, sampling.max_tokens, sampling.temperature) == (0, 1, 0.0)


def test_the_end_of_turn_is_not_scored_where_the_content_is_asked_for(build: Build) -> None:
    engine, _, renderer = build()
    whole, content = engine.run([Likelihood(TOLD), Likelihood(TOLD, content_only=True)])
    assert isinstance(whole, LikelihoodResult) and isinstance(content, LikelihoodResult)
    said = [label for label in renderer.conversation(messages_of(TOLD)).labels if label != IGNORE_INDEX]
    end = said[content.target_tokens :]
    assert renderer.encode(TOLD[-1][1]) == said[: content.target_tokens] and len(end) == 1
    assert content.nll_sum == pytest.approx(whole.nll_sum - (end[0] + 1) / 1000)


def test_multiple_choice_by_hand(build: Build) -> None:
    engine, _, renderer = build()
    question = Question(messages_of(ASK), answer="0", choices=("C", "E" * 10))
    assert [renderer.encode(choice) for choice in question.choices] == [[43], [45] * 10]
    results = engine.run(MultipleChoice().requests(question))
    assert [getattr(result, "nll_sum", None) for result in results] == pytest.approx([0.044, 10 * 0.046])
    reading = MultipleChoice().read(question, results)
    # Per character -0.044 and -0.046. With the end of turn, token 3, the second would win: -(0.044 + 0.004) and -0.464 / 10.
    assert reading.extracted == {"summed": "0", "normalised": "0"}
    assert reading.scores == {"accuracy": 1.0, "accuracy_normalised": 1.0}
    share = math.exp(-0.044) / (math.exp(-0.044) + math.exp(-0.46))
    assert reading.confidence == pytest.approx(share)


def test_choices_of_several_tokens_take_several_questions(build: Build) -> None:
    engine, llm, renderer = build()
    (result,) = engine.run([Choice(ASK, NUMBERS)])
    assert isinstance(result, ChoiceResult)
    paths = [renderer.encode(number) for number in NUMBERS]
    prefixes = {tuple(path[:depth]) for path in paths for depth in range(len(path))}
    assert len(llm.batches[0]) == len(prefixes) == result.calls == result.generated_tokens
    prompt = len(renderer.prompt_ids(messages_of(ASK)))
    assert result.prompt_tokens == sum(prompt + len(prefix) for prefix in prefixes)
    forty_two = NUMBERS.index("42")
    assert result.log_probabilities[forty_two] == pytest.approx(sum(value(token).logprob for token in paths[forty_two]))
    assert all(sampling.max_tokens == 1 for sampling in llm.batches[0])


def test_samples_have_the_requests_temperature_and_seed_and_greedy_ones_none(build: Build) -> None:
    engine, llm, _ = build()
    engine.run([Completion(ASK, 7, 0.5, 4, seed=3), Completion(ASK, 7)])
    sampled, greedy = llm.batches[0]
    assert (sampled.n, sampled.max_tokens, sampled.temperature, sampled.seed) == (4, 7, 0.5, 3)
    assert (greedy.n, greedy.temperature, greedy.seed) == (1, 0.0, None)


def test_only_who_asks_for_confidence_pays_for_it(build: Build) -> None:
    engine, llm, _ = build()
    plain, sure, _ = engine.run([Completion(ASK, 7), Completion(ASK, 7, confidence=True), Likelihood(TOLD)])
    assert [getattr(sampling, "logprobs", None) for sampling in llm.batches[0]] == [None, 0, None]
    assert isinstance(plain, CompletionResult) and isinstance(sure, CompletionResult)
    assert plain.confidence is None
    assert sure.confidence == pytest.approx(math.exp(-0.25)), "two tokens"


@pytest.mark.parametrize("choices", [("A", "A"), ("A", "")])
def test_choices_that_cannot_be_told_apart_are_the_users(choices: tuple[str, ...], build: Build) -> None:
    engine, _, _ = build()
    with pytest.raises(UserError, match="does not tell the choices"):
        engine.run([Choice(ASK, choices)])


# --- what is too long, or fails --------------------------------------------------------------------------------------


def test_an_overlong_request_never_reaches_the_engine(build: Build) -> None:
    engine, llm, _ = build(max_model_len=60)
    short, long, last = engine.run([Likelihood(TOLD), Completion(ASK, 60), Choice(ASK, ("A", "B"))])
    assert isinstance(long, Failure) and long.reason.startswith("overlong: ")
    assert isinstance(short, LikelihoodResult) and isinstance(last, ChoiceResult)
    assert [len(batch) for batch in llm.batches] == [2]


def test_what_just_fits_is_answered(build: Build) -> None:
    _, _, renderer = build()
    tokens = len(renderer.prompt_ids(messages_of(ASK)))
    engine, _, _ = build(max_model_len=tokens + 10)
    fits, over = engine.run([Completion(ASK, 10), Completion(ASK, 11)])
    assert isinstance(fits, CompletionResult)
    assert over == overlong(tokens + 11, tokens + 10)


def test_only_overlong_requests_are_no_batch(build: Build) -> None:
    engine, llm, _ = build(max_model_len=16)
    (result,) = engine.run([Completion(ASK, 200)])
    assert isinstance(result, Failure)
    assert llm.batches == []
    assert engine.run([]) == []


def test_a_request_that_the_engine_chokes_on_costs_only_itself(build: Build) -> None:
    engine, _, _ = build()
    poison: Turns = (("user", POISON),)
    first, poisoned, numbers, last = engine.run(
        [Likelihood(TOLD), Completion(poison, 5), Choice(poison, NUMBERS), Choice(ASK, ("A", "B"))]
    )
    for failed in (poisoned, numbers):
        assert isinstance(failed, Failure) and failed.reason == "engine: the kernel fell over"
    assert isinstance(first, LikelihoodResult) and isinstance(last, ChoiceResult)


def test_an_engine_that_fails_on_everything_is_dead(build: Build) -> None:
    engine, llm, _ = build()
    llm.broken = RuntimeError("out of memory")
    with pytest.raises(EngineDied, match="out of memory"):
        engine.run([Likelihood(TOLD), Completion(ASK, 5)])


def test_an_engine_that_fails_in_the_middle_of_its_work_is_dead(build: Build) -> None:
    engine, llm, _ = build()
    llm.broken, llm.unfinished = RuntimeError("no offset"), True
    with pytest.raises(EngineDied, match="while it was generating: no offset"):
        engine.run([Likelihood(TOLD), Completion(ASK, 5)])
    assert len(llm.batches) == 1


def test_an_engine_that_says_it_is_dead_is_not_asked_again(build: Build) -> None:
    engine, llm, _ = build()
    llm.broken = EngineDeadError("gone")
    with pytest.raises(EngineDied, match="gone"):
        engine.run([Likelihood(TOLD), Completion(ASK, 5)])
    assert len(llm.batches) == 1


@pytest.mark.parametrize(
    ("style", "bad"),
    [
        ("gemma", (("system", "Be brief."), *TOLD)),  # the template refuses the role
        ("rewriting", MORE),  # the template is no prefix code
    ],
)
def test_a_conversation_that_cannot_be_rendered_costs_only_itself(style: str, bad: Turns, build: Build) -> None:
    engine, _, _ = build(style)
    first, failed, last = engine.run([Likelihood(TOLD), Likelihood(bad), Choice(ASK, ("A", "B"))])
    assert isinstance(failed, Failure) and failed.reason.startswith("template: ")
    assert isinstance(first, LikelihoodResult) and isinstance(last, ChoiceResult)


# --- how it is built -------------------------------------------------------------------------------------------------


def test_the_template_hash_is_the_renderers(build: Build) -> None:
    engine, _, renderer = build("llama3")
    assert engine.template_hash == renderer.template_hash


def test_a_vllm_without_a_place_for_the_cheap_likelihood_is_used_as_it_is(
    build: Build, caplog: pytest.LogCaptureFixture
) -> None:
    build(cheap=True)
    assert "prompt_logprobs" not in caplog.text
    engine, _, _ = build(cheap=False)
    assert "slower prompt_logprobs are used" in caplog.text
    assert isinstance(engine.run([Likelihood(TOLD)])[0], LikelihoodResult)


def test_settings_reach_the_engine_and_arguments_win(build: Build) -> None:
    _, llm, _ = build(dtype="float16", max_model_len=77, arguments={"dtype": "float32", "max_num_seqs": 3})
    assert llm.options["model"] == "/models/tiny"
    assert (llm.options["dtype"], llm.options["max_model_len"], llm.options["max_num_seqs"]) == ("float32", 77, 3)
    environment = in_process.os.environ
    assert environment["OMP_NUM_THREADS"] == "1"
    assert environment["VLLM_CPU_KVCACHE_SPACE"] == "1" and environment["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"


def test_on_gpus_one_engine_spans_them(build: Build) -> None:
    _, llm, _ = build(gpus_per_actor=2)
    assert (llm.options["tensor_parallel_size"], llm.options["enforce_eager"]) == (2, False)
    assert not {"OMP_NUM_THREADS", "TORCH_COMPILE_DISABLE"} & set(in_process.os.environ)
    assert in_process.os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"


@pytest.mark.parametrize(
    ("options", "key", "expected"),
    [
        ({}, "enforce_eager", True),
        ({}, "tensor_parallel_size", 1),
        ({}, "worker_extension_cls", EXTENSION),
        ({}, "trust_remote_code", False),
        ({"trust": True}, "trust_remote_code", True),
        ({"gpus_per_actor": 0.5}, "tensor_parallel_size", 1),
        ({"gpus_per_actor": 4}, "tensor_parallel_size", 4),
        ({"gpus_per_actor": 4, "tensor_parallel_size": 4}, "tensor_parallel_size", 4),
        ({"gpus_per_actor": 4, "arguments": {"pipeline_parallel_size": 2}}, "tensor_parallel_size", 2),
        ({"gpus_per_actor": 0.5}, "gpu_memory_utilization", 0.45),
        ({"dtype": "float16"}, "dtype", "float16"),
        ({}, "enable_chunked_prefill", False),
        ({"max_model_len": 512}, "max_num_batched_tokens", 4096),
        ({"max_model_len": 8192}, "max_num_batched_tokens", 8192),
    ],
)
def test_engine_arguments(options: dict[str, Any], key: str, expected: object) -> None:
    assert engine_arguments(spec_of(**options))[key] == expected


def test_on_gpus_vllm_reads_prompts_in_parts_as_it_likes() -> None:
    left = {"enable_chunked_prefill", "max_num_batched_tokens", "gpu_memory_utilization"}
    assert not left & set(engine_arguments(spec_of(gpus_per_actor=1)))
    assert "gpu_memory_utilization" not in engine_arguments(spec_of())


def adapter(folder: Path, text: str) -> str:
    (folder / "adapter_config.json").write_text(text)
    return str(folder)


def test_without_an_adapter_there_is_no_lora(build: Build) -> None:
    assert not {"enable_lora", "max_lora_rank"} & set(engine_arguments(spec_of()))
    engine, llm, _ = build()
    engine.run([Completion(ASK, 5)])
    assert llm.loras == [None]


def test_an_adapter_is_used_for_every_request(build: Build, tmp_path: Path) -> None:
    engine, llm, _ = build(lora=adapter(tmp_path, '{"r": 12}'))
    engine.run([Completion(ASK, 5)])
    assert (llm.options["enable_lora"], llm.options["max_lora_rank"]) == (True, 16)
    assert llm.loras == [("elicitor", 1, str(tmp_path))]


@pytest.mark.parametrize(("rank", "expected"), [(1, 8), (8, 8), (9, 16), (64, 64), (300, 320), (512, 512)])
def test_an_adapters_rank_is_one_that_vllm_has_kernels_for(rank: int, expected: int, tmp_path: Path) -> None:
    assert adapter_rank(adapter(tmp_path, json.dumps({"r": rank}))) == expected


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"r": null}', '{"r": "many"}', "{"])
def test_what_is_no_adapter_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"(?s)elicit.adapter is not a LoRA adapter.*adapter_config.json"):
        adapter_rank(adapter(tmp_path, text))
    with pytest.raises(UserError, match="elicit.adapter is not a LoRA adapter"):
        adapter_rank(str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "bias"),
        ({"r": 1024}, "rank 1024"),
        ({"rank_pattern": {"q_proj": 600}}, "rank 600"),
    ],
)
def test_an_adapter_that_vllm_does_not_apply_is_refused(more: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"(?s)has what vLLM does not apply.*{says}.*merge"):
        adapter_rank(adapter(tmp_path, json.dumps({"r": 8} | more)))


def test_the_largest_rank_of_a_pattern_counts(tmp_path: Path) -> None:
    given = {"r": 8, "rank_pattern": {"q_proj": 20}, "use_dora": False, "modules_to_save": None, "bias": "none"}
    assert adapter_rank(adapter(tmp_path, json.dumps(given))) == 32


@pytest.mark.parametrize("nested", [False, True])
def test_heads_are_shared_evenly(nested: bool, tmp_path: Path) -> None:
    heads = {"num_attention_heads": 9}
    (tmp_path / "config.json").write_text(json.dumps({"text_config": heads} if nested else heads))
    check_parallel(str(tmp_path), EngineConfig(gpus_per_actor=3), "elicit.model")
    check_parallel(str(tmp_path), EngineConfig(gpus_per_actor=2, arguments={"pipeline_parallel_size": 2}), "elicit.model")
    check_parallel("org/on-the-hub", EngineConfig(gpus_per_actor=2), "elicit.model")
    with pytest.raises(UserError, match=r"(?s)elicit\.model: its attention heads.*9 heads.*tensor_parallel_size 2"):
        check_parallel(str(tmp_path), EngineConfig(gpus_per_actor=2), "elicit.model")
