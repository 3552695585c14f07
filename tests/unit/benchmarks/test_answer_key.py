"""Final answers: what marks one, and which are equal.

Longer than other files, as it is the tables of cases of six short tests, one case a line.
"""

from __future__ import annotations

import pytest

from ual_ray.benchmarks.answer_key import AnswerKey, answer_of, marked_answer, same_answer

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
    *[
        ("#### 18", f"Answer{marks} 18{rest}")
        for marks in (":", " =", ":**")
        for rest in ("\nConfidence: 90%", "\n\nNote 1: rounded", "")
    ],
    *[
        ("#### 18", text)
        for text in ("**Final Answer**: 18 dollars", "Answer:\n\n18", "答案是18。", "答案：18元", "The answer would be 18.")
    ],
    ("Answer: 18\nConfidence: 90%", "#### 18"),
    ("Answer: Paris", "The answer is Paris."),
    *[("#### 18", f"\\boxed{{18{unit}}}") for unit in ("\\,\\text{cm}^2", "\\text{ cm}^{3}", "\\;\\mathrm{m}", "\\%")],
    *[("#### 1800", text) for text in ("The answer is 1 800.", "1 800", "$1 800")],
    ("#### 50", "The answer is 50%"),
    ("#### 18", "the answer is 18 miles per hour"),
    ("#### 18", "9 * 2 = 18"),
    ("#### 5", "It takes 5 hours."),
    ("#### 5 hours", "5"),
    ("#### 18", "Answer: $18.00"),
    *[
        ("#### 12000", text)
        for text in ("12\\,000", "\\boxed{12\\,000}", "12\u00a0000", "12\u202f000", "12'000", "12 000", "12 thousand")
    ],
    *[("#### 1000", text) for text in ("1e3", "The answer is 1e3.", "The answer is 10^3.", "The answer is 10³.", "1.0E+3")],
    *[("#### -5", text) for text in ("\u22125", "The answer is \u22125.", "x = \u20135", "-$5")],
    *[("#### 3.5", text) for text in ("3 1/2", "3½", "The answer is 3 1/2.", "\\boxed{3\\frac{1}{2}}", "The answer is 7/2")],
    *[("#### 0.5", text) for text in ("½", ".5", "\\frac12", "The answer is ½.")],
    ("#### .5", "0.5"),
    ("#### ٣", "3"),
    ("#### 324", "The answer is 18²"),
    ("#### 2500000", "The answer is 2.5 million people."),
    ("#### 18", "The answer is 18!"),
    ("#### 18", "The answer is ≈ 18"),
    ("#### 18", "The answer is 18 (not 20)."),
    # As GSM8K's own rationales end.
    ("#### 72", "48+24 = <<48+24=72>>72 clips"),
    ("#### 220", "220 seconds to reach the top floor.\nBecause 200 < 220 Lola wins."),
    ("#### 17", "15 trucks / 90 vehicles * 100% = 16.66...%, which rounds up to 17%."),
    ("#### 8", "96 appetizers, in dozens, is 96/12 = <<96/12=8>>8 dozen more appetizers"),
    ("#### 2756", "Her company adds $156.00, so she has 2600+156 = $2,756 in her 401k"),
    ("#### 220", "Since it took 5 hours, he got 11/15*300 = 220"),
    ("#### 18", "The answer is 18, because 20-2 is that."),
    ("#### ¥2", "2"),
    *[("#### $5", text) for text in ("5 dollars", "So we pay \\$5.", "5 USD", "He has 5 of them.", "$5 per day")],
    *[("#### 5¢", text) for text in ("5 cents", "5 pennies")],
    *[("#### £5", "5 pounds"), ("#### 50%", "50 percent"), ("#### $1.5 million", "1.5 million dollars")],
    *[("#### 5 ft²", text) for text in ("5 square feet", "5 sq. ft. in all", "5 feet squared", "5 ft2", "5 ft^{2}", "5")],
    *[("#### 18 cm", text) for text in ("So it is $18$ cm.", "So $x = 18$ cm.", "$18\\text{ cm}$", "\\(18\\) cm")],
    *[("#### 12500", text) for text in ("12 500 euros", "12 500 euros each", "The answer is 12 500 metres.")],
    ("#### 100,000", "1,00,000"),
    ("#### 7:30", "It ends at 7:30."),
    *[
        ("#### 10 AM", text)
        for text in ("10:00 AM", "It starts at 10:00 a.m.", "At 10:00am.", "at 10am", "The answer is 10:00 a.m.")
    ],
    *[("#### 5 ms", text) for text in ("5 milliseconds", "It takes 5 ms.")],
    *[("#### 5 hrs", "5 hours"), ("#### 5 h", "5 hrs"), ("#### 5 in", "It is 5 in.")],
    ("#### 2020-05-01", "on 2020-05-01"),
    ("\\boxed{\\text{Monday}}", "The answer is Monday."),
    ("\\boxed{\\text{(A)}}", "The answer is A."),
    ("#### A", "The correct answer is A) five apples"),
    ("\\boxed{90^\\circ}", "90 degrees"),
    *[
        ("#### 18", f"{answer} {rest}")
        for answer in (
            "The answer is 18.",
            "Answer: $18.",
            "**Answer:** 18!",
            "The final answer is **18**.",
            "The answer is 18 eggs.",
        )
        for rest in ("I have 2 more.", "Check: 9 * 2 = 18, 18 / 3 = 6.", "(It took 3 steps.)", "So 5 are left!")
    ],
    *[
        ("#### -3", text)
        for text in ("negative 3", "The answer is negative 3.", "It is minus 3.", "Answer: minus 3", "minus 3")
    ],
    *[("\\boxed{\\sqrt{2}}", text) for text in ("√2", "The answer is √2.", "√(2)", "\\boxed{√2}")],
    *[
        ("#### 18", text)
        for text in ("$\\$18$", "The answer is $\\$18$.", "So she makes **$\\$18$** per day.", "\\boxed{\\$18}")
    ],
    *[("The answer is Yes.", text) for text in ("Yes", "yes.", "**Yes!**")],
    *[("The answer is (B)", text) for text in ("B", "(B)", "B.", "B. Five apples")],
    ("The answer is Paris.", "Paris"),
    *[
        ("#### 18", text)
        for text in ("It is 18, not 20.", "He has 18 rather than 20.", "Not 20 but 18.", "exactly 18", "about 18")
    ],
    *[("#### 18", text) for text in ("It isn't 20, it's 18.", "The answer isn't 20, it's 18.")],
    *[("#### 216", text) for text in ("18 dozen eggs", "The answer is 18 dozen.", "18 dozens")],
    *[("#### 50%", text) for text in ("0.5", "The answer is 1/2", "50 percent", "50")],
    *[("#### 0.5", text) for text in ("50%", "The answer is 50%.", "50 percent")],
    ("\\boxed{x \\geq 18}", "\\boxed{x\\ge 18}"),
    *[
        ("#### 18", text)
        for text in (
            "Answer - 18",
            "=> 18",
            "-> 18 eggs",
            "<answer>18</answer>",
            "The answer is 18 \U0001f389",
        )
    ],
    *[("#### 18000", text) for text in ("18k", "$18K", "The answer is 18k.")],
    ("#### 5000000", "5M"),
    *[("\\boxed{\\frac{\\pi}{2}}", text) for text in ("$\\frac{\\pi}{2}$", "\\(\\pi/2\\)")],
    ("\\boxed{(1,2)}", "$(1,2)$"),
    *[
        ("The answer is B.", text)
        for text in ("B)", "[B]", "Option B", "Choice B", "The answer is option B", "The correct option is B.", "**(B)**")
    ],
    *[("The answer is yes.", text) for text in ("Yes, it is.", "**Yes**, of course.", "Yes! It is so.")],
    ("#### 7:30 PM", "7:30pm"),
    ("\\boxed{\\text{at least } 18}", "It is at least 18."),
]

