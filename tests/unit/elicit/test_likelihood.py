"""The cheap likelihood against log_softmax, on a stand-in for vLLM's model runner."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ual_ray.engines import vllm_likelihood as likelihood
from ual_ray.engines.vllm_likelihood import SCORED_FROM, LikelihoodExtension, response_log_probabilities

VOCABULARY, HIDDEN = 11, 5


class Tensors(NamedTuple):
    """Has the form of vLLM's LogprobsTensors; what is new holds rubbish."""

    logprob_token_ids: torch.Tensor
    logprobs: torch.Tensor
    selected_token_ranks: torch.Tensor

    @staticmethod
    def empty_cpu(rows: int, columns: int) -> Tensors:
        full = torch.full((rows, columns), 99)
        return Tensors(full.to(torch.int32), full.float(), full[:, 0].clone())


@pytest.fixture(autouse=True)
def vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand in for the one thing that is taken from vLLM."""
    monkeypatch.setitem(sys.modules, "vllm.v1.outputs", SimpleNamespace(LogprobsTensors=Tensors))


class Model:
    """A random linear model; a token's hidden state is a random vector of its own."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        generator = torch.Generator().manual_seed(3)
        self.states = torch.randn(VOCABULARY, HIDDEN, generator=generator).to(dtype)
        self.head = torch.randn(HIDDEN, VOCABULARY, generator=generator).to(dtype)
        self.sizes: list[int] = []

    def compute_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(hidden))
        return 3 * hidden @ self.head


class Runner:
    """Has what the extension needs of vLLM's runner; `step` does what the scheduler decided."""

    _get_prompt_logprobs_dict = None

    def __init__(
        self, prompts: Mapping[str, Sequence[int]], scored_from: Mapping[str, int], model: Model | None = None
    ) -> None:
        self.model = model or Model()
        self.num_prompt_logprobs = dict.fromkeys(prompts, 0)
        self.requests = {
            name: SimpleNamespace(
                prompt_token_ids=[*tokens],
                num_computed_tokens=0,
                in_progress_prompt_logprobs_cpu=None,
                sampling_params=SimpleNamespace(extra_args={SCORED_FROM: scored_from[name]} if name in scored_from else None),
            )
            for name, tokens in prompts.items()
        }
        self.input_batch: Any = None
        self.query_start_loc: Any = None

    def step(self, scheduled: Mapping[str, int]) -> dict[str, Any]:
        """Run a step: `scheduled` tokens of each request, those behind the prompt being replies."""
        order = [*scheduled]
        self.input_batch = SimpleNamespace(req_id_to_index={name: index for index, name in enumerate(order)})
        starts = torch.tensor([0, *scheduled.values()]).cumsum(0)
        self.query_start_loc = SimpleNamespace(np=starts.numpy())
        states = []
        for name, count in scheduled.items():
            start = self.requests[name].num_computed_tokens
            tokens = (self.requests[name].prompt_token_ids + [0] * count)[start : start + count]
            states.append(self.model.states[tokens])
        finished = response_log_probabilities(self, torch.cat(states), dict(scheduled))
        for name, count in scheduled.items():
            self.requests[name].num_computed_tokens += count
        return finished


def expected(prompt: Sequence[int], scored_from: int = 0, model: Model | None = None) -> torch.Tensor:
    model = model or Model()
    logits = 3 * model.states[list(prompt[:-1])] @ model.head
    values = torch.log_softmax(logits.float(), dim=1)[range(len(prompt) - 1), list(prompt[1:])]
    values[: max(0, scored_from - 1)] = 0
    return values


def check(table: Tensors, prompt: Sequence[int], scored_from: int = 0) -> None:
    assert table.logprobs.shape == (len(prompt) - 1, 1)
    torch.testing.assert_close(table.logprobs[:, 0], expected(prompt, scored_from), atol=1e-5, rtol=1e-5)
    first = max(0, scored_from - 1)
    assert table.logprob_token_ids[first:, 0].tolist() == list(prompt[1 + first :])
    assert not table.logprob_token_ids[:first].any()
    assert not table.selected_token_ranks.any()


PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]


def test_a_prompt_read_at_once() -> None:
    runner = Runner({"a": PROMPT}, {})
    finished = runner.step({"a": len(PROMPT)})
    check(finished["a"], PROMPT)
    assert runner.num_prompt_logprobs == {}
    assert runner.requests["a"].in_progress_prompt_logprobs_cpu is None


@pytest.mark.parametrize("scored_from", range(len(PROMPT) + 1))
def test_what_stands_before_the_response_is_not_computed(scored_from: int) -> None:
    runner = Runner({"a": PROMPT}, {"a": scored_from})
    check(runner.step({"a": len(PROMPT)})["a"], PROMPT, scored_from)
    assert sum(runner.model.sizes) == len(PROMPT) - max(1, scored_from)


