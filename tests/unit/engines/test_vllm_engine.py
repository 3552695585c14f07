"""What stands around vLLM, which is a stand-in here, in the engine that runs it."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import pytest
from engine_requests import ASK, MORE, NUMBERS, TOLD
from vllm_stand_in import POISON, BuildVLLM, EngineDeadError, value

from ual_ray.benchmarks.benchmark import Question
from ual_ray.benchmarks.multiple_choice import MultipleChoice
from ual_ray.engines import EngineDied
from ual_ray.engines.compat_vllm import SCORED_FROM
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
from ual_ray.engines.thoughts import behind_thought
from ual_ray.engines.vllm_jobs import CompletionJob, LikelihoodJob
from ual_ray.errors import UserError
from ual_ray.models.chat import IGNORE_INDEX, ChatRenderer


def spelled(renderer: ChatRenderer, text: str) -> float:
    """Add the probabilities of all tokens that spell a letter."""
    ids = [number for number, token in enumerate(renderer.vocabulary) if token.strip("ĠĊ▁") == text]
    return math.log(math.fsum(math.exp(value(number).logprob) for number in ids))


def test_results_are_scalars_read_at_the_right_tokens(build_vllm: BuildVLLM) -> None:
    engine, llm, renderer = build_vllm()
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


def test_the_thread_that_loads_the_model_is_the_only_one_in_the_engine(build_vllm: BuildVLLM) -> None:
    """On GPUs, vLLM has a stream per thread, and copies results behind the work of the stream that it was loaded in."""
    engine, llm, _ = build_vllm()
    asked = [Choice(ASK, ("B", "A")), Likelihood(TOLD)]
    expected = engine.run(asked)
    with ThreadPoolExecutor(3) as callers:
        assert all(done.result(20) == expected for done in [callers.submit(engine.run, asked) for _ in range(3)])
    assert len(llm.threads) == 1 and threading.get_ident() not in llm.threads


@pytest.mark.parametrize(
    ("marks", "said", "kept", "reply"),
    [
        (("[THINK]", "[/THINK]"), "[THINK]Is it 3?[/THINK]<|im_start|>4", "[THINK]Is it 3?[/THINK]4", "4"),
        (("[THINK]", "[/THINK]"), "[THINK]Is it <|im_start|>3?", "[THINK]Is it 3?", ""),
        (("<|channel>", "<channel|>"), "<|channel>thought\nIs it 3?<channel|>4", "<|channel>thought\nIs it 3?<channel|>4", "4"),
        (("<|channel>", "<channel|>"), "<|channel>thought\nIs it 3?", "<|channel>thought\nIs it 3?", ""),
    ],
)
def test_a_thought_in_special_tokens_is_told_from_the_reply(
    marks: tuple[str, str], said: str, kept: str, reply: str, build_vllm: BuildVLLM, chat_tokenizer: Any
) -> None:
    """As Magistral's, whose marks vLLM would leave out, and the thought would read like the reply."""
    build_vllm()
    tokenizer = deepcopy(chat_tokenizer("chatml"))
    tokenizer.add_special_tokens({"additional_special_tokens": [*marks]})
    job = CompletionJob(Completion(ASK, 5), ChatRenderer(tokenizer))
    assert job.prompts[0].sampling.skip_special_tokens is False
    sample = SimpleNamespace(text=said, token_ids=[1, 2], finish_reason="stop")
    (text,) = job.read([SimpleNamespace(prompt_token_ids=[1], outputs=[sample])]).texts
    assert (text, behind_thought(text)) == (kept, reply)
    plain = CompletionJob(Completion(ASK, 5), ChatRenderer(chat_tokenizer("chatml")))
    assert not hasattr(plain.prompts[0].sampling, "skip_special_tokens")


def of_token(token: int) -> float:
    return float(value(token).logprob)


@pytest.mark.parametrize("last_reply_only", [False, True])
def test_a_runner_that_scores_given_tokens_is_asked_for_the_replies_alone(
    last_reply_only: bool, build_vllm: BuildVLLM, caplog: pytest.LogCaptureFixture
) -> None:
    asked = [Likelihood(MORE, last_reply_only), Likelihood(TOLD)]
    expected = build_vllm()[0].run(asked)
    engine, llm, renderer = build_vllm(cheap=False, by_token=of_token)
    assert not caplog.messages
    assert engine.run(asked) == expected
    rendered = renderer.conversation(messages_of(MORE), last_reply_only=last_reply_only)
    first = min(at for at, label in enumerate(rendered.labels) if label != IGNORE_INDEX)
    sampling = llm.batches[-1][0]
    assert (sampling.prompt_logprob_start, len(sampling.prompt_logprob_token_ids)) == (first - 1, len(rendered.labels) - first)


