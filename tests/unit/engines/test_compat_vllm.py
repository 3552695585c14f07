"""vLLM's undocumented parts: they are still there; the likelihood against log_softmax, on a stand-in for its model runner."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from queue import Queue
from types import SimpleNamespace
from typing import Any, NamedTuple

import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ual_ray.engines import compat_vllm
from ual_ray.engines.compat_vllm import (
    RUNNER_PARTS,
    SCORED_FROM,
    LikelihoodExtension,
    raise_on_death,
    response_log_probabilities,
)

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


# --- canary: what is used of the installed vLLM ----------------------------------------------------------------------

FIX = f"vLLM has changed what ual_ray uses of it: do what is written at the top of {compat_vllm.__file__}"


def class_in(path: str, name: str) -> ast.ClassDef:
    """Parse a class of vLLM without importing vLLM, which takes ten seconds."""
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        pytest.skip("vLLM is not installed")
    source = (Path(spec.origin).parent / path).read_text(encoding="utf-8")
    found = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == name]
    assert found, f"no class {name} in vllm/{path}. {FIX}"
    return found[0]


def attributes_of(node: ast.AST) -> set[str]:
    """Names of methods, fields, and of what is read or set on self."""
    found = {each.attr for each in ast.walk(node) if isinstance(each, ast.Attribute) and ast.unparse(each.value) == "self"}
    found |= {each.name for each in ast.walk(node) if isinstance(each, ast.FunctionDef)}
    return found | {ast.unparse(each.target) for each in ast.walk(node) if isinstance(each, ast.AnnAssign)}


@pytest.mark.slow
def test_the_model_runner_has_the_parts_that_are_used() -> None:
    runner = class_in("v1/worker/gpu_model_runner.py", "GPUModelRunner")
    assert set(RUNNER_PARTS) <= attributes_of(runner), FIX
    (method,) = [x for x in runner.body if isinstance(x, ast.FunctionDef) and x.name == RUNNER_PARTS[0]]
    assert [argument.arg for argument in method.args.args] == ["self", "hidden_states", "num_scheduled_tokens"], FIX
    used = (
        "num_computed_tokens",
        "prompt_token_ids",
        "in_progress_prompt_logprobs_cpu",
        "req_id_to_index",
        "query_start_loc.np",
    )
    assert [name for name in used if name not in ast.unparse(method)] == [], FIX
    request = class_in("v1/worker/gpu_input_batch.py", "CachedRequestState")
    assert {"prompt_token_ids", "sampling_params", "num_computed_tokens"} <= attributes_of(request), FIX
    table = class_in("v1/outputs.py", "LogprobsTensors")
    fields = [ast.unparse(each.target) for each in table.body if isinstance(each, ast.AnnAssign)]
    assert (fields[:3], "empty_cpu" in attributes_of(table)) == ([*Tensors._fields], True), FIX


def test_the_client_of_an_engine_process_has_the_parts_that_are_used() -> None:
    client = class_in("v1/engine/core_client.py", "SyncMPClient")
    assert {"outputs_queue", "resources"} <= attributes_of(client), FIX
    assert "isinstance(outputs, Exception)" in ast.unparse(client), FIX
    assert "engine_dead" in attributes_of(class_in("v1/engine/core_client.py", "BackgroundResources")), FIX
    class_in("v1/engine/exceptions.py", "EngineDeadError")


# --- the likelihood --------------------------------------------------------------------------------------------------


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


@pytest.mark.slow
@given(
    cuts=st.lists(st.integers(1, 4), min_size=1, max_size=8),
    scored_from=st.integers(0, len(PROMPT) - 1),
    at_a_time=st.integers(1, 9),
)
def test_a_prompt_read_in_chunks(cuts: list[int], scored_from: int, at_a_time: int) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(compat_vllm, "ROWS_AT_A_TIME", at_a_time)
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


# --- the client of an engine process ---------------------------------------------------------------------------------


def test_whoever_waits_for_an_engine_process_is_woken_when_it_dies(monkeypatch: pytest.MonkeyPatch) -> None:
    class EngineDeadError(Exception):
        pass

    monkeypatch.setitem(sys.modules, "vllm.v1.engine.exceptions", SimpleNamespace(EngineDeadError=EngineDeadError))
    answers: Queue[Any] = Queue()
    resources = SimpleNamespace(engine_dead=False)

    def wait(seconds: float) -> None:
        assert answers.empty()
        resources.engine_dead = True

    monkeypatch.setattr(compat_vllm.time, "sleep", wait)
    raise_on_death(SimpleNamespace(resources=resources, outputs_queue=answers))
    assert isinstance(answers.get(timeout=10), EngineDeadError)


# --- workers of an engine ----------------------------------------------------------------------------------------------

ENGINE_WITH_WORKER = """
import multiprocessing, os, sys, time
from ual_ray.engines.compat_vllm import LikelihoodExtension

def work(connection):
    LikelihoodExtension().ual_end_with_engine()
    connection.send(os.getpid())
    time.sleep(600)

if __name__ == "__main__":
    here, there = multiprocessing.Pipe()
    multiprocessing.get_context("fork").Process(target=work, args=(there,)).start()
    there.close()
    print(here.recv(), flush=True)
    time.sleep(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's own")
@pytest.mark.slow
def test_a_worker_does_not_outlive_an_engine_that_is_killed(tmp_path: Path) -> None:
    file = tmp_path / "engine.py"
    file.write_text(ENGINE_WITH_WORKER)
    with subprocess.Popen([sys.executable, str(file)], stdout=subprocess.PIPE, text=True) as engine:
        assert engine.stdout is not None
        worker = psutil.Process(int(engine.stdout.readline()))
        engine.kill()
        worker.wait(timeout=30)


def test_an_engine_in_one_process_does_not_end_with_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[None] = []
    monkeypatch.setattr(compat_vllm, "end_with_parent", lambda: asked.append(None))
    LikelihoodExtension().ual_end_with_engine()
    assert not asked
