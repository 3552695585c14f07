"""Real vLLM: its numbers against transformers and peft, and the order and number of what comes back."""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ual_ray.columns import Message
from ual_ray.config import EngineConfig
from ual_ray.elicit.prompts import load_prompts
from ual_ray.engines import Engine, EngineSpec, make_engine
from ual_ray.engines.compat_vllm import SCORED_FROM
from ual_ray.engines.requests import (
    Choice,
    ChoiceResult,
    Completion,
    CompletionResult,
    Likelihood,
    LikelihoodResult,
    Overlong,
    messages_of,
)
from ual_ray.engines.requests import turns as frozen
from ual_ray.engines.spellings import make_tree
from ual_ray.models.chat import IGNORE_INDEX
from ual_ray.models.resolve import resolve_model

PAIR = [
    Message(role="user", content="What is the capital of France?"),
    Message(role="assistant", content="The capital of France is Paris."),
]
DIALOGUE = [
    Message(role="system", content="You answer in one word."),
    Message(role="user", content="What is the capital of France?"),
    Message(role="assistant", content="Paris."),
    Message(role="user", content="And what is the capital of Spain? Écris-le 🙂"),
    Message(role="assistant", content="Madrid 🇪🇸, of course."),
]
ENGINE = EngineConfig(dtype="float32", max_model_len=256, max_actors=2)
DIGITS = tuple("0123456789")
HUNDRED = tuple(str(number) for number in range(101))


@pytest.fixture(scope="module")
def reference() -> Any:
    """Load the demo model with transformers."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(resolve_model("demo"), dtype=torch.float32)


@pytest.fixture(scope="module")
def engine() -> Engine:
    """Start the engine once, in this process."""
    return make_engine(EngineSpec(ENGINE, "demo"))


@pytest.fixture(scope="module")
def renderer() -> Any:
    """Get the demo model's renderer."""
    from ual_ray.models.chat import load_renderer

    return load_renderer(resolve_model("demo"))


def next_tokens(model: Any, ids: Sequence[int]) -> Any:
    """Log-probabilities of the token that comes next, by transformers."""
    import torch

    with torch.no_grad():
        return torch.log_softmax(model(torch.tensor([list(ids)])).logits[0, -1], -1)


def nll_by(model: Any, renderer: Any, messages: list[Message], last_reply_only: bool = False) -> float:
    import torch

    rendered = renderer.conversation(messages, last_reply_only=last_reply_only)
    with torch.no_grad():
        logits = model(torch.tensor([rendered.input_ids])).logits[0, :-1]
    return torch.nn.functional.cross_entropy(logits, torch.tensor(rendered.labels[1:]), reduction="sum").item()


# --- likelihood ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("last_reply_only", [False, True])
@pytest.mark.parametrize("messages", [PAIR, DIALOGUE], ids=["pair", "dialogue with a system message"])
def test_likelihood_is_that_of_transformers(
    engine: Engine, reference: Any, renderer: Any, messages: list[Message], last_reply_only: bool
) -> None:
    (result,) = engine.run([Likelihood(frozen(messages), last_reply_only)])
    assert isinstance(result, LikelihoodResult)
    assert result.nll_sum == pytest.approx(nll_by(reference, renderer, messages, last_reply_only), rel=1e-3)
    rendered = renderer.conversation(messages, last_reply_only=last_reply_only)
    assert (result.target_tokens, result.prompt_tokens) == (rendered.target_tokens, len(rendered.input_ids))


def test_cheap_likelihood_is_that_of_vllms_own_prompt_logprobs(engine: Any, renderer: Any) -> None:
    """Take our method off vLLM's worker, ask again, and put it back."""
    requests = [Likelihood(frozen(PAIR)), Likelihood(frozen(DIALOGUE)), Likelihood(frozen(DIALOGUE), last_reply_only=True)]
    assert engine._cheap_likelihood, "do what is written at the top of ual_ray/engines/compat_vllm.py"
    cheap = engine.run(requests)
    removed = engine._llm.collective_rpc(take_off)
    try:
        own = engine.run(requests)
        rendered = renderer.conversation(PAIR)
        assert rank_of_a_scored_token(engine, rendered) > 0, "vLLM's own ranks the tokens, ours does not"
    finally:
        assert all(engine._llm.collective_rpc("ual_use_cheap_likelihood"))
    assert all(removed)
    assert rank_of_a_scored_token(engine, rendered) == 0
    assert [result.nll_sum for result in cheap] == pytest.approx([result.nll_sum for result in own], rel=1e-4)


