"""Final answers that mean the same are one group, whatever stands around the number."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ual_ray.benchmarks.answer_key import answer_of
from ual_ray.columns import Message
from ual_ray.elicit.estimators.samples import grouping_for
from ual_ray.elicit.grouping import AnswerGrouping, LexicalGrouping

EIGHTEEN = [
    *("#### 18", "The answer is 18 dollars.", "The answer is **18**.", "The answer is $18 per day.", "So she makes $18."),
    *(
        "The answer is: 18.00",
        r"\boxed{18}",
        r"\boxed{18\text{ dollars}}",
        r"The final answer is $\boxed{\$18}$",
        "#### $18.00",
    ),
    *("She makes 9 * 2 = 18", "**Answer:** the answer is 18 clips", "The answer is 36/2", "#### +18", "the answer is １８"),
]


def answer_key(text: str) -> Fraction | str | None:
    key = answer_of(text)
    return key and (key.text if key.value is None else key.value)


@pytest.mark.parametrize("text", EIGHTEEN)
def test_eighteen_is_eighteen(text: str) -> None:
    assert answer_key(text) == 18


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The answer is 1/2", Fraction(1, 2)),
        (r"\boxed{\frac{1}{2}}", Fraction(1, 2)),
        (r"\boxed{\dfrac{1}{2}}", Fraction(1, 2)),
        ("The answer is 0.5", Fraction(1, 2)),
        ("The answer is 72 clips", 72),
        ("#### 12{,}000"[:4] + " 12,000", 12000),
        (r"\boxed{12{,}000}", 12000),
        ("The answer is -3", -3),
        ("The answer is x = 5", 5),
        ("The answer is: x", "x"),
        (r"\boxed{2x}", "2x"),
        ("The answer is 3 apples and 4 pears", "3applesand4pears"),
        ("The answer is 1/0", "1/0"),
        ("It depends.", None),
        ("", None),
    ],
)
def test_keys_by_hand(text: str, expected: object) -> None:
    assert answer_key(text) == expected


def test_seventy_two_is_not_seven_hundred_and_twenty() -> None:
    grouping = AnswerGrouping()
    first, second = grouping.keys(["The answer is 72 clips.", "The answer is 720 clips."])
    assert not grouping.same(first, second)


@given(number=st.decimals(-(10**6), 10**6, places=3), unit=st.sampled_from(["", " dollars", " per day", " km", "**"]))
def test_units_change_no_value(number: object, unit: str) -> None:
    assert answer_key(f"#### {number:,.3f}{unit}") == Fraction(str(number))


@pytest.mark.parametrize(
    ("response", "kind"),
    [
        ("#### 18", AnswerGrouping),
        ("The answer is 18 dollars.", AnswerGrouping),
        (r"\boxed{x + 1}", AnswerGrouping),
        ("The answer is: Paris", AnswerGrouping),
        ("The answer is that it depends on what you want.", LexicalGrouping),
        ("I think the answer is to listen to each other more often.", LexicalGrouping),
        ("Blue is a colour.", LexicalGrouping),
    ],
)
def test_an_opinion_is_not_a_final_answer(response: str, kind: type) -> None:
    assert isinstance(grouping_for([Message(role="assistant", content=response)], 0.7), kind)


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        *(("10 AM", "10 PM", False), ("10 AM", "10 a.m.", True), ("10 PM", "10 p.m", True), ("10 AM", "10", True)),
        *(("10:30 AM", "10:30 PM", False), ("5 m", "5 km", False), ("5 g", "5 kg", False), ("5 m", "5 m", True)),
        *(("5 cm", "5 km", False), ("5 km", "5 kilometres", True), ("5 kilometers", "6 km", False)),
        *(("30 minutes", "30 mins", True), ("30 minutes", "30 seconds", False), ("6 inches", "6 inch", True)),
        *(("18 dollars", "18 cents", False), ("18", "18 cents", True), ("18 clips", "18 boxes", True)),
        *(("10 pounds", "10 lbs", True), ("6 feet", "6 ft", True), ("6 feet", "6 inches", False)),
    ],
)
def test_equal_numbers_of_other_units_are_other_answers(first: str, second: str, same: bool) -> None:
    given, sampled = AnswerGrouping().keys([f"#### {first}", f"The answer is {second}."])
    assert AnswerGrouping().same(given, sampled) == AnswerGrouping().same(sampled, given) == same
