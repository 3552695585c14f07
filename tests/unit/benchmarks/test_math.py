"""Mathematics: marked answers, the order of arguments, and what math-verify makes of both."""

from __future__ import annotations

import math
import sys
from typing import Any

import pytest

from ual_ray.benchmarks import math as benchmark
from ual_ray.benchmarks.benchmark import Question
from ual_ray.benchmarks.math import Math, marked_answer
from ual_ray.columns import Message
from ual_ray.data.formats import BadRow
from ual_ray.engines.requests import CompletionResult
from ual_ray.errors import UserError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"So \boxed{42}.", "42"),
        (r"\boxed{1}, no: \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed {x}", "x"),
        (r"\fbox{3}", "3"),
        (r"\boxed{$5$}", "5"),
        (r"\boxed{never closed", None),
        ("The answer is: 12", "12"),
        ("The answer is: 12.", "12"),
        ("The answer is: $\\frac{3}{4}$", r"\frac{3}{4}"),
        ("the final answer is: x + 1\n", "x + 1"),
        ("The answer is: 1\nThe answer is: 2", "2"),
        ("The answer is: $5$, since 2+3=5.", "5"),
        *[(f"\\boxed{{{text}}}", "12,000") for text in (r"12\,000", "12{,}000", "12\u202f000", "１２,０００")],
        ("\\boxed{\u22123}", "-3"),
        ("\\boxed{x²}", "x^2"),
        (r"The answer is: 1, or \boxed{2}", "2"),
        *[
            (text, "1, 2")
            for text in (
                *(r"\boxed{1} and \boxed{2}", r"The solutions are $\boxed{1}$ or $\boxed{2}$.", r"\fbox{1},\boxed {2}"),
                *(r"$x = \boxed{1}$ or $x = \boxed{2}$", r"\(\boxed{1}\), and \(\boxed{2}\)"),
                r"\boxed{1}\text{ and }\boxed{2}",
            )
        ],
        *[(text, "2") for text in (r"\boxed{1}. No, \boxed{2}", r"\boxed{1} \boxed{2}", r"\boxed{\boxed{2}}")],
        (r"\boxed{2}, \boxed{2}", "2"),
        ("The answer is not known.", None),
        ("#### 7", None),
        ("", None),
    ],
)
def test_marked_answers(text: str, expected: str | None) -> None:
    assert marked_answer(text) == expected


def test_questions_are_rows_with_a_marked_answer() -> None:
    chat = [Message(role="user", content="1/2?"), Message(role="assistant", content=r"It is $\boxed{0.5}$.")]
    assert Math().question(chat, "s") == Question(chat[:1], "s", answer="0.5")
    assert Math().question([chat[0], Message(role="assistant", content="Half.")], "s") is None


def test_maths_own_form_and_metamaths() -> None:
    records: list[Any] = [
        {"problem": "p", "solution": r"so \boxed{3}", "level": "Level 1"},
        {"problem": "p", "solution": r"so \boxed{3}", "answer": "4"},
        {"problem": "p", "answer": 0},
        {"problem": "p", "answer": "\u22123"},
        {"problem": "p", "solution": "none"},
        {"problem": "", "answer": "4"},
        {"query": "q", "response": "#### 5\nThe answer is: 5"},
    ]
    found = list(Math().questions(records, "file"))
    assert [isinstance(one, Question) and one.answer for one in found] == ["3", "4", "0", "-3", False, False, "5"]
    assert all(str(one).startswith("no question") for one in found if isinstance(one, BadRow))


@pytest.mark.parametrize("given", [3, 3.0, "3", ["3"], [3], r"\boxed{3}", "The answer is: 3", "３"])
def test_an_answer_in_a_column_is_read_whatever_its_type(given: Any) -> None:
    (found,) = Math().questions([{"problem": "p", "answer": given}], "file")
    assert isinstance(found, Question) and found.answer == "3"


@pytest.mark.parametrize("given", [["3", "5"], [], {"x": 3}, math.nan, None, ""])
def test_several_answers_and_none_make_a_bad_row(given: Any) -> None:
    (found,) = Math().questions([{"problem": "p", "answer": given}], "file")
    assert isinstance(found, BadRow)


