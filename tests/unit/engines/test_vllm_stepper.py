"""Threads that generate with one engine at the same time: whose output is whose, who waits for whom, and how all end."""

from __future__ import annotations

import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
from vllm_stand_in import EngineDeadError

from ual_ray.engines import EngineDied
from ual_ray.engines.vllm_engine import Stepper

PATIENCE = 20.0


class Engine:
    """A prompt [owner, steps] takes so many steps; steps note whose requests they found."""

    def __init__(self) -> None:
        self.running: dict[str, list[int]] = {}
        self.found: list[set[int]] = []
        self.inside = 0
        self.breaks: Exception | None = None

    def has_unfinished_requests(self) -> bool:
        return bool(self.running)

    def add_request(self, name: str, prompt: list[int], sampling: Any, lora_request: Any) -> None:
        assert (sampling, lora_request) == ("greedy", "adapter")
        if prompt[1] == 0:
            raise ValueError(f"nothing to do for {prompt[0]}")
        self.running[name] = [*prompt]

    def step(self) -> list[Any]:
        self.inside += 1
        time.sleep(0.0005)
        assert self.inside == 1, "one thread at a time"
        assert self.running, "an engine process without requests would never answer"
        if self.breaks:
            raise self.breaks
        self.found.append({owner for owner, _ in self.running.values()})
        outputs = []
        for name, prompt in [*self.running.items()]:
            prompt[1] -= 1
            if not prompt[1]:
                del self.running[name]
            outputs.append(SimpleNamespace(request_id=name, finished=not prompt[1], owner=prompt[0]))
        self.inside -= 1
        return outputs


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    monkeypatch.setitem(sys.modules, "vllm.inputs", SimpleNamespace(tokens_input=lambda ids: ids))
    monkeypatch.setitem(sys.modules, "vllm.v1.engine.exceptions", SimpleNamespace(EngineDeadError=EngineDeadError))
    return Engine()


@pytest.fixture
def stepper(engine: Engine) -> Stepper:
    return Stepper(engine, ThreadPoolExecutor(1), "adapter")  # type: ignore[arg-type]


def generate(stepper: Stepper, *prompts: list[int]) -> list[Any]:
    return stepper.generate(prompts, ["greedy"] * len(prompts))  # type: ignore[list-item]


def test_every_thread_gets_its_own_outputs_of_shared_steps(engine: Engine, stepper: Stepper) -> None:
    def work(owner: int) -> None:
        for call in range(10):
            prompts = [[100 * owner + at, 1 + (owner * 7 + call * 3 + at) % 9] for at in range(1 + call % 4)]
            outputs = generate(stepper, *prompts)
            assert [output.owner for output in outputs] == [owner for owner, _ in prompts]

    with ThreadPoolExecutor(6) as threads:
        for done in [threads.submit(work, owner) for owner in range(6)]:
            done.result(PATIENCE)
    assert not engine.running
    assert max(len({owner // 100 for owner in owners}) for owners in engine.found) > 1


@pytest.mark.slow
def test_a_short_batch_does_not_wait_for_a_long_one(engine: Engine, stepper: Stepper) -> None:
    with ThreadPoolExecutor(2) as threads:
        long = threads.submit(generate, stepper, [1, 2000])
        while not engine.found:
            time.sleep(0.001)
        assert [output.owner for output in threads.submit(generate, stepper, [2, 3], [3, 5]).result(PATIENCE)] == [2, 3]
        assert not long.done()
        assert {1, 2, 3} in engine.found
        assert [output.owner for output in long.result(PATIENCE)] == [1]


def test_a_prompt_that_is_refused_costs_only_itself(engine: Engine, stepper: Stepper) -> None:
    first, refused, last = generate(stepper, [1, 2], [2, 0], [3, 1])
    assert (first.owner, last.owner) == (1, 3)
    assert isinstance(refused, ValueError) and str(refused) == "nothing to do for 2"
    (alone,) = generate(stepper, [4, 0])
    assert isinstance(alone, ValueError)
    assert not engine.running


def test_nothing_is_generated_of_nothing(engine: Engine, stepper: Stepper) -> None:
    assert generate(stepper) == []
    assert engine.found == []


def test_an_engine_that_breaks_fails_all_who_wait_and_all_who_come(engine: Engine, stepper: Stepper) -> None:
    started = threading.Barrier(3)

    def work(owner: int) -> None:
        started.wait(PATIENCE)
        generate(stepper, [owner, 10**6])

    with ThreadPoolExecutor(2) as threads:
        waiting = [threads.submit(work, owner) for owner in (1, 2)]
        started.wait(PATIENCE)
        while {1, 2} not in engine.found:
            time.sleep(0.001)
        engine.breaks = RuntimeError("no memory")
        for done in waiting:
            with pytest.raises(EngineDied, match="while it was generating: no memory"):
                done.result(PATIENCE)
    with pytest.raises(EngineDied, match="no memory"):
        generate(stepper, [3, 1])