@pytest.mark.parametrize("wrong", [lambda token: of_token(token + 300), lambda _: math.nan])
def test_scores_of_given_tokens_that_are_wrong_are_not_used(
    wrong: Callable[[int], float], build_vllm: BuildVLLM, caplog: pytest.LogCaptureFixture
) -> None:
    expected = build_vllm()[0].run([Likelihood(TOLD)])
    engine, llm, _ = build_vllm(cheap=False, by_token=wrong)
    assert engine.run([Likelihood(TOLD)]) == expected
    assert not hasattr(llm.batches[-1][0], "prompt_logprob_token_ids")
    assert "its own, slower prompt_logprobs are used" in caplog.text


def test_scores_that_vllm_dropped_are_no_score(build_vllm: BuildVLLM) -> None:
    dropped: list[bool] = []
    engine, _, _ = build_vllm(cheap=False, by_token=lambda token: math.nan if dropped else of_token(token))
    dropped.append(True)
    (result,) = engine.run([Likelihood(TOLD)])
    assert result == Failure("engine: vLLM returned no scores for the prompt's tokens")


@pytest.mark.parametrize("by_token", [False, True])
def test_a_likelihood_that_is_no_number_is_a_failure(by_token: bool, build_vllm: BuildVLLM) -> None:
    job = LikelihoodJob(Likelihood(TOLD), build_vllm()[2], by_token)
    ids = job.sequences[0].input_ids
    first = next(at for at, label in enumerate(job.sequences[0].labels) if label != IGNORE_INDEX)
    scores = [math.nan] + [-1.0] * (len(ids) - first - 1)
    every = [None] * first + [{token: SimpleNamespace(logprob=score)} for token, score in zip(ids[first:], scores, strict=True)]
    output: Any = SimpleNamespace(prompt_token_ids=ids, prompt_logprobs=None if by_token else every)
    output.prompt_token_id_logprobs = [[score] for score in scores]
    assert job.read([output]) == Failure("engine: the model's probabilities are not numbers")


def test_only_the_last_reply_is_scored_where_that_is_asked(build_vllm: BuildVLLM) -> None:
    engine, llm, renderer = build_vllm()
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


def test_the_end_of_turn_is_not_scored_where_the_content_is_asked_for(build_vllm: BuildVLLM) -> None:
    engine, _, renderer = build_vllm()
    whole, content = engine.run([Likelihood(TOLD), Likelihood(TOLD, content_only=True)])
    assert isinstance(whole, LikelihoodResult) and isinstance(content, LikelihoodResult)
    said = [label for label in renderer.conversation(messages_of(TOLD)).labels if label != IGNORE_INDEX]
    end = said[content.target_tokens :]
    assert renderer.encode(TOLD[-1][1]) == said[: content.target_tokens] and len(end) == 1
    assert content.nll_sum == pytest.approx(whole.nll_sum - (end[0] + 1) / 1000)


def test_multiple_choice_by_hand(build_vllm: BuildVLLM) -> None:
    engine, _, renderer = build_vllm()
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


def test_choices_of_several_tokens_take_several_questions(build_vllm: BuildVLLM) -> None:
    engine, llm, renderer = build_vllm()
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


def test_samples_have_the_requests_temperature_and_seed_and_greedy_ones_none(build_vllm: BuildVLLM) -> None:
    engine, llm, _ = build_vllm()
    engine.run([Completion(ASK, 7, 0.5, 4, seed=3), Completion(ASK, 7)])
    sampled, greedy = llm.batches[0]
    assert (sampled.n, sampled.max_tokens, sampled.temperature, sampled.seed) == (4, 7, 0.5, 3)
    assert (greedy.n, greedy.temperature, greedy.seed) == (1, 0.0, None)


def test_only_who_asks_for_confidence_pays_for_it(build_vllm: BuildVLLM) -> None:
    engine, llm, _ = build_vllm()
    plain, sure, _ = engine.run([Completion(ASK, 7), Completion(ASK, 7, confidence=True), Likelihood(TOLD)])
    assert [getattr(sampling, "logprobs", None) for sampling in llm.batches[0]] == [None, 0, None]
    assert isinstance(plain, CompletionResult) and isinstance(sure, CompletionResult)
    assert plain.confidence is None
    assert sure.confidence == pytest.approx(math.exp(-0.25)), "two tokens"


@pytest.mark.parametrize("choices", [("A", "A"), ("A", "")])
def test_choices_that_cannot_be_told_apart_are_the_users(choices: tuple[str, ...], build_vllm: BuildVLLM) -> None:
    engine, _, _ = build_vllm()
    with pytest.raises(UserError, match="does not tell the choices"):
        engine.run([Choice(ASK, choices)])


