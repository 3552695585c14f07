"""Multiple choice: forms of files, the two choices by likelihood, the chosen one's share."""

from __future__ import annotations

import math
from typing import Any

import pytest

from ual_ray.benchmarks.benchmark import Question
from ual_ray.benchmarks.multiple_choice import MultipleChoice, share
from ual_ray.columns import Message
from ual_ray.engines.requests import Likelihood, LikelihoodResult

ARC = {"id": "x", "question": "Why?", "choices": {"text": ["So.", "Because it is."], "label": ["A", "B"]}, "answerKey": "B"}
HELLASWAG = {
    "ctx": "A man [header] sits.  He",
    "endings": ["stands.", "sits [x] down."],
    "label": "0",
    "activity_label": "Rest",
}


def test_the_forms_of_arc_and_hellaswag() -> None:
    arc, numbered, hellaswag = MultipleChoice().questions(
        [ARC, ARC | {"choices": {"text": ["a", "b"], "label": ["1", "2"]}, "answerKey": "1"}, HELLASWAG], "file"
    )
    assert arc == Question([Message(role="user", content="Why?")], "file", "1", ("So.", "Because it is."))
    assert isinstance(numbered, Question) and numbered.answer == "0"
    asked = [Message(role="user", content="Rest: A man sits. He")]
    assert hellaswag == Question(asked, "file", "0", ("stands.", "sits down."))


@pytest.mark.parametrize(
    "record",
    [
        ARC | {"answerKey": "C"},
        ARC | {"choices": ["a", "b"]},
        ARC | {"choices": {"text": ["a", "a"], "label": ["A", "B"]}},
        ARC | {"choices": {"text": ["a", ""], "label": ["A", "B"]}},
        ARC | {"choices": {"text": ["a"], "label": ["B"]}},
        ARC | {"choices": {"text": ["a", 3], "label": ["A", "B"]}},
        ARC | {"question": " "},
        HELLASWAG | {"label": ""},
        HELLASWAG | {"label": "2"},
        HELLASWAG | {"label": None},
        {"question": "q", "answer": "a"},
    ],
)
def test_what_is_no_question_has_a_reason(record: Any) -> None:
    (found,) = MultipleChoice().questions([record], "file")
    assert isinstance(found, ValueError) and str(found)


def test_a_conversation_has_no_choices() -> None:
    assert MultipleChoice().question([Message(role="user", content="q"), Message(role="assistant", content="a")], "s") is None


def test_each_choice_is_a_reply_of_its_own() -> None:
    question = Question([Message(role="user", content="Why?")], choices=("a", "b"))
    asked = (("user", "Why?"),)
    assert MultipleChoice().requests(question) == [
        Likelihood((*asked, ("assistant", "a")), last_reply_only=True, content_only=True),
        Likelihood((*asked, ("assistant", "b")), last_reply_only=True, content_only=True),
    ]


def test_by_sum_the_short_choice_wins_and_by_length_the_long_one() -> None:
    question = Question([], answer="1", choices=("ab", "abcdefgh"))
    reading = MultipleChoice().read(question, [LikelihoodResult(2.0, 1, 5), LikelihoodResult(4.0, 4, 5)])
    assert reading.extracted == {"summed": "0", "normalised": "1"}
    assert reading.scores == {"accuracy": 0.0, "accuracy_normalised": 1.0}
    assert reading.prediction == "ab"
    assert reading.confidence == pytest.approx(math.exp(-2) / (math.exp(-2) + math.exp(-4)))


def test_shares_add_up_to_one_however_unlikely_the_choices() -> None:
    values = [-5000.0, -5001.0, -5003.0]
    assert sum(share(values, at) for at in range(3)) == pytest.approx(1)
    assert share([-1.0, -1.0], 0) == 0.5