def test_the_versions_of_distributions_are_left_alone(engine: Engine) -> None:
    assert importlib.metadata.version.__module__ == "importlib.metadata"


def take_off(worker: Any) -> bool:
    return worker.model_runner.__dict__.pop("_get_prompt_logprobs_dict", None) is not None


def rank_of_a_scored_token(engine: Any, rendered: Any) -> int:
    from vllm import SamplingParams

    first = next(at for at, label in enumerate(rendered.labels) if label != IGNORE_INDEX)
    sampling = SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False, extra_args={SCORED_FROM: first})
    (output,) = engine._llm.generate([{"prompt_token_ids": rendered.input_ids}], [sampling], use_tqdm=False)
    return output.prompt_logprobs[first][rendered.labels[first]].rank


# --- choices ---------------------------------------------------------------------------------------------------------


def test_digits_have_the_exact_probabilities_of_transformers(engine: Engine, reference: Any, renderer: Any) -> None:
    prompt = load_prompts().rating("verbalized_error", PAIR, "0", "9")
    (result,) = engine.run([Choice(prompt, DIGITS)])
    log_probabilities = next_tokens(reference, renderer.prompt_ids(messages_of(prompt)))
    expected = [log_probabilities[renderer.encode(digit)[0]].item() for digit in DIGITS]
    assert isinstance(result, ChoiceResult)
    assert result.log_probabilities == pytest.approx(expected, abs=1e-2)
    assert result.calls == 1


def test_numbers_of_several_tokens_have_the_exact_probabilities_of_transformers(
    engine: Engine, reference: Any, renderer: Any
) -> None:
    prompt = load_prompts().rating("verbalized_error", PAIR, "0", "100")
    (result,) = engine.run([Choice(prompt, HUNDRED)])
    ids = renderer.prompt_ids(messages_of(prompt))
    tree = make_tree([tuple(renderer.encode(number)) for number in HUNDRED])
    assert isinstance(result, ChoiceResult)
    assert result.calls == len(tree.questions) > 1
    for number in ("0", "1", "7", "10", "42", "99", "100"):
        tokens = tuple(renderer.encode(number))
        expected = sum(next_tokens(reference, [*ids, *tokens[:at]])[token].item() for at, token in enumerate(tokens))
        if following := tree.questions.get(tokens):
            longer = next_tokens(reference, [*ids, *tokens])[list(following)].exp().sum().item()
            expected += math.log1p(-longer)
        assert result.log_probabilities[int(number)] == pytest.approx(expected, abs=2e-2), number
    assert sum(map(math.exp, result.log_probabilities)) <= 1.0 + 1e-6, "no probability is counted twice"


# --- batches ---------------------------------------------------------------------------------------------------------


def test_a_mixed_batch_keeps_its_order_and_an_overlong_request_fails_alone(engine: Engine) -> None:
    results = engine.run(
        [
            Completion((("user", "What is the capital of France? One word."),), max_tokens=16),
            Likelihood((("user", "word " * 400), ("assistant", "yes"))),
            Choice((("user", "Say A or B."),), ("A", "B")),
            Completion((("user", "Tell me a story."),), max_tokens=8, temperature=1.0, n=3, seed=1),
            Completion(frozen(DIALOGUE[:-1]), max_tokens=8),
        ]
    )
    answer, long, choice, stories, reply = results
    assert isinstance(answer, CompletionResult)
    assert "Paris" in answer.texts[0]
    assert isinstance(long, Overlong)
    assert long.tokens is not None and long.tokens > 400 and long.limit == 256
    assert isinstance(choice, ChoiceResult)
    assert all(value <= 0 and math.isfinite(value) for value in choice.log_probabilities)
    assert isinstance(stories, CompletionResult)
    assert len(set(stories.texts)) == 3
    assert isinstance(reply, CompletionResult) and reply.texts[0].strip()