# --- what is too long, or fails --------------------------------------------------------------------------------------


def test_an_overlong_request_never_reaches_the_engine(build_vllm: BuildVLLM) -> None:
    engine, llm, _ = build_vllm(max_model_len=60)
    short, long, last = engine.run([Likelihood(TOLD), Completion(ASK, 60), Choice(ASK, ("A", "B"))])
    assert isinstance(long, Failure) and long.reason.startswith("overlong: ")
    assert isinstance(short, LikelihoodResult) and isinstance(last, ChoiceResult)
    assert [len(batch) for batch in llm.batches] == [2]


def test_what_just_fits_is_answered(build_vllm: BuildVLLM) -> None:
    _, _, renderer = build_vllm()
    tokens = len(renderer.prompt_ids(messages_of(ASK)))
    engine, _, _ = build_vllm(max_model_len=tokens + 10)
    fits, over = engine.run([Completion(ASK, 10), Completion(ASK, 11)])
    assert isinstance(fits, CompletionResult)
    assert over == overlong(tokens + 11, tokens + 10)


def test_only_overlong_requests_are_no_batch(build_vllm: BuildVLLM) -> None:
    engine, llm, _ = build_vllm(max_model_len=16)
    (result,) = engine.run([Completion(ASK, 200)])
    assert isinstance(result, Failure)
    assert llm.batches == []
    assert engine.run([]) == []


def test_a_request_that_the_engine_chokes_on_costs_only_itself(build_vllm: BuildVLLM) -> None:
    engine, _, _ = build_vllm()
    poison: Turns = (("user", POISON),)
    first, poisoned, numbers, last = engine.run(
        [Likelihood(TOLD), Completion(poison, 5), Choice(poison, NUMBERS), Choice(ASK, ("A", "B"))]
    )
    for failed in (poisoned, numbers):
        assert isinstance(failed, Failure) and failed.reason == "engine: the kernel fell over"
    assert isinstance(first, LikelihoodResult) and isinstance(last, ChoiceResult)


def test_an_engine_that_fails_on_everything_is_dead(build_vllm: BuildVLLM) -> None:
    engine, llm, _ = build_vllm()
    llm.refuses = RuntimeError("out of memory")
    with pytest.raises(EngineDied, match="out of memory"):
        engine.run([Likelihood(TOLD), Completion(ASK, 5)])


def test_an_engine_that_fails_in_the_middle_of_its_work_is_dead(build_vllm: BuildVLLM) -> None:
    engine, llm, _ = build_vllm()
    llm.breaks = RuntimeError("no offset")
    with pytest.raises(EngineDied, match="while it was generating: no offset"):
        engine.run([Likelihood(TOLD), Completion(ASK, 5)])
    assert len(llm.batches) == 1


def test_an_engine_that_says_it_is_dead_is_not_asked_again(build_vllm: BuildVLLM) -> None:
    engine, llm, _ = build_vllm()
    llm.refuses = EngineDeadError("gone")
    with pytest.raises(EngineDied, match="gone"):
        engine.run([Likelihood(TOLD), Completion(ASK, 5)])
    llm.refuses = None
    with pytest.raises(EngineDied, match="gone"):
        engine.run([Completion(ASK, 5)])
    assert llm.loras == llm.batches == []


@pytest.mark.parametrize(
    ("style", "bad"),
    [
        ("gemma", (("system", "Be brief."), *TOLD)),  # the template refuses the role
        ("rewriting", MORE),  # the template is no prefix code
    ],
)
def test_a_conversation_that_cannot_be_rendered_costs_only_itself(style: str, bad: Turns, build_vllm: BuildVLLM) -> None:
    engine, _, _ = build_vllm(style)
    first, failed, last = engine.run([Likelihood(TOLD), Likelihood(bad), Choice(ASK, ("A", "B"))])
    assert isinstance(failed, Failure) and failed.reason.startswith("template: ")
    assert isinstance(first, LikelihoodResult) and isinstance(last, ChoiceResult)


def test_a_reply_to_a_prompt_that_opens_a_thought_starts_with_the_mark(
    build_vllm: BuildVLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of the R1 distillates do, asked to think or not: without it, a thought that is cut reads as an answer."""
    engine, _, renderer = build_vllm()
    tokenizer = renderer._tokenizer
    opened = tokenizer.chat_template + "{% if add_generation_prompt %}{{ '<think>\n' }}{% endif %}"
    monkeypatch.setattr(tokenizer, "chat_template", opened)
    (result,) = engine.run([Completion(ASK, 5, n=2)])
    assert isinstance(result, CompletionResult) and result.texts == ("<think>t0", "<think>t1")