@given(
    cuts=st.lists(st.integers(1, 4), min_size=1, max_size=8),
    scored_from=st.integers(0, len(PROMPT) - 1),
    at_a_time=st.integers(1, 9),
)
def test_a_prompt_read_in_chunks(cuts: list[int], scored_from: int, at_a_time: int) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(likelihood, "ROWS_AT_A_TIME", at_a_time)
        runner = Runner({"a": PROMPT}, {"a": scored_from})
        done = 0
        for count in [*cuts, len(PROMPT)]:
            count = min(count, len(PROMPT) - done)
            finished = runner.step({"a": count})
            done += count
            assert bool(finished) == (done == len(PROMPT))
            if finished:
                break
    check(finished["a"], PROMPT, scored_from)
    assert max(runner.model.sizes) <= at_a_time


def test_a_last_chunk_of_one_token_has_nothing_to_score() -> None:
    runner = Runner({"a": PROMPT}, {})
    assert runner.step({"a": len(PROMPT) - 1}) == {}
    sizes = len(runner.model.sizes)
    check(runner.step({"a": 1})["a"], PROMPT)
    assert len(runner.model.sizes) == sizes


def test_several_requests_in_one_step_keep_their_places() -> None:
    prompts = {"a": PROMPT, "b": [7, 7, 8], "c": [10, 0, 10, 0, 1]}
    runner = Runner(prompts, {"b": 2, "c": 3})
    # As in vLLM, the order in the batch is not the order of arrival, and others decode beside them.
    runner.requests["other"] = SimpleNamespace(prompt_token_ids=[1, 2], num_computed_tokens=0)
    first = runner.step({"c": 2, "other": 2, "a": 5, "b": 3})
    assert [*first] == ["b"]
    check(first["b"], prompts["b"], 2)
    second = runner.step({"a": 3, "other": 1, "c": 3})
    check(second["a"], prompts["a"])
    check(second["c"], prompts["c"], 3)


def test_a_request_that_is_preempted_waits_and_begins_again() -> None:
    runner = Runner({"a": PROMPT, "b": [7, 7, 8]}, {})
    runner.step({"a": 3, "b": 2})
    assert runner.step({"b": 1}).keys() == {"b"}
    assert "a" in runner.num_prompt_logprobs
    runner.requests["a"].num_computed_tokens = 0
    check(runner.step({"a": len(PROMPT)})["a"], PROMPT)


def test_a_prompt_of_one_token_has_an_empty_table() -> None:
    runner = Runner({"a": [3]}, {})
    assert runner.step({"a": 1})["a"].logprobs.shape == (0, 1)
    assert runner.model.sizes == []


def test_a_step_without_such_requests_does_nothing() -> None:
    runner = Runner({}, {})
    assert response_log_probabilities(runner, torch.zeros(2, HIDDEN), {"other": 2}) == {}


def test_half_precision_logits_are_normalised_in_full() -> None:
    model = Model(torch.bfloat16)
    finished = Runner({"a": PROMPT}, {}, model).step({"a": len(PROMPT)})
    assert finished["a"].logprobs.dtype == torch.float32
    torch.testing.assert_close(finished["a"].logprobs[:, 0], expected(PROMPT, model=model), atol=1e-5, rtol=1e-5)


# --- the extension ---------------------------------------------------------------------------------------------------


def test_the_extension_puts_itself_in_place() -> None:
    worker: Any = LikelihoodExtension()
    runner = Runner({"a": PROMPT}, {})
    runner.input_batch, runner.query_start_loc = SimpleNamespace(req_id_to_index={"a": 0}), SimpleNamespace(np=torch.zeros(1))
    worker.model_runner = runner
    assert worker.ual_use_cheap_likelihood() is True
    runner.query_start_loc = SimpleNamespace(np=torch.tensor([0]).numpy())
    check(runner._get_prompt_logprobs_dict(runner.model.states[PROMPT], {"a": len(PROMPT)})["a"], PROMPT)  # type: ignore[misc]


@pytest.mark.parametrize("runner", [None, SimpleNamespace(), SimpleNamespace(_get_prompt_logprobs_dict=1, requests={})])
def test_another_vllm_is_left_as_it_is(runner: Any) -> None:
    worker: Any = LikelihoodExtension()
    worker.model_runner = runner
    before = dict(vars(runner)) if runner else None
    assert worker.ual_use_cheap_likelihood() is False
    assert before is None or vars(runner) == before
    assert LikelihoodExtension().ual_use_cheap_likelihood() is False