DIFFERENT = [
    ("#### 18", "The answer is 19 dollars."),
    ("#### 1/2", "The answer is 2"),
    ("\\boxed{2x}", "\\boxed{2}"),
    ("#### 5", "-5"),
    ("#### 18", "no number"),
    ("\\boxed{(3,4)}", "\\boxed{34}"),
    ("#### 18", "The answer is 180"),
    ("#### 90", "Answer: 18\nConfidence: 90%"),
    *[("#### 20", text) for text in ("Between 18 and 20", "18 to 20", "$18 or $20")],
    ("#### 18", "The answer is 18 million"),
    ("#### 182", "18²"),
    ("#### 1", "10^3"),
    ("#### -20", "18-20"),
    ("#### 30", "at 7:30"),
    ("#### 2020", "01/05/2020"),
    ("#### 7:30", "30"),
    ("#### A", "The answer is B) five"),
    ("#### 2", "The answer is 3 1/2."),
    ("\\boxed{10,11}", "1011"),
    *[("#### 5 ms", text) for text in ("5 m", "5 metres", "5 s", "It takes 5 seconds.")],
    *[("#### 10 AM", text) for text in ("10:00 PM", "10:30 AM", "22:00")],
    ("\\boxed{\\text{Monday}}", "The answer is Tuesday."),
    *[("#### $5", text) for text in ("5 cents", "It costs 5 cents.", "€5", "5 €", "5 EUR", "5%", "£5 per day", "5¢")],
    *[("#### $1.5 million", "1.5 million euros"), ("#### $1,000.50", "So 1000.50 euros"), ("#### 2 €", "The answer is ₹2.")],
    *[("#### 5 feet", text) for text in ("5 square feet", "5 sq. ft. in all", "5 feet squared", "5 ft³", "5 inches")],
    *[("\\boxed{5\\text{ cm}^2}", text) for text in ("It is 5 cm.", "5 cubic centimetres", "$5$ cm")],
    *[
        ("#### 2", "√2"),
        ("#### 2", "\\sqrt{2}"),
        ("#### 3", "negative 3"),
        ("#### -3", "5 minus 3"),
        ("The answer is Yes.", "No"),
    ],
    *[("#### 18", text) for text in ("The answer is 2. I have 18 more.", "The answer is 18.5. I have 18 more.")],
    *[
        ("#### 18", text)
        for text in (
            *("not 18", "It is not 18.", "It isn't 18.", "It can't be 18.", "The answer is not 18.", "The answer is: not 18"),
            *("at least 18", "The answer is at least 18.", "The answer is at most $18.", "18 at least", "18 dollars at most"),
            *("more than 18", "less than $18", "No more than 18", "up to 18 eggs", "It is over 18.", "> 18", "Answer: > 18"),
            *("18 or more", "The answer is 18 or less.", "#### 18 or more", "18+", "18 eggs or more", "18 and up", "nearly 18"),
            *("\\boxed{> 18}", "\\boxed{\\geq 18}", "$x \\ge 18$", "minimum of 18", "18 dozen", "The answer is 18 dozen."),
        )
    ],
    *[
        ("#### 18", text)
        for text in (
            *(
                "17-18",
                "17\u201318",
                "18M",
                "18k",
                "18bn",
                "It should not be 18",
                "x/18",
                "log 18",
                "18 squared",
                "18 cubed",
                "twice 18",
            ),
            *("half of 18", "double 18", "two times 18", "the square root of 18"),
        )
    ],
    *[("#### 7:30 PM", text) for text in ("7:30 AM", "7 PM", "7:31pm")],
    *[("The answer is yes.", text) for text in ("No, it is not.", "Maybe", "Not yes")],
    *[("The answer is B.", text) for text in ("Option A", "The correct option is A.", "Not B", "A or B")],
    *[("#### 20", "It is 18, not 20."), ("#### 50%", "5"), ("#### 50%", "0.5%"), ("#### 50", "0.5"), ("#### 0.5%", "50%")],
    ("\\boxed{x \\geq 18}", "\\boxed{18}"),
    *[("#### 3 1/2 feet", "3.5 square feet"), ("#### 3100", "3 100 dollar bills"), ("#### 3100", "3 100 grams bags")],
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
    "Answer: it depends on 2 things",
    "Answer the 2 questions",
    "Question: what is 2?",
]

