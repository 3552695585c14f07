"""Reading numbers out of answers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ual_ray.evaluate.benchmarks.gsm8k import extract_flexible, extract_strict, normalise


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
        ("no number", None, None),
        ("", None, None),
        ("-", None, None),
        ("$", None, None),
    ],
)
def test_extraction(text: str, strict: str | None, flexible: str | None) -> None:
    assert extract_strict(text) == strict
    assert extract_flexible(text) == flexible


def test_a_number_without_a_leading_zero_is_not_read_as_another() -> None:
    """'.5' may be '.5' or nothing, but it is not 5."""
    assert extract_strict("#### .5") in (None, ".5", "0.5")
    assert extract_flexible("the answer is .5") in (None, ".5", "0.5")


@pytest.mark.parametrize(
    ("number", "expected"),
    [("1,234.", "1234"), ("$ 5", "5"), ("5.0", "5.0"), ("-$1,000.50", "-1000.50"), ("7...", "7")],
)
def test_normalise(number: str, expected: str) -> None:
    assert normalise(number) == expected


@given(
    number=st.integers(-(10**12), 10**12),
    before=st.text(st.characters(exclude_categories=["Nd"], exclude_characters="#-$")),
)
def test_any_integer_is_found_however_it_is_written(number: int, before: str) -> None:
    for written in (f"{number}", f"{number:,}", f"{number:,}.", f"${number}"):
        assert extract_strict(f"{before}\n#### {written}") == str(number)
        assert extract_flexible(f"{before} {written}") == str(number)
