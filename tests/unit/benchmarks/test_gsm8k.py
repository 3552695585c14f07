"""Reading numbers out of answers."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ual_ray.benchmarks.benchmark import Question
from ual_ray.benchmarks.gsm8k import EXAMPLES, Gsm8k
from ual_ray.columns import Message
from ual_ray.config import BenchmarkConfig
from ual_ray.data.answers import extract_flexible, extract_strict, normalise_number, same_number
from ual_ray.data.demo import ends_in, equations_hold
from ual_ray.data.formats import BadRow
from ual_ray.engines.requests import Completion, CompletionResult


@pytest.mark.parametrize(
    ("text", "strict", "flexible"),
    [
        ("#### 42", "42", "42"),
        ("####42", "42", "42"),
        ("#### 1,234", "1234", "1234"),
        ("#### 1,234,567.", "1234567", "1234567"),
        ("#### -3.", "-3", "-3"),
        ("#### $5", "5", "5"),
        ("#### -$5", "-5", "-5"),
        ("#### $-5", "-5", "-5"),
        ("#### $1,000.50", "1000.50", "1000.50"),
        ("####\n7", "7", "7"),
        ("3 + 4 = 7\n#### 7", "7", "7"),
        ("#### 7 and then #### 8", "7", "8"),
        ("#### none\n#### 8", "8", "8"),
        ("#### 7\nNo, it is 9 after all.", "7", "9"),
        ("It costs $5", None, "5"),
        ("The answer is 12.", None, "12"),
        ("From 3 apples, 2, 1.", None, "1"),
        ("2.50 dollars", None, "2.50"),
        ("50%", None, "50"),
        ("#### **7**", None, "7"),
        ("### 7", None, "7"),
        ("#### seven", None, None),
        ("#### 18.00", "18.00", "18.00"),
        ("#### １８", "18", "18"),
        ("#### ١٨", "١٨", "١٨"),
        ("#### 12{,}000", "12000", "12000"),
        ("#### 1/2", "1/2", "1/2"),
        ("so 9/16 of it", None, "9/16"),
        (r"#### \frac{1}{2}", "1/2", "1/2"),
        ("#### ½", "1/2", "1/2"),
        ("#### 3\n\\frac{1}{2}", "3", "1/2"),
        ("48/2 = 24", None, "24"),
        ("on 1/2/2024", None, "2024"),
        ("#### \u22125", "-5", "-5"),
        ("#### 1e3", "1e3", "1e3"),
        ("#### 3 1/2", "7/2", "7/2"),
        ("#### 3½", "7/2", "7/2"),
        (r"#### -\frac12", "-1/2", "-1/2"),
        (r"#### 12\,000", "12000", "12000"),
        ("#### 12\u00a0000", "12000", "12000"),
        ("#### 2.5 million", "2500000", "2500000"),
        ("#### 2 hundred thousand", "200000", "200000"),
        ("#### +5", "5", "5"),
        ("#### €18", "18", "18"),
        (r"#### \$ 18", "18", "18"),
        ("#### 50%", "50", "50"),
        ("#### 18 (20 - 2)", "18", "2"),
        ("18-20", None, "20"),
        ("5²", None, "2"),
        # Not numbers, and no number can be read out of them.
        *[(f"#### {text}", None, last) for text, last in (("2,5", "5"), ("7:30", "30"), ("18-20", "20"), ("18 - 20", "20"))],
        *[(f"#### {text}", None, last) for text, last in (("5 + 3", "3"), ("10^3", "3"), ("18k", "18"), ("18 to 20", "20"))],
        *[(f"#### {text}", None, last) for text, last in (("01/05/2020", "2020"), ("1.234.567", ".567"))],
        *[
            (f"#### {text}", number, number)
            for text, number in (("12 000", "12000"), ("1 800 000", "1800000"), ("$1 800", "1800"))
        ],
        *[(f"#### {text}", "18000", "18000") for text in ("18_000", "18 , 000", "18, 000", "$18_000.")],
        *[(f"#### {text}", None, last) for text, last in (("18 , 500", "500"), ("18, 500", "500"), ("$11-$11.", "11"))],
        *[
            (f"#### {text}", None, last)
            for text, last in (("18-$20", "20"), ("$18 - $20", "20"), ("18 ~ 20", "20"), ("18 x 3", "3"))
        ],
        *[(f"#### {text}", None, "18") for text in ("18 k", "18M", "18K", "18 bn")],
        *[
            (f"#### {text}", "18", last)
            for text, last in (("18, 20", "20"), ("18 and 20", "20"), ("18 m", "18"), ("18 - all", "18"))
        ],
        ("12 0000", None, "0000"),
        # A blank between two numbers, or between thousands: with a word behind, both are numbers, as in lm-evaluation-harness.
        *[
            (f"{text}s", None, last)
            for text, last in (("3 100 dollar bill", "100"), ("5 200-gram bar", "200"), ("2 500ml jar", "500"))
        ],
        *[
            (text, None, last)
            for text, last in (("12 000 people", "12000"), ("12 050 men", "12050"), ("1 800 500 men", "1800500"))
        ],
        *[
            (f"#### 12 500 {unit}", "12500", "12500")
            for unit in ("euros", "dollars each", "feet.", "grams of flour", "kilometres per hour", "days (about)")
        ],
        *[(text, None, "3100") for text in ("It is 3 100.", "It is 3 100", "3 100 (all)", "3 100\nis right")],
        ("no number", None, None),
        ("", None, None),
        ("-", None, None),
        ("$", None, None),
    ],
)
def test_extraction(text: str, strict: str | None, flexible: str | None) -> None:
    assert extract_strict(text) == strict
    assert extract_flexible(text) == flexible


def as_the_harness_reads(text: str, pattern: str, place: int) -> str | None:
    """Extract as task gsm8k of lm-evaluation-harness does (version 3.0: regexes, take_first, regexes_to_ignore)."""
    groups = [found if isinstance(found, str) else next(filter(None, found)) for found in re.findall(pattern, text)]
    if not groups:
        return None
    found = groups[place].strip()
    for ignored in (",", r"\$", r"(?s).*#### ", r"\.$"):
        found = re.sub(ignored, "", found)
    return found


@pytest.mark.parametrize(
    ("text", "gold", "strict", "flexible"),
    [
        *[(text, "18", True, True) for text in ("#### 18", "#### 18.", "#### 18\nYes, 18.", "2 and #### 18 dollars")],
        *[(text, "18", True, True) for text in ("It is 18", "It is $18.", "**18**", "18 of 20", "#### -18", "#### eighteen")],
        *[("#### 1,800", "1800", True, True), ("They are 3 100 dollar bills", "100", True, True)],
        # What the documents list.
        *[("#### 18.00", "18", False, False), ("#### 18...", "18", False, False), ("It is 18...", "18", True, False)],
        *[("####18", "18", False, True), ("#### $18", "18", False, True)],
        *[("#### 12 000", "12000", False, False), ("#### 1/2", "2", True, False), ("#### 1/2", "1", False, True)],
    ],
)
def test_the_differences_from_the_harness_are_those_that_the_documents_list(
    text: str, gold: str, strict: bool, flexible: bool
) -> None:
    """strict, flexible: whether both count the answer alike."""
    harness = (
        as_the_harness_reads(text, r"#### (\-?[0-9\.\,]+)", 0) == gold,
        as_the_harness_reads(text, r"(-?[$0-9.,]{2,})|(-?[0-9]+)", -1) == gold,
    )
    ours = same_number(extract_strict(text), gold), same_number(extract_flexible(text), gold)
    assert tuple(one == other for one, other in zip(ours, harness, strict=True)) == (strict, flexible)


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        *[("18.00", "18", True), ("18", "18", True), ("1/2", "0.5", True), ("1/2", "1", False), ("١٨", "18", True)],
        *[("18.01", "18", False), (None, "18", False), (None, None, False), ("1/0", "1", False), ("1/0", "1/0", True)],
        *[("1e3", "1000", True), ("7/2", "3.5", True), ("1e3", "100", False)],
    ],
)
def test_numbers_are_compared_by_value(first: str | None, second: str | None, same: bool) -> None:
    assert same_number(first, second) is same


def test_a_number_without_a_leading_zero_is_not_read_as_another() -> None:
    """'.5' may be '.5' or nothing, but it is not 5."""
    assert extract_strict("#### .5") in (None, ".5", "0.5")
    assert extract_flexible("the answer is .5") in (None, ".5", "0.5")


@pytest.mark.parametrize(
    ("number", "expected"),
    [("1,234.", "1234"), ("$ 5", "5"), ("5.0", "5.0"), ("-$1,000.50", "-1000.50"), ("7...", "7")],
)
def test_normalise(number: str, expected: str) -> None:
    assert normalise_number(number) == expected


@given(
    number=st.integers(-(10**12), 10**12),
    before=st.text(st.characters(exclude_categories=["Nd"], exclude_characters="#-$")),
)
def test_any_integer_is_found_however_it_is_written(number: int, before: str) -> None:
    for written in (f"{number}", f"{number:,}", f"{number:,}.", f"${number}"):
        assert extract_strict(f"{before}\n#### {written}") == str(number)
        assert extract_flexible(f"{before} {written}") == str(number)


# --- the benchmark ---------------------------------------------------------------------------------------------------


def pair(question: str, answer: str) -> list[Message]:
    return [Message(role="user", content=question), Message(role="assistant", content=answer)]


def test_a_question_is_what_comes_before_the_marked_number() -> None:
    benchmark = Gsm8k()
    assert benchmark.question(pair("q", "It is 7."), "s") is None
    question = benchmark.question(pair("q", "1,000 + 1 = 1001\n#### 1,001"), "s")
    assert question == Question([Message(role="user", content="q")], "s", answer="1001")
    (request,) = benchmark.requests(question)
    assert request == Completion((("user", "q"),), 1024, confidence=True)


def test_five_shots_are_turns_between_the_system_message_and_the_question() -> None:
    benchmark = Gsm8k(BenchmarkConfig(kind="gsm8k", shots=5, max_new_tokens=9))
    system = Message(role="system", content="Be brief.")
    question = benchmark.question([system, *pair("q", "#### 7")], "s")
    assert question is not None
    (request,) = benchmark.requests(question)
    assert isinstance(request, Completion) and request.max_tokens == 9
    assert [role for role, _ in request.prompt] == ["system", *["user", "assistant"] * 5, "user"]
    assert request.prompt[-1] == ("user", "q")


@pytest.mark.parametrize(("question", "answer"), EXAMPLES)
def test_the_worked_examples_are_right_and_end_in_their_number(question: str, answer: str) -> None:
    assert ends_in(answer, str(extract_strict(answer)))
    assert equations_hold(answer)
    assert extract_strict(answer) == extract_flexible(answer)


@pytest.mark.parametrize(
    ("said", "strict", "flexible"),
    [("#### 7", 1.0, 1.0), ("I think it is $7.", 0.0, 1.0), ("#### 7, or 8", 1.0, 0.0), ("no idea", 0.0, 0.0)],
)
def test_both_extractions_are_scored_and_an_answer_without_a_number_is_wrong(said: str, strict: float, flexible: float) -> None:
    result = CompletionResult((said,), 4, 2, 1, 2 * math.log(0.5), 2)
    reading = Gsm8k().read(Question([], answer="7"), [result])
    assert reading.scores == {"exact_match_strict": strict, "exact_match_flexible": flexible}
    assert reading.prediction == said
    assert reading.confidence == pytest.approx(0.5)
    assert reading.extracted == {"strict": extract_strict(said), "flexible": extract_flexible(said)}


def test_records_of_a_file_are_questions_or_have_a_reason() -> None:
    records = [
        {"question": "q", "answer": "1 + 1 = 2\n#### 2"},
        {"question": "q", "answer": "Two."},
        {"query": "q", "response": "#### 3"},
        {"text": "q"},
        BadRow("not JSON"),
    ]
    found = list(Gsm8k().questions(records, "file"))
    assert [isinstance(one, Question) and (one.answer, one.source) for one in found] == [
        ("2", "file"),
        False,
        ("3", "file"),
        0,
        0,
    ]
    assert [str(one).split(":")[0] for one in found if isinstance(one, BadRow)] == ["no question", "unknown format", "not JSON"]


def test_columns_of_other_names_are_renamed() -> None:
    config = BenchmarkConfig(kind="gsm8k", columns={"question": "frage", "answer": "antwort"})
    (question,) = Gsm8k(config).questions([{"frage": "q", "antwort": "#### 4", "answer": "#### 5"}], "file")
    assert isinstance(question, Question) and question.answer == "4"


def test_the_id_is_the_same_for_every_model_and_another_for_another_question_or_setting() -> None:
    def identity(name: str = "g", text: str = "q", answer: str = "7", **settings: Any) -> str:
        benchmark = Gsm8k(BenchmarkConfig(kind="gsm8k", **settings))
        return benchmark.identify(name, Question([Message(role="user", content=text)], "s", answer))

    assert identity() == identity(path="elsewhere", max_rows=3)
    others = [identity("h"), identity(text="r"), identity(answer="8"), identity(shots=5), identity(max_new_tokens=9)]
    assert len({identity(), *others}) == 6