# Answers of several parts, of which the first differs: their last number is not all of them.
IN_PARTS = [
    *("{} and 20", "{}, 20", "Both {} and 20", "{}, 5, 20", "{} or 20", "{} & 20", "{}; 20", "The roots are {} and 20."),
    *("Tom has {} and Ann has 20.", "{} apples and 20 pears", "{} apples, 20 pears", "x = {}, y = 20", "x={} or x=20"),
    *("So x = {} and y = 20.", "a = {}, b = 2, c = 20", "({}, 20)", "The coordinates are ({}, 20).", "[{}, 20)", "{{{}, 20}}"),
    *("{} hours and 20 minutes", "{} h 20 min", "{} feet 6 inches", "${} and 20 cents", "{} weeks and 2 days"),
    *("{} R 3", "{} remainder 3", "{} × 3", "{} by 3", "{} ft x 3 ft", "{} ± 0.2", "{}±0.2", "{}%-20%", "from {} am to 5 pm"),
    *(
        "y = {}x + 3",
        "\\frac{{{}x}}{{2}}",
        "{} + 4i",
        "May {}, 2020",
        "{} May 2020",
        "{}*3",
        "{} × 10^23",
        "{} x 10^{{23}}",
        "{}·10²³",
    ),
]
EQUAL += [
    ("#### 1500", "1.5 × 10^3"),
    ("#### 1500", "1.5*10^3"),
    ("#### 300000000", "3×10⁸"),
    ("#### A", "A) 18"),
    ("#### 5", "2 and 3 make 5"),
]
EQUAL += [
    ("The answer is 1.5\\times 10^{3}.", "1500"),
    ("\\boxed{(3, 4)}", "(3, 4)"),
    ("\\boxed{(3, 4)}", "The point is (3,4)."),
]
EQUAL += [
    ("#### 18", f"So the total is {text}")
    for text in ("18 (9 pairs).", "18 [1].", "18 (see eq. 3)", "18 boxes (rounded to 2 decimals).", "18 legs.[2]")
]
DIFFERENT += [("#### 20", text) for text in ("18 and 20", "(18, 20)", "18, 20", "COVID-20", "6 R 20", "[1, 20]")]
DIFFERENT += [("#### 2020", "December 2020"), ("#### 23", "2*3"), ("\\boxed{(4, 3)}", "(3, 4)")]

