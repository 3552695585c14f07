"""Final answers: what marks one, and which are equal."""

from __future__ import annotations

import pytest

from ual_ray.elicit.answer_key import AnswerKey, answer_of, marked_answer, same_answer

EQUAL = [
    ("#### 18", "The answer is 18 dollars."),
    ("#### 18", "The answer is **18**."),
    ("#### 18", "The answer is $18 per day."),
    ("#### 18", "So she makes $18."),
    ("#### 72", "She sold 72 clips."),
    ("#### 72", "The answer is 72 clips"),
    ("#### 72", "The answer is: 72.0"),
    ("#### 1/2", "The answer is $\\frac{1}{2}$."),
    ("#### 1/2", "The answer is 0.5"),
    ("\\boxed{\\frac{1}{2}}", "The answer is: 0.5"),
    ("\\boxed{\\frac12}", "#### 0.50"),
    ("#### 1,234", "the answer is 1234"),
    ("#### 12{,}000", "The answer is 12000."),
    ("#### １８", "18"),
    ("#### -5", "The answer is -5."),
    ("\\boxed{x^2+1}", "\\boxed{1+x^2}"),
    ("\\boxed{2\\sqrt{2}}", "\\boxed{\\sqrt{8}}"),
    ("The answer is: x = 5", "The answer is: x=5"),
    ("The answer is B.", "The answer is (B)"),
    ("#### 18", "**18**"),
    ("#### 18", "She makes **$18** every day."),
    ("#### 18", "Therefore, the final answer is $\\boxed{18}$ dollars."),
    ("#### 3.50", "The answer is $3.5"),
    ("#### 50", "The answer is 50%"),
    ("#### 18", "the answer is 18 miles per hour"),
    ("#### 18", "9 * 2 = 18"),
    ("#### 5", "It takes 5 hours."),
    ("#### 5 hours", "5"),
    ("#### 18", "Answer: $18.00"),
]

DIFFERENT = [
    ("#### 18", "The answer is 19 dollars."),
    ("#### 1/2", "The answer is 2"),
    ("\\boxed{2x}", "\\boxed{2}"),
    ("#### 5", "-5"),
    ("#### 18", "no number"),
    ("\\boxed{(3,4)}", "\\boxed{34}"),
    ("#### 18", "The answer is 180"),
]

NOT_MARKED = [
    "the answer is that it depends",
    "The answer is that it depends on 2 things",
    "The answer is simple: eat well",
    "the answer is complicated.",
    "I think the answer is not known",
    "Honestly, the answer is that there are 3 reasons",
    "",
    "72",
    "It is 72.",
    "#### ",
    "#### Conclusion",
    "#### 3 tips for a better life",
    "\\boxed{72",
    "\\boxed{}",
    "The answer is",
    "The answer is: ",
    "The answer is: $.",
]


@pytest.mark.parametrize(("given", "sampled"), EQUAL)
def test_equal_answers_agree(given: str, sampled: str) -> None:
    assert marked_answer(given) is not None
    assert same_answer(marked_answer(given), answer_of(sampled))


@pytest.mark.parametrize(("given", "sampled"), DIFFERENT)
def test_different_answers_do_not(given: str, sampled: str) -> None:
    assert not same_answer(marked_answer(given), answer_of(sampled))


@pytest.mark.parametrize("text", NOT_MARKED)
def test_a_sentence_marks_no_answer(text: str) -> None:
    assert marked_answer(text) is None


def test_a_text_without_an_answer_equals_nothing() -> None:
    assert not same_answer(None, None) and not same_answer(AnswerKey("x", None), None)


@pytest.mark.parametrize("number", ["9" * 5000, "1/" + "0" * 300, "1/0"])
def test_a_monstrous_number_is_text(number: str) -> None:
    key = answer_of(f"#### {number}")
    assert key is None or key.value is None
