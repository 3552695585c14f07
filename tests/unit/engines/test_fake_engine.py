"""The choice of an engine, and the contract of the fake one."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from engine_requests import ASK, TOLD, Tokenizers, spec_of

from ual_ray.engines import make_engine
from ual_ray.engines import openai_engine as endpoint
from ual_ray.engines import vllm_engine as in_process
from ual_ray.engines.fake import FakeEngine
from ual_ray.engines.requests import (
    Choice,
    ChoiceResult,
    Completion,
    CompletionResult,
    EngineSpec,
    Likelihood,
    LikelihoodResult,
    messages_of,
    overlong,
)
from ual_ray.models.chat import ChatRenderer

# --- the choice of an engine -----------------------------------------------------------------------------------------


def test_the_configuration_names_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    class Endpoint(NamedTuple):
        spec: EngineSpec

    class InProcess(NamedTuple):
        spec: EngineSpec

    monkeypatch.setattr(endpoint, "OpenAIEngine", Endpoint)
    monkeypatch.setattr(in_process, "VLLMEngine", InProcess)
    for kind, engine in {"openai": Endpoint, "vllm": InProcess}.items():
        made = make_engine(spec_of(kind=kind))
        assert isinstance(made, engine) and made.spec == spec_of(kind=kind)
    assert isinstance(make_engine(spec_of(kind="fake")), FakeEngine)


# --- the fake --------------------------------------------------------------------------------------------------------


def fake(model: str = "m", **options: Any) -> FakeEngine:
    engine = make_engine(spec_of(model, kind="fake", **options))
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
    assert fake().run([]) == []


def test_the_fakes_answers_depend_on_the_request_the_model_and_the_seed() -> None:
    requests = [Likelihood((("user", f"q{number}"), ("assistant", "a"))) for number in range(20)]
    assert len(set(fake().run(requests))) == 20
    assert fake("other").run(requests) != fake().run(requests)
    assert fake("/models/m").run(requests) == fake("m").run(requests)  # wherever it lies
    first, second = fake().run([Completion(ASK, 9, 1.0, 4, seed) for seed in (0, 1)])
    assert first != second


def test_trainings_of_one_name_answer_by_their_weights(tmp_path: Path) -> None:
    answers = []
    for seed in (0, 1):
        folder = tmp_path / str(seed) / "model"
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(bytes([seed]))
        answers.append(fake(str(folder)).run([Likelihood(TOLD)]))
    assert answers[0] != answers[1]


def test_the_fake_says_how_sure_it_is_where_that_is_asked() -> None:
    plain, asked = fake().run([Completion(ASK, 9), Completion(ASK, 9, confidence=True)])
    assert isinstance(plain, CompletionResult) and isinstance(asked, CompletionResult)
    assert plain.texts == asked.texts and plain.confidence is None
    assert asked.confidence is not None and 0 < asked.confidence <= 1
    assert fake().run([Completion(ASK, 9, confidence=True)]) == [asked]


def test_the_fake_refuses_what_is_too_long() -> None:
    fits, long = (Choice((("user", "word " * words),), ("A", "B")) for words in (16, 17))
    first, second = fake(max_model_len=16).run([fits, long])
    assert isinstance(first, ChoiceResult)
    assert second == overlong(17, 16)


@pytest.mark.parametrize("style", ["chatml", "llama3"])
def test_the_fake_can_render_and_measure_in_tokens(
    style: str, tmp_path: Path, chat_tokenizer: Tokenizers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ual_ray.engines.fake.resolve_model", lambda name: name)
    chat_tokenizer(style).save_pretrained(tmp_path)
    renderer = ChatRenderer(chat_tokenizer(style))
    engine = fake(str(tmp_path), arguments={"render": True})
    assert engine.template_hash == renderer.template_hash != fake().template_hash
    choice, likelihood = engine.run([Choice(ASK, ("A", "B")), Likelihood(TOLD)])
    assert choice.prompt_tokens == len(renderer.prompt_ids(messages_of(ASK)))
    whole = renderer.text(messages_of(TOLD), generation_prompt=False)
    assert likelihood.prompt_tokens == len(renderer.encode(whole))
    tight = fake(str(tmp_path), arguments={"render": True}, max_model_len=max(16, choice.prompt_tokens - 1))
    assert tight.run([Choice((("user", "word " * 20),), ("A",))])[0].calls == 0


@pytest.mark.parametrize("request_", [Choice(ASK, ("A",)), Likelihood(TOLD), Completion(ASK, 5)])
def test_the_fake_can_be_made_to_die(request_: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr("ual_ray.engines.fake.os._exit", leave)
    text = "Blue" if isinstance(request_, Likelihood) else "colour"
    with pytest.raises(SystemExit):
        fake(arguments={"crash_on": text}).run([request_])
    fake(arguments={"crash_on": "nothing of it"}).run([request_])


def test_the_fake_can_be_slow_or_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("ual_ray.engines.fake.time.sleep", slept.append)
    fake(arguments={"seconds_per_run": 0.25}).run([Likelihood(TOLD)])
    assert slept == [0.25]
    fake(arguments={"hang_on": "Blue"}).run([Likelihood(TOLD)])
    assert slept[-1] >= 3600
