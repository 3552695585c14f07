"""The embedded sample: half open-ended, half arithmetic that is right."""

from __future__ import annotations

import re
from fractions import Fraction
from itertools import islice

import pytest

from ual_ray import columns as col
from ual_ray.columns import Messages
from ual_ray.data.demo import (
    DETERMINISTIC,
    LONGEST_WORKED_ANSWER,
    OPEN_ENDED,
    deterministic_rows,
    open_ended_rows,
    sample_rows,
    work_out,
)

NUMBER = r"-?\d+(?:\.\d+)?"


@pytest.fixture(scope="module")
def rows() -> list[tuple[str, Messages]]:
    return sample_rows()


@pytest.fixture(scope="module")
def arithmetic(rows: list[tuple[str, Messages]]) -> list[tuple[str, str]]:
    return [(messages[0]["content"], messages[1]["content"]) for source, messages in rows if source == DETERMINISTIC]


def evaluate(expression: str) -> int:
    """Sum the signed terms of a chain: another way to the result than `work_out`'s."""
    assert re.fullmatch(r"\d+( [+-] \d+)*", expression), expression
    return sum(int(term) for term in re.findall(r"[+-]?\d+", expression.replace(" ", "")))


def test_the_independent_evaluator() -> None:
    assert evaluate("4 - 1 - 7") == -4
    assert evaluate("56 - 52 + 10") == 14


@pytest.mark.slow
def test_a_hundred_of_each_kind(rows: list[tuple[str, Messages]]) -> None:
    sources = [source for source, _ in rows]
    assert sources.count(OPEN_ENDED) == sources.count(DETERMINISTIC) == 100


def test_every_row_is_a_pair_with_text(rows: list[tuple[str, Messages]]) -> None:
    for _, messages in rows:
        assert [message["role"] for message in messages] == ["user", "assistant"]
        assert all(message["content"].strip() == message["content"] != "" for message in messages)


def test_no_row_twice(rows: list[tuple[str, Messages]]) -> None:
    assert len({col.content_id(messages) for _, messages in rows}) == len(rows)
    assert len({messages[0]["content"] for _, messages in rows}) == len(rows)


def test_the_same_rows_every_time(rows: list[tuple[str, Messages]]) -> None:
    assert sample_rows() == rows
    assert [*deterministic_rows(10)] == [messages for source, messages in rows if source == DETERMINISTIC][:10]


def test_every_worked_answer_ends_in_its_number(arithmetic: list[tuple[str, str]]) -> None:
    for _, answer in arithmetic:
        assert re.fullmatch(rf"#### {NUMBER}", answer.splitlines()[-1])
        assert answer.count("####") == 1
        assert len(answer.splitlines()) > 1
        assert len(answer) <= LONGEST_WORKED_ANSWER == 320


def test_open_ended_answers_have_no_number_behind_hashes() -> None:
    assert not any("####" in messages[1]["content"] for messages in open_ended_rows())


def test_half_are_chains_whose_results_are_right(arithmetic: list[tuple[str, str]]) -> None:
    chains = [(re.match(r"What is ([\d +-]+)\?", question), answer) for question, answer in arithmetic]
    results = [(evaluate(match[1]), answer.splitlines()[-1]) for match, answer in chains if match]
    assert len(results) == 50
    assert [(expected, last) for expected, last in results if last != f"#### {expected}"] == []


def equations(answer: str) -> list[tuple[str, str, str, str]]:
    """Find what is of the form 'number operator number = number' and not a part of something longer."""
    terms = [part.strip(" .") for part in re.findall(r"(?<![x÷])(?<![x÷] )[\d.+*/()= -]+", answer)]
    found = (re.fullmatch(rf"({NUMBER}) ?([+*/-]) ?({NUMBER}) ?= ?({NUMBER})", term) for term in terms)
    return [match.groups() for match in found if match]


def is_right(equation: tuple[str, str, str, str]) -> bool:
    """Compute exactly; a result may be rounded to two digits behind the point."""
    left, operator, right, result = equation
    a, b, c = Fraction(left), Fraction(right), Fraction(result)
    exact = {"+": lambda: a + b, "-": lambda: a - b, "*": lambda: a * b, "/": lambda: a / b}[operator]()
    return abs(exact - c) <= Fraction(1, 200)


def test_the_independent_checker() -> None:
    assert equations("He has 7*0.5=3 tubes and 2(7+26) = 66, 8 pages x 3/4 = 6.\n-5 + 41 = 36") == [
        ("7", "*", "0.5", "3"),
        ("-5", "+", "41", "36"),
    ]
    assert [is_right(equation) for equation in equations("7*0.5=3\n-5 + 41 = 36\n2/3 = 0.67")] == [False, True, True]


def test_every_equation_of_the_worked_answers_is_right(arithmetic: list[tuple[str, str]]) -> None:
    checked = [equation for _, answer in arithmetic for equation in equations(answer)]
    assert len(checked) > 150
    assert [equation for equation in checked if not is_right(equation)] == []


@pytest.mark.parametrize(
    ("expression", "worked"),
    [
        ("4 - 1 - 7", "4 - 1 = 3\n3 - 7 = -4\n#### -4"),
        ("12 + 30", "12 + 30 = 42\n#### 42"),
        ("0 - 5 + 6", "0 - 5 = -5\n-5 + 6 = 1\n#### 1"),
        ("7", "#### 7"),
    ],
)
def test_work_out(expression: str, worked: str) -> None:
    assert work_out(expression) == worked


def test_rows_are_made_one_by_one() -> None:
    assert len([*islice(deterministic_rows(10**9), 3)]) == 3
