"""Texts of models and of data are read in linear time, whatever they repeat: a reply of a model that loops may be long."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from ual_ray.benchmarks import math, multiple_choice
from ual_ray.columns import Message
from ual_ray.data import answers, records, turns, units
from ual_ray.elicit import answer_key
from ual_ray.engines import reply_text, thoughts

CHARACTERS = 30_000
SECONDS = 0.5
# What stands before a repeated text, which may be the start of a form that never ends.
STARTS = ("", "1", "1 ", "$", "#### ", "\\boxed{", "```", "<|channel|>a", "the answer is ")
REPEATED = ("million ", "\n", " ", "\t", "0", "1,", "1 ", "a", "<think>", "<|channel|>a", "[", "*", "²")


def without_thoughts(text: str) -> Any:
    return turns.without_thoughts([Message(role="assistant", content=f"{text}x")])


READERS: dict[str, Callable[[str], Any]] = {
    "extract_strict": answers.extract_strict,
    "extract_flexible": answers.extract_flexible,
    "unit_of": units.unit_of,
    "is_blank": records.is_blank,
    "without_thoughts": without_thoughts,
    "spoken": thoughts.spoken,
    "opens_thought": thoughts.opens_thought,
    "read a number": lambda text: reply_text.read_choice(text, tuple("0123456789")),
    "read a letter": lambda text: reply_text.read_choice(text, ("M", "m")),
    "answer_of": answer_key.answer_of,
    "marked_answer of a benchmark": math.marked_answer,
    "choices": multiple_choice._plain,
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("repeated", REPEATED)
def test_no_text_is_read_in_more_than_linear_time(reader: str, repeated: str) -> None:
    for start in STARTS:
        text = start + repeated * (CHARACTERS // len(repeated)) + "x"
        began = time.process_time()
        with suppress(records.BadRow):
            READERS[reader](text)
        assert time.process_time() - began < SECONDS, f"{start!r} and {repeated!r}"