# A number in a base, and boxes that are one answer together.
EQUAL += [
    *[
        ("\\boxed{413_5}", text)
        for text in ("413_{5}", "It is 413_5.", "\\boxed{413_{\\text{five}}}", "The answer is $413_5$.")
    ],
    *[("#### 18", text) for text in ("_18_", "The answer is __18__.", "It is _18_ dollars.")],
    *[("\\boxed{1, 2}", text) for text in ("$\\boxed{1}$ and $\\boxed{2}$", "$x=\\boxed{1}$ or $x=\\boxed{2}$")],
    *[("\\boxed{2}", text) for text in ("\\boxed{1}. No, \\boxed{2}", "\\fbox{2}")],
]
DIFFERENT += [
    *[("\\boxed{413_5}", text) for text in ("\\boxed{413_6}", "\\boxed{4135}", "4135", "413_{10}", "5")],
    ("\\boxed{2}", "\\boxed{1} and \\boxed{2}"),
]


# One answer in two forms, with its restatement, in words, with a decimal comma, and as an interval.
EQUAL += [
    *[
        ("\\boxed{50\\%}", text)
        for text in (
            *("\\boxed{0.5} or \\boxed{50\\%}", "$\\boxed{50\\%}$ or $\\boxed{\\frac{1}{2}}$", "The answer is 0.5 or 50%."),
            *("The answer is 1/2, or 50%", "0.5 or 50%", "The answer is 1/2 = 0.5 = 50%."),
        )
    ],
    ("\\boxed{\\frac{\\sqrt{2}}{2}}", "\\boxed{\\frac{1}{\\sqrt{2}}}, or \\boxed{\\frac{\\sqrt{2}}{2}}"),
    *[
        (f"#### {given}", text.format(18))
        for given in ("18", "18, i.e. 9 pairs", "18, that is, 9 pairs", "18 = 18.0")
        for text in ("{}, i.e. 9 pairs", "The answer is {}, i.e. 9 pairs.", "{} eggs, i.e. 1.5 dozen", "{}, or 1.5 dozen", "{}")
    ],
    ("The answer is 18, i.e. 9", "18"),
    *[
        ("#### 18", text)
        for text in (
            "The answer is eighteen.",
            "eighteen",
            "Eighteen eggs.",
            "\\boxed{\\text{eighteen}}",
            "The answer is **eighteen**!",
        )
    ],
    *[
        ("#### 2105", text)
        for text in ("The answer is two thousand one hundred and five.", "Answer: two thousand, one hundred five miles")
    ],
    *[("#### -21", text) for text in ("The answer is minus twenty-one.", "negative twenty one")],
    *[("#### $105", "one hundred and five dollars"), ("#### 1000000", "a million"), ("#### 1", "The answer is one.")],
    *[("#### 3.5", text) for text in ("3,5 km", "The answer is 3,5 kg.", "It is 3,5 cm.", "€3,50", "$3,50 in all")],
    *[("#### 12.5%", text) for text in ("12,5%", "The answer is 12,5 %.", "\\boxed{12,5\\%}")],
    *[("#### 1234.56", text) for text in ("1.234,56", "The answer is 1.234,56.", "1.234,56 €")],
    *[
        pair
        for interval, inequality in (
            ("(2,5)", "2<x<5"),
            ("[2,5)", "2 \\le x < 5"),
            ("(-\\infty,3)", "x<3"),
            ("(3,\\infty)", "x > 3"),
        )
        for pair in (
            (f"\\boxed{{{interval}}}", f"\\boxed{{{inequality}}}"),
            (f"\\boxed{{{inequality}}}", f"\\boxed{{{interval}}}"),
            (f"\\boxed{{{interval}}}", f"So the solution is {inequality}."),
            (f"\\boxed{{{inequality}}}", f"So ${inequality}$."),
        )
    ],
]
DIFFERENT += [
    *[("\\boxed{2}", text) for text in ("\\boxed{2} or \\boxed{3}", "The answer is 2 or 3", "2 or 3", "2, or 3.0")],
    *[("\\boxed{5}", "2 < x < 5"), ("\\boxed{x<5}", "2 < x < 5"), ("\\boxed{2<x<5}", "2 < x < 6"), ("\\boxed{x<5}", "n < 5")],
    *[("\\boxed{[2,5]}", "\\boxed{2<x<5}"), ("\\boxed{(2,5)}", "\\boxed{2 < x < 6}"), ("\\boxed{2<x<5}", "\\boxed{(5,2)}")],
    *[("#### 9", text) for text in ("18, i.e. 9 pairs", "The answer is 18, i.e. 9 pairs.", "18 or 1.5 dozen")],
    *[
        ("#### 2", text)
        for text in (
            *("Step 2: done", "Question 2: yes", "**Step 2:** I am done.", "Part 1: add them.\nPart 2: done", "(2 was 3)"),
            *("1. Add them.\n2. Done.", "1) Add.\n2) Done", "Steps:\n 1. Add.\n 2. Subtract.\nAll done."),
        )
    ],
    *[
        ("#### 1", text)
        for text in (
            "The answer is one of these.",
            "one thing",
            "The answer is one hundred.",
            "1. Add them.\n2. Done.",
            "Step 1: go on",
        )
    ],
    *[
        ("#### 2", text)
        for text in ("two thirds", "two-thirds", "two times", "two hundred", "two or three", "The answer is two to one.")
    ],
    *[("#### 3.5", text) for text in ("3,5", "The answer is 3,5", "(3,5)", "3,5,7 km", "3,500 km")],
]
# A number that a list holds, or that a label counts, is one of its text where it is the answer.
EQUAL += [
    *[
        ("#### 7", text)
        for text in ("Case 1: 5\nCase 2: 7", "1. Ann has 5.\n2. Bob has 7.", "Step 2: 3 + 4 = 7", "It is in step 7.")
    ],
    *[("#### 18", text) for text in ("So the total is\n18. Great!", "Option 2: 18", "18. That is all.")],
]


