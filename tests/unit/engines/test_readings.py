"""What a reply means: numbers and letters only where they were meant, whatever was thought before."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ual_ray.engines.readings import MIN_CHOICE_MASS, choice_mass, choice_shares, read_letter, read_number, said

THOUGHTS = [
    "<think>\nOkay, 2 things to check, and 3 more.\n</think>\n\n{}",
    "Okay, 2 things to check.\n</think>\n{}",  # where the template writes the opening mark
    "<thinking>4 errors?</thinking>{}",
    "[THINK]6, or 8[/THINK]{}",
    "<seed:think>3</seed:think>{}",
    "<reasoning>B is likelier: 2 of 3</reasoning>\n{}",
    "◁think▷1 or 2◁/think▷{}",
    "<|START_THINKING|>3<|END_THINKING|><|START_RESPONSE|>{}<|END_RESPONSE|>",
    "<|channel|>analysis<|message|>We need a number: 3?<|end|><|start|>assistant<|channel|>final<|message|>{}<|return|>",
    "analysisWe need a number: 3?assistantfinal{}",
    "<|begin_of_thought|>1, 2<|end_of_thought|><|begin_of_solution|>{}<|end_of_solution|>",
    "<think>1</think> hm <think>2</think>{}",
]
UNENDED = [
    "<think>\nOkay, 2 things to",
    "<think>",
    "[THINK]7",
    "<|channel|>analysis<|message|>7",
    "<seed:think>7",
    "a</think><think>7",
]


@pytest.mark.parametrize("thought", THOUGHTS)
def test_what_was_thought_is_not_said(thought: str) -> None:
    assert said(thought.format("7")) == "7"
    assert read_number(thought.format("Rating: 7"), 0, 9) == 7
    assert read_letter(thought.format("A"), ("A", "B")) == "A"


@pytest.mark.parametrize("text", UNENDED)
def test_a_thought_without_an_end_says_nothing(text: str) -> None:
    assert said(text) is None
    assert read_number(text, 0, 9) is None
    assert read_letter(text.replace("7", "A"), ("A", "B")) is None


NUMBERS = {
    **dict.fromkeys(
        ["7", " 7\n", "7.", "(7)", "**7**", "`7`", '"7"', "[7]", "[[7]]", "$7$", "\\boxed{7}"[6:], "7.0", "07", "７"], 7
    ),
    **dict.fromkeys(["7/9", "7 / 9", "7 out of 9", "7 of 9", "**7/9**"], 7),
    **dict.fromkeys(["Rating: 7", "Rating (0-9): 7", "Rating (0 to 9): **7**", "**Rating:** 7", "Score = 7", "rating - 7"], 7),
    **dict.fromkeys(["My uncertainty is 7.", "I would rate it a 7", "The answer is 7", "I'd say 7.", "Uncertainty: 7/9"], 7),
    **dict.fromkeys(["On a scale from 0 to 9, 7", "On a scale of 0-9: 7", "On a scale from 0 to 9, I rate it 7."], 7),
    **dict.fromkeys(
        ["The response looks right.\n\n7", "It has 2 errors.\nRating: 7", "### Rating\n7", "Final rating:\n**7**"], 7
    ),
    **dict.fromkeys(["7\n\nThe response is right.", "7, because it is right", "7 - it is mostly right", "7 because it is"], 7),
    **dict.fromkeys(['{"uncertainty": 7}', '```json\n{"uncertainty": 7}\n```', '{"rating": "7", "reason": "2 errors"}'], 7),
    **dict.fromkeys(["Here it is:\n```\n7\n```", "```7```", '{"a": 7}', "[7]", "<answer>7</answer>"], 7),
    "0": 0,
    "9": 9,
    "At first I thought 3.\nRating: 5\nBut then:\nRating: 4": 4,
    "": None,
    "seven": None,
    **dict.fromkeys(
        ["1. The response could be", "1. The response", "1) First", "2. It is wrong\n3. It is short", "1. a\n2. b"], None
    ),
    **dict.fromkeys(
        ["a baker fills 6", "Okay, a baker fills 6 boxes", "There are 3 errors", "GPT4 says so", "In 2 steps"], None
    ),
    **dict.fromkeys(["10", "-3", "99", "7/10", "8 out of 10", "7.5", "0.9", ".5", "7%", "3rd", "x7y", "COVID-9"], None),
    **dict.fromkeys(["7 or 8", "6-7", "between 3 and 5", "7 8", "3\n7\n\n5", "0-9", "0 to 9"], None),
    **dict.fromkeys(
        ['{"a": 7, "b": 3}', "[7, 3]", '{"rating": null}', '{"rating": "high"}', "true", '{"rating": true}', "{}"], None
    ),
    **dict.fromkeys(
        ["Rating (0-9):", "On a scale from 0 to 9", "Rating: high", "I cannot rate this", "The response has 7 words"], None
    ),
}


@pytest.mark.parametrize(("text", "expected"), NUMBERS.items())
def test_a_number_only_where_it_was_meant(text: str, expected: int | None) -> None:
    assert read_number(text, 0, 9) == expected


@pytest.mark.parametrize(("text", "expected"), [("10", 10), ("100", 100), ("100/100", 100), ("101", None), ("Score: 55", 55)])
def test_numbers_of_several_digits_are_read_whole(text: str, expected: int | None) -> None:
    assert read_number(text, 0, 100) == expected


@given(text=st.text(st.sampled_from("0123456789.-/ ab,\n:RatingsoA")), highest=st.sampled_from([5, 9, 100]))
def test_what_is_read_is_on_the_scale(text: str, highest: int) -> None:
    number = read_number(text, 1, highest)
    assert number is None or (1 <= number <= highest and number == int(number) and str(int(number)) in text)


@given(st.text(max_size=80))
def test_no_text_breaks_it(text: str) -> None:
    read_number(text, 0, 9)
    read_letter(text, ("A", "B"))


LETTERS = {
    **dict.fromkeys(
        ["A", "A.", "(A)", "**A**", "Answer: A", "The answer is A.", "Option A", "[[A]]", "My verdict: (A)", "`A`"], "A"
    ),
    **dict.fromkeys(["(A) The response is right.", "A. Yes", "**A**: it is right", '{"answer": "A"}', "I choose\n\nA"], "A"),
    **dict.fromkeys(["It is wrong.\n\nB", "B) No", "B\n\nBecause it is wrong."], "B"),
    **dict.fromkeys(
        ["", "a", "Yes", "A good response", "A or B", "AB", "Plan A is fine", "A. yes\nB. no", "I think A response"], None
    ),
    **dict.fromkeys(["B\n\nAnswer: A", "C", "Vitamin B"], None),
}


@pytest.mark.parametrize(("text", "expected"), LETTERS.items())
def test_a_letter_only_where_it_was_meant(text: str, expected: str | None) -> None:
    assert read_letter(text, ("A", "B")) == expected


@pytest.mark.parametrize(
    ("text", "expected"), [("m", "m"), ("M", "M"), ("**m**", "m"), ("Verdict: M", "M"), ("I'm sure", None), ("m or M", None)]
)
def test_letters_keep_their_case(text: str, expected: str | None) -> None:
    assert read_letter(text, ("m", "M")) == expected


def test_choices_that_are_improbable_together_say_nothing() -> None:
    assert choice_shares([-30.0, -33.0]) is None
    assert choice_mass([math.log(0.5), math.log(0.25), -math.inf]) == pytest.approx(0.75)
    half = math.log(MIN_CHOICE_MASS / 2) + 1e-9
    assert choice_shares([half, half]) == [0.5, 0.5]
    assert choice_shares([half - 1, half]) is None
    assert choice_shares([math.nan, 0.0]) is None
