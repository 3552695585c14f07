"""What every benchmark does with the further columns of a row, whatever its format."""

from __future__ import annotations

from typing import Any

import pytest

from ual_ray.benchmarks import BENCHMARKS
from ual_ray.benchmarks.benchmark import Benchmark, Question
from ual_ray.columns import extra_of
from ual_ray.config import BenchmarkConfig
from ual_ray.data.formats import BadRow
from ual_ray.engines.requests import CompletionResult

CHOICES = {"text": ["a", "b"], "label": ["A", "B"]}
ROWS: list[tuple[str, dict[str, Any]]] = [
    ("gsm8k", {"question": "q", "answer": "#### 4"}),
    ("math", {"problem": "q", "answer": "4"}),
    ("math", {"query": "q", "response": "The answer is: 4"}),
    ("open_ended", {"prompt": "q"}),
    ("open_ended", {"instruction": "q"}),
    ("open_ended", {"turns": ["q", "r"]}),
    ("open_ended", {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}),
    ("multiple_choice", {"question": "q", "choices": CHOICES, "answerKey": "B"}),
    ("multiple_choice", {"ctx": "q", "endings": ["a", "b"], "label": 1}),
    ("held_out", {"instruction": "q", "output": "a"}),
]
TOOLS = [{"name": "f"}]


def read(kind: str, row: dict[str, Any], **columns: str) -> Question | BadRow:
    (found,) = benchmark_of(kind, **columns).questions([row], "file")
    return found


def benchmark_of(kind: str, **columns: str) -> Benchmark:
    return BENCHMARKS[kind](BenchmarkConfig(kind=kind, columns=columns))


@pytest.mark.parametrize(("kind", "row"), ROWS)
def test_what_a_row_has_in_columns_is_asked_with_it(kind: str, row: dict[str, Any]) -> None:
    question = read(kind, row | {"system": "Be brief.", "tools": TOOLS, "note": "A fact."}, context="note")
    assert isinstance(question, Question)
    assert [(turn["role"], turn["content"]) for turn in question.messages[:2]] == [
        ("system", "Be brief."),
        ("user", "A fact.\n\nq"),
    ]
    assert "tools" in extra_of(question.messages[0])


@pytest.mark.parametrize(("kind", "row"), ROWS)
@pytest.mark.parametrize("column", ["context", "passage", "system_prompt", "image"])
def test_a_column_without_which_a_question_makes_no_sense_is_named(kind: str, row: dict[str, Any], column: str) -> None:
    found = read(kind, row | {column: "x"})
    assert isinstance(found, BadRow) and str(found).startswith(f"a column that is not read: {column}")
    assert isinstance(read(kind, row | {column: None}), Question)


def test_questions_that_differ_in_their_tools_alone_are_two() -> None:
    kind, row = ROWS[0]
    found = [read(kind, row | tools) for tools in ({}, {"tools": TOOLS}, {"tools": [{"name": "g"}]})]
    assert len({benchmark_of(kind).identify("x", one) for one in found if isinstance(one, Question)}) == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "behind"),
    [
        *(
            (f"{opening}Is it #### 5, so \\boxed{{5}}?{close}", "")
            for opening, close in (("<think>\n", "\n</think>\n\n"), ("", "</think>"))
        ),
        ("[THINK]#### 5[/THINK]", ""),
        ("<|channel|>analysis<|message|>#### 5<|end|><|start|>assistant<|channel|>final<|message|>", ""),
        ("analysisIs it #### 5?assistantfinal", ""),
        ("", " Between <think> and </think> it thinks."),
        ("", " `</think>` ends a thought."),
    ],
)
@pytest.mark.parametrize(
    ("kind", "metric"), [("gsm8k", "exact_match_strict"), ("math", "exact_match_math"), ("open_ended", None)]
)
def test_an_answer_is_read_without_the_thought_that_it_starts_with(
    kind: str, metric: str | None, before: str, behind: str
) -> None:
    answer = f"It is \\boxed{{18}}.\n#### 18{behind}"
    reading = benchmark_of(kind).read(Question([], answer="18"), [CompletionResult((before + answer,), 1, 1)])
    assert reading.prediction == answer
    assert metric is None or reading.scores[metric] == 1


@pytest.mark.parametrize("kind", ["gsm8k", "math", "open_ended"])
def test_a_thought_that_does_not_end_is_no_answer(kind: str) -> None:
    reading = benchmark_of(kind).read(
        Question([], answer="18"), [CompletionResult(("<think>\nIs it \\boxed{18}? #### 18",), 1, 1)]
    )
    assert reading.prediction == "" and not any(reading.scores.values())
