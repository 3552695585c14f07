"""Open-ended prompts: three forms of files, the reference, and the second turn after the model's own first answer."""

from __future__ import annotations

from typing import Any

import pytest

from ual_ray.benchmarks.benchmark import Question
from ual_ray.benchmarks.open_ended import OpenEnded
from ual_ray.columns import Message
from ual_ray.data.formats import BadRow
from ual_ray.engines.requests import Completion, CompletionResult


def user(text: str) -> Message:
    return Message(role="user", content=text)


def assistant(text: str) -> Message:
    return Message(role="assistant", content=text)


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"prompt": "p", "id": "koala_0"}, Question([user("p")], "file")),
        ({"instruction": "i", "output": "o", "generator": "g"}, Question([user("i")], "file", reference="o")),
        ({"instruction": "i", "input": "x", "output": "o"}, Question([user("i\n\nx")], "file", reference="o")),
        (
            {"instruction": "i", "dataset": "oasst", "output_reference": "r", "output_candidate": "c"},
            Question([user("i")], "oasst", reference="r"),
        ),
        ({"turns": "ab"}, Question([user("ab")], "file")),
        ({"turns": ["a", "b"], "category": "writing"}, Question([user("a"), user("b")], "writing")),
        (
            {"turns": ["a", "b"], "category": "math", "reference": ["r1", "r2"]},
            Question([user("a"), user("b")], "math", reference="r2"),
        ),
        ({"messages": [user("q"), assistant("a")]}, Question([user("q")], "file", reference="a")),
    ],
)
def test_forms(record: Any, expected: Question) -> None:
    assert list(OpenEnded().questions([record], "file")) == [expected]


@pytest.mark.parametrize(
    "record", [{"prompt": ""}, {"turns": []}, {"turns": None}, {"turns": ["a", 3]}, {"instruction": None}, {"x": 1}]
)
def test_what_is_no_prompt_has_a_reason(record: Any) -> None:
    (found,) = OpenEnded().questions([record], "file")
    assert isinstance(found, ValueError)


def test_rows_with_a_gold_answer_are_other_benchmarks() -> None:
    assert OpenEnded().question([user("q"), assistant("a")], "s") == Question([user("q")], "s", reference="a")
    assert OpenEnded().question([user("q"), assistant("#### 3")], "s") is None
    assert OpenEnded().question([user("q"), assistant(r"\boxed{3}")], "s") is None


def test_the_second_turn_follows_the_models_own_first_answer() -> None:
    benchmark = OpenEnded()
    question = Question([Message(role="system", content="s"), user("one"), user("two")])
    assert benchmark.requests(question) == [Completion((("system", "s"), ("user", "one")), 2048, confidence=True)]
    first, second = CompletionResult(("1",), 1, 1), CompletionResult(("2",), 1, 1)
    history = (("system", "s"), ("user", "one"), ("assistant", "1"), ("user", "two"))
    assert benchmark.follow_up(question, [first]) == [Completion(history, 2048, confidence=True)]
    assert benchmark.follow_up(question, [first, second]) == ()
    reading = benchmark.read(question, [first, second])
    assert (reading.prediction, reading.extracted, reading.scores) == ("2", {"turn_1": "1"}, {})


def test_earlier_turns_that_have_their_reply_are_not_asked_again() -> None:
    question = Question([user("q"), assistant("a"), user("r")])
    (request,) = OpenEnded().requests(question)
    assert request == Completion((("user", "q"), ("assistant", "a"), ("user", "r")), 2048, confidence=True)
    assert OpenEnded().follow_up(question, [CompletionResult(("x",), 1, 1)]) == ()


@pytest.mark.parametrize("word", ["nan", "NaN", "<NA>"])
def test_a_missing_value_is_no_question_no_input_and_no_reference(word: str) -> None:
    bad = [{"prompt": word}, {"instruction": word}, {"turns": ["q", word]}]
    assert all(isinstance(found, BadRow) for found in OpenEnded().questions(bad, "file"))
    (found,) = OpenEnded().questions([{"instruction": "q", "input": word, "output": word}], "file")
    assert isinstance(found, Question) and (found.messages[0]["content"], found.reference) == ("q", None)
