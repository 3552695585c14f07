"""Which letter a reply gives: a verdict, or one of two options."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ual_ray.engines.reply_text import Unread, read_choice

OTHER = {"m": "M", "M": "m", "A": "B", "B": "A"}


@pytest.mark.parametrize("text", [
    "Incorrect option: A", "Rejected answer: A", "Second choice: A", "The losing verdict: A", "The bad choice: A",
    '{"worse_answer": "A"}', '{"rejected_choice": "A"}', '{"wrong_answer": "A"}',
])  # fmt: skip
def test_the_letter_of_the_other_one_is_not_read(text: str) -> None:
    assert isinstance(read_choice(text, ("A", "B")), Unread)


@pytest.mark.parametrize("letter", OTHER)
@pytest.mark.parametrize("text", [
    "I don't think Reply {} is better.", "It is not true that {} is better.", "Neither @ nor {} is better.", "!{}", "~{}",
    "They say that {} is better.", "If brevity matters, {} is better.", "Reply {} is better formatted.", "Example:\n{}",
    "Reply {} is better, but only in tone. The other is better overall.",
    "Reply {} is right. Reply @ is right, too, but longer.",
    "[Reply {}]\nHere is my plan.", '{"answer": "@", "correct_answer": "{}"}', '{"winner": "{}"}\n{"winner": "@"}',
    'Verdict: {}\n{"winner": "@"}', 'For example: {"winner": "{}"}', "Answer to {}", "Verdict on Reply {}", "The answer in {}",
    "### Reply {}\nIt is vague.",
])  # fmt: skip
def test_a_letter_that_is_no_verdict_is_not_read(text: str, letter: str) -> None:
    text = text.replace("{}", letter).replace("@", OTHER[letter])
    assert isinstance(read_choice(text, ("m", "M") if letter in "mM" else ("A", "B")), Unread)


@pytest.mark.parametrize("letters", [("m", "M"), ("A", "B")])
@given(parts=st.lists(st.sampled_from(
    ["0", "1", "0", "Reply ", "is better", ".", " ", "\n", ": ", "**", "Verdict: ", '{"winner": "', '"}', "I'm going with "]
    + ["(", ")", "the better one is ", "[", "]", ", because ", " - ", "it is ", "### ", "not ", " or "]
    + ["Yes", "The correct answer is "]
), max_size=9))  # fmt: skip
def test_letters_swapped_are_read_swapped(letters: tuple[str, str], parts: list[str]) -> None:
    one, swapped = ("".join({"0": first, "1": second}.get(part, part) for part in parts)
                    for first, second in (letters, letters[::-1]))  # fmt: skip
    read, other = read_choice(one, letters), read_choice(swapped, letters)
    assert other == OTHER[read] if isinstance(read, str) else isinstance(other, Unread)


@pytest.mark.parametrize("letter", ["m", "M"])
@pytest.mark.parametrize("text", [
    "Winner: {}", "The winner is {}", "The better answer: {}", "I prefer {}", "Preferred: {}", "{} - it is clearer",
    '{"winner": "{}"}', '{"better": "{}"}', '{"better_reply": "Reply {}"}', "It is clear. Reply {} is better.",
    "Reply {} serves the person better.", "I'm going with {}.", "Reply {} wins.", "[Reply {}]", "### Verdict\n{}",
    "I select {}",
    "{}\n\nReply {} actually answers the question.", "Verdict: {}. The other one gives steps instead of reasons.",
])  # fmt: skip
def test_a_verdict_is_read_whichever_letter_wins(text: str, letter: str) -> None:
    assert read_choice(text.replace("{}", letter), ("m", "M")) == letter


@pytest.mark.parametrize("place", ["first", "second"])
@pytest.mark.parametrize(
    "text", ["The {} answer is better: m", "The {} answer: m", "The {} answer loses: m", "It gives the {} answer: m"]
)
def test_no_verdict_is_read_whichever_place_is_named(text: str, place: str) -> None:
    assert isinstance(read_choice(text.format(place), ("m", "M")), Unread)


@pytest.mark.parametrize(("text", "expected"), [
    *[(text, "A") for text in ("A", "Answer: A", "A) Yes", "A: Yes", "I'd say A.", "A\n\nThe response is right.")],
    *[(text, "B") for text in ("B.", "(B)", "The answer is B.", "Option B", "**B**", "B. No", '{"answer": "B"}',
                               "<think>A</think>B", "[[B]]", "My final verdict is: [[B]]",
                               "I choose B", "B is the correct answer.", "The correct answer is B.", "\\boxed{B}")],
    *[(text, None) for text in ("A good response", "A or B", "Yes", "a", "", "A. The response is wrong because", "Both? B",
                                "Answer: A or B", "A response that is good", "A, B", "A/B",
                                "Answer: A, B", "Answer: A, or (B)", "Neither A nor B", "A Response", "The answer isn't A",
                                "A\n\nWait, B.", "The answer is A. No, B.", "Answer: A. No, (B).", "A\nAnswer: B",
                                "A.\n\nInstruction: x\nAnswer: B")],
])  # fmt: skip
def test_a_letter_is_read_where_it_is_the_answer(text: str, expected: str | None) -> None:
    read = read_choice(text, ("A", "B"))
    assert read == expected if expected else isinstance(read, Unread)


@pytest.mark.parametrize(("text", "expected"), [
    *[(text, "m") for text in ("m", "Reply m", "**m**", "Verdict: m", "(m)", "m\n\nBecause it is clear.")],
    *[(text, "M") for text in ("M", " M.", "Reply M is better.", "M is better", "The better reply is M.", "The answer is M.")],
    *[(text, None) for text in ("I'm not sure", "I\u2019m not sure", "m or M", "5 m long", "Reply m is better than reply M.",
                                "Model M", "Mm", "", "A", "A monthly plan",
                                '{"verdict": "m"}\nNo wait, the second is better: M',
                                '{"verdict": "m"} or rather M')],
])  # fmt: skip
def test_the_letters_of_verdicts_differ_by_their_case(text: str, expected: str | None) -> None:
    read = read_choice(text, ("m", "M"))
    assert read == expected if expected else isinstance(read, Unread)


@pytest.mark.parametrize("letter", ["m", "M"])
def test_the_heading_of_a_reply_that_is_repeated_is_no_verdict(letter: str) -> None:
    other = {"m": "M", "M": "m"}[letter]
    for text in (
        f"Reply {letter}\nBlue is a colour.\n\nReply {other}: Green.",
        f"Answer {letter}\n\nBlue.\n\nAnswer {other}\n\nGreen.",
    ):
        assert isinstance(read_choice(text, ("m", "M")), Unread)
    for text in (f"Reply {letter}", f"It is clear.\n\nReply {letter}", f"{letter}\n\nReply {other} is wrong."):
        assert read_choice(text, ("m", "M")) == letter
