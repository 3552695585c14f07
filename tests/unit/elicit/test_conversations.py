"""Rows with several replies are scored as they are trained: every reply that gets the row's alpha counts, by its length."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
from estimator_results import ALL

from ual_ray import columns as col
from ual_ray.columns import Message, Messages, reference_of, with_extra
from ual_ray.config import ElicitConfig, EngineConfig
from ual_ray.data.records import BadRow
from ual_ray.data.turns import checked
from ual_ray.elicit.estimators import Estimate, make_estimators
from ual_ray.elicit.estimators.contract import pairs_of
from ual_ray.elicit.estimators.likelihood import NegativeLogLikelihood, SummedNegativeLogLikelihood
from ual_ray.elicit.scoring import ScoreRows
from ual_ray.elicit.self_check import make_self_check
from ual_ray.engines import EngineSpec, make_engine
from ual_ray.engines.requests import (
    Choice,
    ChoiceResult,
    CompletionResult,
    Failure,
    Likelihood,
    LikelihoodResult,
    Request,
    Result,
    turns,
)


def said(role: str, content: str, **extra: Any) -> Message:
    return with_extra(Message(role=role, content=content), **extra)


def talk(*texts: str) -> list[Message]:
    return [said(("user", "assistant")[at % 2], text) for at, text in enumerate(texts)]


THREE = talk("Q1", "wrong" * 2, "Q2", "right", "Q3", "right")
RATING = make_estimators(ElicitConfig())["verbalized_error"]


def rated(number: int) -> ChoiceResult:
    """A rating of which the elicitor is sure."""
    return ChoiceResult(tuple(0.0 if each == number else -math.inf for each in range(10)), 1)


class ByText:
    """Rates a question 9 where the response that is asked about is wrong, else 0."""

    template_hash = "text"

    def run(self, requests: Sequence[Request]) -> list[Result]:
        shown = [request.prompt[-1][1] for request in requests if isinstance(request, Choice)]
        assert len(shown) == len(requests)
        return [rated(9 if "[Response]\nwrong" in text else 0) for text in shown]


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (("Q", "wrong"), 1.0),
        (("Q", "wrong", "Q", "right"), 0.5),
        (("Q", "right", "Q", "wrong"), 0.5),
        (("Q", "wrong", "Q", "wrong"), 1.0),
        (("Q", "wrongwrong", "Q", "right", "Q", "right"), 0.5),  # 10 of 20 characters
    ],
)
def test_an_error_in_any_reply_that_is_trained_is_in_the_score(texts: tuple[str, ...], expected: float) -> None:
    rows = [{"id": "f" * 16, "messages": talk(*texts)}]
    (row,) = ScoreRows(ElicitConfig(estimators=("verbalized_error",)))(rows, ByText())
    assert row["uncertainty_verbalized_error"] == pytest.approx(expected)
    assert row["raw_verbalized_error"] == pytest.approx(9 * expected)
    assert row[col.RESPONSE_LENGTH] == sum(map(len, texts[1::2])), "of all that alpha is laid on"


@pytest.mark.parametrize("name", ALL)
def test_a_row_of_one_reply_asks_what_its_pair_asks(name: str) -> None:
    estimator, pair = make_estimators(ElicitConfig(estimators=ALL))[name], talk("Q", "A")
    assert [*estimator.asked(pair)] == [*estimator.requests(pair)]


@pytest.mark.parametrize("name", [name for name in ALL if "nll" not in name])
def test_every_reply_is_asked_about_behind_what_was_before_it(name: str) -> None:
    estimator = make_estimators(ElicitConfig(estimators=ALL))[name]
    wanted = [request for end in (2, 4, 6) for request in estimator.requests(THREE[:end])]
    assert [*estimator.asked(THREE)] == wanted and len(set(wanted)) == len(wanted)


@pytest.mark.parametrize("estimator", [NegativeLogLikelihood(), SummedNegativeLogLikelihood()])
def test_the_likelihood_is_of_all_replies_together(estimator: Any) -> None:
    assert [*estimator.asked(THREE)] == [Likelihood(turns(THREE))]
    result = LikelihoodResult(6.0, 4, 9)
    assert estimator.estimate([result], THREE) == estimator.reduce([result], THREE)
    assert [*estimator.asked([*THREE[:5], said("assistant", "no", weight=0)])] == [Likelihood(turns(THREE[:4]))]


def test_a_reply_that_is_not_trained_is_not_scored() -> None:
    masked = [THREE[0], said("assistant", "bad", weight=0), *THREE[2:4], THREE[4], said("assistant", "worse", weight=0)]
    assert [pair[-1]["content"] for pair in pairs_of(masked)] == ["right"]
    assert pairs_of(masked)[0] == [THREE[0], said("assistant", "bad"), *THREE[2:4]]
    rows = [{"id": "f" * 16, "messages": [*talk("Q", "right", "Q"), said("assistant", "wrong", weight=0)]}]
    (row,) = ScoreRows(ElicitConfig(estimators=("verbalized_error",)))(rows, ByText())
    assert (row["uncertainty_verbalized_error"], row[col.RESPONSE_LENGTH]) == (0, 5)


def test_a_greeting_is_read_and_neither_scored_nor_trained() -> None:
    greeting = [said("assistant", "Hello!"), *talk("Q", "A")]
    assert [pair[-1]["content"] for pair in pairs_of(greeting)] == ["A"]
    assert checked(greeting) == greeting
    with pytest.raises(BadRow, match="weight of every reply"):
        checked([said("assistant", "Hello!"), said("user", "Q"), said("assistant", "A", weight=0)])


def test_the_reference_answer_is_shown_with_the_last_reply_alone() -> None:
    messages: Messages = [said("user", "Q1", reference="42"), *THREE[1:4]]
    assert [reference_of(pair) for pair in pairs_of(messages)] == [None, "42"]


def test_a_reply_without_a_score_leaves_the_row_without_one() -> None:
    down = Failure("engine: down")
    assert RATING.estimate([rated(1), down, rated(2)], THREE).uncertainty is None
    no_mass = ChoiceResult((-50.0,) * 10, 1)
    found = RATING.estimate([rated(1), rated(2), no_mass], THREE)
    assert found.uncertainty is None and (found.reason or "").startswith("mass:")
    mean = (10 * 1 + 5 * 2 + 5 * 3) / 20
    assert RATING.estimate([rated(1), rated(2), rated(3)], THREE) == Estimate(mean / 9, mean)


@pytest.mark.parametrize("name", ALL)
def test_every_estimator_scores_conversations(name: str) -> None:
    rows = [{"id": f"{at:016x}", "messages": messages} for at, messages in enumerate((talk("a", "b"), THREE))]
    engine = make_engine(EngineSpec(EngineConfig(kind="fake"), "fake"))
    for row in ScoreRows(ElicitConfig(estimators=(name,), uncertainty=name, samples=4))(rows, engine):
        assert 0 <= row[col.uncertainty_column(name)] <= 1 and row[col.STATUS] == col.STATUS_OK


def test_a_call_of_a_tool_is_compared_by_its_words() -> None:
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
    messages = [said("user", "Weather?"), said("assistant", "", tool_calls=[call])]
    estimator = make_estimators(ElicitConfig(estimators=("self_consistency",), uncertainty="self_consistency"))
    text = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
    result = CompletionResult((text, "I do not know."), 1, 1, finish_reasons=("stop", "stop"))
    assert estimator["self_consistency"].estimate([result], messages).uncertainty == 0.5


def test_the_self_check_scores_the_reply_that_it_swaps() -> None:
    rows = []
    for at in range(25):
        messages = talk("Q", f"first {at}", "Q", f"second {at}")
        rows.append({"id": col.content_id(messages), "source": "s", "split": "train", "given_id": None, "messages": messages})
    check = make_self_check(rows, 20, 0)
    scored = [pairs_of(row["messages"]) for row in check.rows]
    assert all(len(pairs) == 1 and pairs[0][-1]["content"].startswith("second") for pairs in scored)
    differ = {
        row["id"] for row, (pair,) in zip(check.rows, scored, strict=True) if pair[1]["content"][6:] != pair[3]["content"][7:]
    }
    assert differ == check.swapped


THOUGHT = "Is it #### 5, or \\boxed{5}?"


@pytest.mark.parametrize("answer", ["#### 18", "It is eighteen, of course.", "    indented"])
@pytest.mark.parametrize("name", ["verbalized_error", "verbalized_diversity", "p_true", "self_consistency", "semantic_entropy"])
def test_a_thought_in_the_content_is_scored_as_one_next_to_it_is(name: str, answer: str) -> None:
    """The elicitor is shown the response, and its own answers, which have no thought, are compared with that."""
    estimator = make_estimators(ElicitConfig(estimators=(name,), uncertainty=name, samples=2))[name]
    replies = {
        "inline": said("assistant", f"<think>\n{THOUGHT}\n</think>\n\n{answer}"),
        "apart": said("assistant", answer, reasoning_content=THOUGHT),
        "none": said("assistant", answer),
    }
    rows = {way: [*talk("How many?"), reply] for way, reply in replies.items()}
    asked = [[(turns_of(request)) for request in estimator.asked(row)] for row in rows.values()]
    assert asked[0] == asked[1] == asked[2]
    if name == "self_consistency":
        result = CompletionResult((answer, answer), 1, 2)
        assert [estimator.estimate([result], row).uncertainty for row in rows.values()] == [0] * 3


def turns_of(request: Request) -> Any:
    assert not isinstance(request, Likelihood)
    return request.prompt


def test_a_thought_in_the_content_counts_nothing_of_a_replys_length() -> None:
    row = {"id": "a0", "source": "s", "split": "train", "given_id": None}
    replies = (f"<think>{THOUGHT}</think>right", "right")
    scored = [
        ScoreRows(ElicitConfig(estimators=("verbalized_error",), retest_share=0))(
            [row | {"messages": talk("Q", reply)}], ByText()
        )[0]
        for reply in replies
    ]
    assert [one["response_length"] for one in scored] == [5, 5]
