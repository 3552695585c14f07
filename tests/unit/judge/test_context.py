"""The context of a judge follows from its pairs: long answers are not left out."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ual_ray import columns as col
from ual_ray.config import Config, EngineConfig
from ual_ray.judge import stage
from ual_ray.judge.pairs import LOOKED_AT, needed_context
from ual_ray.judge.task import JudgeRows

# One token per character, and five of the template.
RENDERER = cast(Any, SimpleNamespace(prompt_ids=lambda messages, thinking: [0] * (5 + len(messages[-1]["content"]))))


def pair(length: int) -> dict[str, Any]:
    said = {col.TEXT_CANDIDATE: "a" * length, col.TEXT_REFERENCE: "b", col.CANDIDATE_FIRST: True}
    return {col.ID: "x", col.MESSAGES: [{"role": "user", "content": "q"}], **said}


@given(st.lists(st.integers(0, 300), max_size=2 * LOOKED_AT), st.integers(1, 40))
def test_the_longest_prompt_and_its_reply_fit(lengths: list[int], reply: int) -> None:
    needed = needed_context([(("user", "x" * length),) for length in lengths], reply, RENDERER)
    assert needed == (5 + max(lengths) + reply if lengths else 0)


@pytest.mark.parametrize(("mode", "thinking", "room"), [("logprobs", 0, 1), ("sampled", 0, 32), ("logprobs", 100, 132)])
def test_a_verdict_has_room_for_its_thought(mode: Any, thinking: int, room: int) -> None:
    assert JudgeRows("m", mode, thinking_tokens=thinking).longest_reply == room


@pytest.mark.parametrize(
    ("configured", "made_for", "expected"),
    [(100, 8192, "all"), (100_000, 8192, 100_000), (100, 1500, 1500), (100, None, "all")],
)
def test_the_context_is_what_the_longest_pair_needs(
    configured: int, made_for: int | None, expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "resolve_model", lambda name: name)
    monkeypatch.setattr(stage, "load_renderer", lambda *arguments: RENDERER)
    monkeypatch.setattr(stage, "longest_context", lambda *arguments: made_for)
    task, rows, said = JudgeRows("m"), [pair(10), pair(3000)], list[str]()
    engine = EngineConfig(kind="vllm", max_model_len=configured)
    found = stage._with_context(Config(), engine, "m", task, rows, said.append)
    longest = 5 + max(len(prompt[-1][1]) for prompt in task.prompts(rows)) + 1
    assert found.max_model_len == (longest if expected == "all" else expected)
    assert bool(said) == (found.max_model_len > configured)


def test_a_server_keeps_its_own_context() -> None:
    engine = EngineConfig(kind="fake", max_model_len=16)
    assert stage._with_context(Config(), engine, "m", JudgeRows("m"), [pair(3000)], print) is engine