@pytest.mark.slow
@pytest.mark.parametrize(("given", "sampled"), EQUAL)
def test_equal_answers_agree(given: str, sampled: str) -> None:
    assert marked_answer(given) is not None
    assert same_answer(marked_answer(given), answer_of(sampled))


@pytest.mark.parametrize(("given", "sampled"), DIFFERENT)
def test_different_answers_do_not(given: str, sampled: str) -> None:
    assert not same_answer(marked_answer(given), answer_of(sampled))


@pytest.mark.slow
@pytest.mark.parametrize("text", IN_PARTS)
def test_an_answer_of_several_parts_is_all_of_them(text: str) -> None:
    first, second = text.format(7), text.format(8)
    assert same_answer(answer_of(first), answer_of(first))
    assert not same_answer(answer_of(first), answer_of(second))
    assert not same_answer(answer_of(first), marked_answer("#### 20")) and not same_answer(
        answer_of(first), marked_answer("#### 3")
    )


@pytest.mark.parametrize("text", NOT_MARKED)
def test_a_sentence_marks_no_answer(text: str) -> None:
    assert marked_answer(text) is None


def test_a_text_without_an_answer_equals_nothing() -> None:
    assert not same_answer(None, None) and not same_answer(AnswerKey("x", None), None)


@pytest.mark.parametrize("number", ["9" * 5000, "1/" + "0" * 300, "1/0"])
def test_a_monstrous_number_is_text(number: str) -> None:
    key = answer_of(f"#### {number}")
    assert key is None or key.value is None