def test_a_marked_answer_is_what_is_compared_and_any_text_where_none_is(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, str]] = []
    monkeypatch.setattr(benchmark, "checker", lambda gold, text: seen.append((gold, text)) or ("7", gold == "7"))
    readings = [Math().read(Question([], answer="7"), [CompletionResult((text,), 1, 1)]) for text in (r"\boxed{8}", "I say 7")]
    assert seen == [("7", r"\boxed{8}"), ("7", "I say 7")]
    assert [reading.extracted for reading in readings] == [{"answer": "8"}, {"answer": "7"}]
    assert readings[0].scores == {"exact_match_math": 1.0}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("gold", "text", "right"),
    [
        *[
            ("18", text, True)
            for text in (
                *(
                    "The answer is **18**. I have 2.",
                    "The answer is: 18 dollars.",
                    "The answer is: **18**.",
                    "**Answer:** *18*.",
                ),
                *(
                    "The answer is: **18**. I have 2.",
                    "The answer is: $18 per day. It is 2 more.",
                    r"\boxed{18 dollars}",
                    "18 eggs",
                ),
                *(r"\boxed{\text{18 dollars}}", "The answer is: 18. And 2 more.", "**The answer is:** 18", "It is 18, not 20."),
            )
        ],
        *[("-3", text, True) for text in ("The answer is: negative 3", "It is minus 3.")],
        *[(r"\frac{1}{2}", text, True) for text in ("The answer is: 1/2 cup", "The answer is **1/2**.", "The answer is: 50%")],
        *[(r"\text{Monday}", text, True) for text in ("The answer is **Monday**.", "The answer is: Monday. It rains.")],
        *[("B", text, True) for text in ("The answer is **B**.", "The answer is: **B**.", "(B)")],
        *[("x+1", text, True) for text in ("The answer is **x + 1**.", "The answer is: *x + 1*", r"\boxed{1+x}")],
        *[("x**2", r"\boxed{x**2}", True), ("6", "The answer is: 2*3*1", True), ("18 dollars", "The answer is: 18", True)],
        *[
            ("18", text, False)
            for text in (
                *(
                    "The answer is not 18.",
                    "The answer is: at least 18",
                    "The answer is 18 or more.",
                    "more than 18",
                    "18 dozen",
                ),
                *(r"\boxed{\text{at least } 18}", "The answer is: 2. I have 18.", "The answer is: 18 or 20", "It isn't 18."),
            )
        ],
        *[
            ("5 cents", "The answer is: 5 dollars", False),
            *[
                (r"5 \text{ minutes}", rf"\boxed{{5\text{{ {unit}}}}}", unit in ("min", "minutes"))
                for unit in ("min", "minutes", "hours", "cm")
            ],
            *[(r"18\text{ cm}", text, False) for text in (r"\boxed{18\text{ m}}", r"\boxed{18\text{ cm}^2}", "It is 18 m.")],
            *[("413_5", rf"\boxed{{{text}}}", True) for text in ("413_{5}", r"413_{\text{five}}", "(413)_5", "413")],
            *[("123_{12}", rf"\boxed{{{text}}}", True) for text in (r"123_\text{twelve}", r"(123)_{\mathrm{twelve}}")],
            *[("(-12)_5", rf"\boxed{{{text}}}", text == "-12_5") for text in ("-12_5", "12_5", "-12_6")],
            *[("413_5", rf"\boxed{{{text}}}", False) for text in ("413_6", "413_{10}", "4135", "412_5", r"413_{\text{six}}")],
            *[("2E_{16}", rf"\boxed{{{text}}}", text == "2E_{16}") for text in ("2E_{16}", "2E_{15}", "2D_{16}")],
            *[(r"10:00\text{ a.m.}", text, True) for text in (r"\boxed{10\text{ am}}", "The answer is: 10 a.m.")],
            (r"\emptyset", r"\boxed{\varnothing}", True),
            *[("1,2", text, True) for text in (r"$\boxed{2}$ and $\boxed{1}$", r"$x=\boxed{1}$ or $x=\boxed{2}$")],
            *[("2", text, False) for text in (r"\boxed{1} and \boxed{2}", r"\boxed{1}, \boxed{2}")],
            (r"x \geq 18", r"\boxed{x \ge 18}", True),
            ("[2,3]", r"\boxed{(2,3)}", False),
            *[(gold, r"\boxed{0.5} or \boxed{50\%}", gold != "0.05") for gold in (r"50\%", "0.5", r"\frac{1}{2}", "0.05")],
            *[
                ("[2,5)", rf"\boxed{{{text}}}", text == r"2 \le x < 5")
                for text in (r"2 \le x < 5", "2 < x < 5", r"2 \le x < 6")
            ],
            *[("18", text, True) for text in (r"\boxed{\text{eighteen}}", "The answer is: eighteen.")],
        ],
    ],
)
def test_an_answer_with_marks_words_and_sentences_around_it(gold: str, text: str, right: bool) -> None:
    reading = Math().read(Question([], answer=gold), [CompletionResult((text,), 1, 1)])
    assert reading.scores == {"exact_match_math": float(right)}


def test_without_the_library_the_user_is_told_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(UserError, match="pip install"):
        Math().check()
