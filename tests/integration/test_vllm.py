"""Real vLLM: its numbers against transformers, and its actors under Ray Data."""

from __future__ import annotations

import math
from typing import Any

import pytest

from ual_ray.config import EngineConfig
from ual_ray.elicit.prompts import DIGITS, VERBALIZED, fill
from ual_ray.elicit.requests import Choice, ChoiceResult, Completion, CompletionResult, Failure, Likelihood, LikelihoodResult
from ual_ray.elicit.requests import turns as frozen
from ual_ray.records import Message
from ual_ray.sources.models import resolve_model

PAIR = [
    Message(role="user", content="What is the capital of France?"),
    Message(role="assistant", content="The capital of France is Paris."),
]
ENGINE = EngineConfig(dtype="float32", max_model_len=256, max_actors=2)


@pytest.fixture(scope="module")
def reference() -> Any:
    """Load the demo model with transformers."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(resolve_model("demo"), dtype=torch.float32)


@pytest.fixture(scope="module")
def engine() -> Any:
    """Start the engine once, in this process."""
    from ual_ray.elicit.engines import make_engine

    return make_engine(ENGINE, "demo")


@pytest.fixture(scope="module")
def renderer() -> Any:
    """Get the demo model's renderer."""
    from ual_ray.rendering import load_renderer

    return load_renderer(resolve_model("demo"))


def test_likelihood_is_that_of_transformers(engine: Any, reference: Any, renderer: Any) -> None:
    import torch

    (result,) = engine.run([Likelihood(frozen(PAIR))])
    rendered = renderer.conversation(PAIR)
    with torch.no_grad():
        logits = reference(torch.tensor([rendered.input_ids])).logits[0, :-1]
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor(rendered.labels[1:]), reduction="sum")
    assert isinstance(result, LikelihoodResult)
    assert result.nll_sum == pytest.approx(expected.item(), rel=1e-3)
    assert result.target_tokens == rendered.target_tokens


def test_choices_have_the_exact_probabilities_of_transformers(engine: Any, reference: Any, renderer: Any) -> None:
    import torch

    prompt = fill(VERBALIZED, PAIR)
    (result,) = engine.run([Choice(prompt, DIGITS)])
    ids = renderer.prompt_ids([Message(role="user", content=prompt[0][1])])
    with torch.no_grad():
        log_probabilities = torch.log_softmax(reference(torch.tensor([ids])).logits[0, -1], -1)
    expected = [log_probabilities[renderer.token_id(digit)].item() for digit in DIGITS]
    assert isinstance(result, ChoiceResult)
    assert result.log_probabilities == pytest.approx(expected, abs=1e-2)


def test_a_mixed_batch_keeps_its_order_and_an_overlong_request_fails_alone(engine: Any) -> None:
    results = engine.run(
        [
            Completion((("user", "What is the capital of France? One word."),), max_tokens=16),
            Likelihood((("user", "word " * 400), ("assistant", "yes"))),
            Choice((("user", "Say A or B."),), ("A", "B")),
            Completion((("user", "Tell me a story."),), max_tokens=8, temperature=1.0, n=3, seed=1),
        ]
    )
    answer, overlong, choice, stories = results
    assert isinstance(answer, CompletionResult)
    assert "Paris" in answer.texts[0]
    assert isinstance(overlong, Failure)
    assert overlong.reason.startswith("overlong: ")
    assert isinstance(choice, ChoiceResult)
    assert all(value <= 0 and math.isfinite(value) for value in choice.log_probabilities)
    assert isinstance(stories, CompletionResult)
    assert len(stories.texts) == 3
