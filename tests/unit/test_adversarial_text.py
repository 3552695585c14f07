"""Texts of models and of data are read in linear time, whatever they repeat: a reply of a model that loops may be long."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from unittest import mock

import pytest
from text_readers import READERS, SCALE

from ual_ray.data import records, text_files
from ual_ray.engines import reading, reply_text

CHARACTERS = 30_000
SECONDS = 0.5
# What stands before a repeated text, which may be the start of a form that never ends.
STARTS = ("", "1", "1 ", "$", "#### ", "\\boxed{", "```", "<|channel|>a", "the answer is ")
REPEATED = ("million ", "\n", " ", "\t", "0", "1,", "1 ", "a", "<think>", "<|channel|>a", "[", "*", "²")


# Found by the fuzzers: the reader, and the start, the repeated part and the end of a text.
FOUND = (
    *(("extract_flexible", "1,", "11,", "x"), ("answer_of", "1,", "11,", "x"), ("answer_of", "the answer is 1", " ", "=")),
    *(("answer_of", "the answer is about", " ", "x"), ("answer_of", "\\boxed{1", " ", "=}")),
    *(("read a number", "Rating: 7, ", " ", "5"), ("read a number", "(scale", " ", "x"), ("read a number", "", "7\n", "7")),
    *(("spoken", "<", "a_think_", " x"), ("spoken", "</", "a_think_", " x"), ("spoken", "a", "\u0316\u0300", "x")),
    *(("extract_strict", "a", "\u0315\u0300\u0316", "x"), ("is_rendered", "", "\n", "x")),
    *(("dropped by a template", "a", " ", "x"), ("dropped by a template", "a", "<think>", "x")),
    *(("words of a server", "<html>", "<!--x>", "y"), ("quote", "", "abcdefghij0123456789", "z")),
)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("repeated", REPEATED)
@pytest.mark.slow
def test_no_text_is_read_in_more_than_linear_time(reader: str, repeated: str) -> None:
    for start in STARTS:
        text = start + repeated * (CHARACTERS // len(repeated)) + "x"
        began = time.process_time()
        with suppress(records.BadRow):
            READERS[reader](text)
        assert time.process_time() - began < SECONDS, f"{start!r} and {repeated!r}"


@pytest.mark.slow
@pytest.mark.parametrize(("reader", "start", "repeated", "end"), FOUND)
def test_no_text_that_was_found_is_read_in_more_than_linear_time(reader: str, start: str, repeated: str, end: str) -> None:
    text = start + repeated * (2 * CHARACTERS // len(repeated)) + end
    began = time.process_time()
    READERS[reader](text)
    assert time.process_time() - began < SECONDS


def test_a_reply_that_repeats_its_scale_is_read_a_limited_number_of_times() -> None:
    with mock.patch.object(reading, "read_choice", wraps=reply_text.read_choice) as reads:
        assert reading.answer_place([*("(0-9) " * 200), "Rating: ", "9"], "9", SCALE) is None
    assert reads.call_count < 100


def test_an_object_with_many_keys_is_read_in_linear_time() -> None:
    line = json.dumps({str(key): 1 for key in range(CHARACTERS)})[:-1] + f', "{CHARACTERS - 1}": 1}}'
    began = time.process_time()
    (row,) = text_files.map_lines([line.encode()], 0)
    assert "is there twice" in str(row) and time.process_time() - began < SECONDS