def test_threads_that_run_requests_at_the_same_time_get_their_own_results(engine: Engine) -> None:
    """Numbers of a batch depend on its company by rounding alone."""
    batches = [
        [
            Likelihood(frozen(PAIR)),
            Choice((("user", f"Is {number} even?"),), ("yes", "no")),
            Completion(frozen(PAIR[:1]), number),
        ]
        for number in (3, 40, 9)
    ]
    apart = [engine.run(batch) for batch in batches]
    with ThreadPoolExecutor(len(batches)) as threads:
        together = [done.result(300) for done in [threads.submit(engine.run, batch) for batch in batches]]
    for alone, shared in zip(apart, together, strict=True):
        assert shared[0].nll_sum == pytest.approx(alone[0].nll_sum, rel=1e-4)  # type: ignore[union-attr]
        assert shared[1].log_probabilities == pytest.approx(alone[1].log_probabilities, rel=1e-3)  # type: ignore[union-attr]
        assert shared[2] == alone[2], "greedy text of this length does not hang on rounding"


@pytest.mark.parametrize("n", [1, 16])
def test_all_samples_come_back(engine: Engine, n: int) -> None:
    asked = [
        Completion((("user", f"Tell me a story about {n}."),), max_tokens=6, temperature=1.0, n=n, seed=seed) for seed in (1, 2)
    ]
    first, second = engine.run(asked)
    (again,) = engine.run(asked[:1])
    assert isinstance(first, CompletionResult) and isinstance(second, CompletionResult) and isinstance(again, CompletionResult)
    assert len(first.texts) == len(second.texts) == n
    assert first.texts == again.texts != second.texts
    assert first.generated_tokens <= 6 * n and first.calls == 1


def test_more_seeded_prompts_than_one_step_reads_are_all_answered(engine: Engine) -> None:
    asked = [
        Completion((("user", f"{number}: " + "word " * 180),), max_tokens=3, temperature=1.0, n=2, seed=number)
        for number in range(30)
    ]
    results = engine.run(asked)
    for result in results:
        assert isinstance(result, CompletionResult) and len(result.texts) == 2
    (alone,) = engine.run(asked[-1:])
    assert alone == results[-1]


# --- a LoRA adapter: last, as a second engine in a process ends the process groups of the first when it goes


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a LoRA adapter of rank 8 that does something: its B matrices, which start as zeros, are random."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(resolve_model("demo"), dtype=torch.float32)
    config = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj", "o_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(base, config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.3)
    folder = tmp_path_factory.mktemp("adapter")
    model.save_pretrained(folder)
    return folder


def test_an_adapter_is_applied_as_peft_applies_it(adapter: Path, reference: Any, renderer: Any) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(resolve_model("demo"), dtype=torch.float32)
    merged = PeftModel.from_pretrained(base, adapter).merge_and_unload()
    adapted = make_engine(EngineSpec(ENGINE, "demo", str(adapter)))
    (result,) = adapted.run([Likelihood(frozen(DIALOGUE))])
    expected, without = (nll_by(model, renderer, DIALOGUE) for model in (merged, reference))
    assert abs(expected - without) > 1, "the adapter changes what the model says"
    assert isinstance(result, LikelihoodResult)
    assert result.nll_sum == pytest.approx(expected, rel=2e-3)

    prompt = load_prompts().rating("verbalized_error", PAIR, "0", "9")
    (choice,) = adapted.run([Choice(prompt, DIGITS)])
    log_probabilities = next_tokens(merged, renderer.prompt_ids(messages_of(prompt)))
    assert isinstance(choice, ChoiceResult)
    expected_choice = [log_probabilities[renderer.encode(digit)[0]].item() for digit in DIGITS]
    assert choice.log_probabilities == pytest.approx(expected_choice, abs=2e-2)
