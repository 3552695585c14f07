"""What explains that this package and another one read an answer to GSM8K differently."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

SPEC = importlib.util.spec_from_file_location("gsm8k_parity", Path(__file__).parents[3] / "bench" / "gsm8k_parity.py")
assert SPEC is not None and SPEC.loader is not None
parity = importlib.util.module_from_spec(SPEC)
sys.modules[SPEC.name] = parity
SPEC.loader.exec_module(parity)


def test_the_page_shows_every_difference() -> None:
    assert len(parity.CLASSES) >= 10 and parity.unlisted() == []


@pytest.mark.parametrize(
    ("text", "needed"),
    [
        ("####18", ("no blank or several behind ####",)),
        ("#### $18", ("a sign of money behind ####",)),
        ("####\n$18.00", ("no blank or several behind ####", "a sign of money behind ####", "decimals of zero")),
        ("#### 18...", ("full stops behind a number",)),
        ("#### １８", ("full-width digits",)),
        ("#### 1 8", None),
        ("#### 19", None),
    ],
)
def test_a_difference_needs_the_fewest_marks_that_explain_it(text: str, needed: tuple[str, ...] | None) -> None:
    assert parity.explain(text, lambda other: other == "#### 18") == needed
