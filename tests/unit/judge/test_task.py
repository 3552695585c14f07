"""The judge's task: order, log-probabilities, sampled verdicts, what is missing."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ual_ray import columns as col
from ual_ray.columns import digest
from ual_ray.config import EngineConfig
from ual_ray.engines import EngineSpec, make_engine
from ual_ray.engines.reading import choice_probabilities
from ual_ray.engines.reply_text import Unread
from ual_ray.engines.requests import Choice, ChoiceResult, Completion, CompletionResult, Failure, Request, Result, overlong
from ual_ray.errors import UserError
from ual_ray.judge.pairs import LETTERS, as_text, load_judge_prompts
from ual_ray.judge.task import RETRIES, JudgeRows, preference_of_candidate

Row = dict[str, Any]
GOOD, BAD = "The good answer.", "The bad answer."


class Judge:
    """Answers with a function of the request, and remembers what it was asked."""

    template_hash = "counted"

    def __init__(self, answer: Callable[[Request], Result]) -> None:
        self._answer = answer
        self.seen: list[Request] = []

    def run(self, requests: Sequence[Request]) -> list[Result]:
        self.seen += requests
        return [self._answer(request) for request in requests]


def row(identity: str = "a", *, candidate_first: bool = True, candidate: str = GOOD, reference: str = BAD) -> Row:
    return {
        "id": identity,
        "benchmark": "chat",
        "messages": [{"role": "user", "content": "Say something good."}],
        "candidate": "ual",
        "reference": "sft",
        "text_candidate": candidate,
        "text_reference": reference,
        "length_candidate": len(candidate),
        "length_reference": len(reference),
        "candidate_first": candidate_first,
    }


def by_taste(share: float) -> Callable[[Request], Result]:
    """Give the good answer this probability, wherever it is shown."""

    def answer(request: Request) -> Result:
        assert isinstance(request, Choice)
        text = request.prompt[-1][1]
        first = share if text.index(GOOD) < text.index(BAD) else 1 - share
        # Half of the mass is on other tokens.
        return ChoiceResult((math.log(first / 2), math.log((1 - first) / 2)), prompt_tokens=40)

    return answer


# --- log-probabilities -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("candidate_first", [True, False])
@pytest.mark.parametrize("candidate_is_good", [True, False])
def test_the_preference_is_the_candidates_in_both_orders(candidate_first: bool, candidate_is_good: bool) -> None:
    texts = {"candidate": GOOD, "reference": BAD} if candidate_is_good else {"candidate": BAD, "reference": GOOD}
    engine = Judge(by_taste(0.8))
    (judged,) = JudgeRows("big")([row(candidate_first=candidate_first, **texts)], engine)
    assert judged["preference"] == pytest.approx(1.8 if candidate_is_good else 1.2)
    assert (judged["status"], judged["error"], judged["judge"]) == ("ok", None, "big")
    (asked,) = engine.seen
    assert isinstance(asked, Choice) and asked.choices == ("m", "M")
    shown = asked.prompt[-1][1]
    assert (shown.index(texts["candidate"]) < shown.index(texts["reference"])) == candidate_first


def test_a_judge_that_takes_the_first_prefers_by_order_alone() -> None:
    engine = Judge(lambda request: ChoiceResult((math.log(0.9), math.log(0.1)), prompt_tokens=1))
    rows = [row("a", candidate_first=True), row("b", candidate_first=False)]
    assert [one["preference"] for one in JudgeRows("big")(rows, engine)] == pytest.approx([1.9, 1.1])


@given(first=st.floats(-700, 0), second=st.floats(-700, 0))
def test_the_two_orders_mirror_each_other(first: float, second: float) -> None:
    share = choice_probabilities(ChoiceResult((first, second), prompt_tokens=1), LETTERS, 0.0)
    swapped = choice_probabilities(ChoiceResult((second, first), prompt_tokens=1), LETTERS, 0.0)
    assert not isinstance(share, Unread) and not isinstance(swapped, Unread)
    assert share[0] + swapped[0] == pytest.approx(1)
    # AlpacaEval: m is the reference, shown first.
    m, big_m = math.exp(first - max(first, second)), math.exp(second - max(first, second))
    assert preference_of_candidate(share[0], candidate_first=False) == pytest.approx(2 - m / (m + big_m))
    assert preference_of_candidate(share[0], candidate_first=True) == pytest.approx(1 + m / (m + big_m))


CUT_REPLY = CompletionResult(("m",), 5, 2, finish_reasons=("length",))


@pytest.mark.parametrize(
    ("mode", "answer", "error", "asked"),
    [
        ("logprobs", ChoiceResult((-math.inf, -math.inf), prompt_tokens=7), "mass:", 1),
        ("logprobs", ChoiceResult((-30.0, -33.0), prompt_tokens=1), "mass: ", 1),
        ("logprobs", overlong(2000, 1024), "overlong: 2000 tokens", 1),
        ("sampled", CompletionResult(("no idea",), 5, 2), "unparsable:", 1 + RETRIES),
        ("sampled", CUT_REPLY, "cut: ", 1),
        ("sampled", Failure("engine: away"), "engine: away", 1),
    ],
)
def test_a_verdict_that_is_not_known_is_missing_and_says_why(mode: Any, answer: Result, error: str, asked: int) -> None:
    engine = Judge(lambda request: answer)
    (judged,) = JudgeRows("big", mode)([row()], engine)
    assert (judged["preference"], judged["status"], len(engine.seen)) == (None, "quarantined", asked)
    assert judged["error"].startswith(error)
    assert judged["prompt_tokens"] == asked * answer.prompt_tokens
    assert judged["mass"] == (answer.mass if isinstance(answer, ChoiceResult) else None)
    assert judged["finish"] == ("length" if answer is CUT_REPLY else None)


# --- sampled ---------------------------------------------------------------------------------------------------------


def saying(*texts: str) -> Judge:
    said = iter(texts)
    return Judge(lambda request: CompletionResult((next(said),), prompt_tokens=5, generated_tokens=2))


@pytest.mark.parametrize(("text", "expected"), [("m", 2.0), (" M.", 1.0), ("**M**", 1.0), ("Reply m is better", 2.0)])
def test_a_sampled_verdict(text: str, expected: float) -> None:
    engine = saying(text)
    (judged,) = JudgeRows("big", "sampled")([row()], engine)
    assert (judged["preference"], judged["prompt_tokens"]) == (expected, 5)
    (asked,) = engine.seen
    assert isinstance(asked, Completion) and asked.temperature == 0


def test_an_unreadable_verdict_is_asked_for_again_with_another_seed() -> None:
    engine = saying("Hm?", "Well ...", "M")
    (judged,) = JudgeRows("big", "sampled", seed=3)([row()], engine)
    assert (judged["preference"], judged["status"], judged["prompt_tokens"]) == (1.0, "ok", 15)
    asked = [request for request in engine.seen if isinstance(request, Completion)]
    assert len({(request.temperature, request.seed) for request in asked}) == 3


# --- rows ------------------------------------------------------------------------------------------------------------


def test_the_columns_are_the_schemas() -> None:
    engine = make_engine(EngineSpec(EngineConfig(kind="fake"), "fake-model"))
    rows = [row(digest(number), candidate_first=bool(number % 2)) for number in range(6)]
    judged = JudgeRows("big", engine_digest="e")(rows, engine)
    assert (
        pa.Table.from_pylist([{name: one[name] for name in col.VERDICTS.names} for one in judged], schema=col.VERDICTS).num_rows
        == 6
    )
    assert [one["id"] for one in judged] == [one["id"] for one in rows]
    assert all(1 <= one["preference"] <= 2 and one["engine_digest"] == "e" for one in judged)
    assert JudgeRows("big")([], engine) == []


def test_equal_pairs_are_asked_once() -> None:
    engine = Judge(by_taste(0.7))
    judged = JudgeRows("big")([row("a"), row("b")], engine)
    assert len(engine.seen) == 1
    assert judged[0]["preference"] == judged[1]["preference"]


def test_the_task_travels() -> None:
    task = pickle.loads(pickle.dumps(JudgeRows("big", "sampled", seed=3)))
    assert task == JudgeRows("big", "sampled", seed=3)


# --- prompts ---------------------------------------------------------------------------------------------------------


def test_earlier_turns_are_shown_to_the_judge() -> None:
    turns = [("user", "Name a colour."), ("assistant", "Blue."), ("user", "Another.")]
    one = row() | {"messages": [{"role": role, "content": content} for role, content in turns]}
    engine = Judge(by_taste(0.5))
    JudgeRows("big")([one], engine)
    assert isinstance(engine.seen[0], Choice)
    assert "User: Name a colour.\n\nAssistant: Blue.\n\nUser: Another." in engine.seen[0].prompt[-1][1]


def test_own_earlier_answers_stand_before_the_last() -> None:
    engine = Judge(by_taste(0.5))
    JudgeRows("big")([row() | {"earlier_candidate": "Assistant: Early.\n\nUser: More?\n\nAssistant: "}], engine)
    assert isinstance(engine.seen[0], Choice)
    assert f"[Reply m]\nAssistant: Early.\n\nUser: More?\n\nAssistant: {GOOD}" in engine.seen[0].prompt[-1][1]


def test_braces_in_answers_stay_as_they_are() -> None:
    engine = Judge(by_taste(0.5))
    JudgeRows("big")([row(candidate=f"{{first}} {GOOD}", reference=f"{{}} {BAD}")], engine)
    assert isinstance(engine.seen[0], Choice)
    assert f"{{first}} {GOOD}" in engine.seen[0].prompt[-1][1]


def test_a_single_turn_is_not_named() -> None:
    assert as_text([{"role": "user", "content": "Hi."}]) == "Hi."


def test_a_template_of_ones_own_replaces_the_prompt_and_changes_the_hash(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("version: 7\ncomparison: 'Q {conversation} 1 {first} 2 {second}?'\n")
    engine = Judge(by_taste(0.5))
    (judged,) = JudgeRows("big", templates=str(path))([row()], engine)
    assert isinstance(engine.seen[0], Choice)
    assert engine.seen[0].prompt == (("user", f"Q Say something good. 1 {GOOD} 2 {BAD}?"),)
    mine, own = load_judge_prompts(str(path)), load_judge_prompts()
    assert mine.hash != own.hash
    assert judged["prompt_hash"] == digest({"prompts": mine.hash, "chat_template": "counted"})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("comparison: 'Which? {first} {second}'", "placeholders"),
        ("comparison: '{conversation} {first} {second} {'", "not a template"),
        ("question: x", "unknown keys"),
        ("comparison: 3", "comparison of .* has another type"),
        ("- a", "not a mapping"),
        ("a: [", "cannot be read"),
    ],
)
def test_a_template_that_will_not_do(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=f"judge.templates.*{message}"):
        load_judge_prompts(str(path))


def test_a_template_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="judge.templates cannot be read"):
        load_judge_prompts(str(tmp_path / "none.yaml"))
