"""Everything that reads a text of a model, of a server or of data: for each a reader of one text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ual_ray.benchmarks import answer_key, math, multiple_choice
from ual_ray.columns import Message
from ual_ray.data import answers, records, turns
from ual_ray.engines import openai_dialect, reading, reply_text, thoughts
from ual_ray.models import given

SCALE, LETTERS = tuple("0123456789"), ("M", "m")


def without_thoughts(text: str) -> Any:
    return turns.without_thoughts([Message(role="assistant", content=f"{text}x")])


def dropped(text: str) -> Any:
    return given.dropped("y", [Message(role="assistant", content=text)], [{}])


def quoted(text: str) -> Any:
    return openai_dialect.quote(text, (("user", text[::-1]), ("user", text)), ("secret",))


def place(text: str) -> Any:
    value = reply_text.read_choice(text, SCALE)
    return reading.answer_place(list(text), value, SCALE) if isinstance(value, str) else None


READERS: dict[str, Callable[[str], Any]] = {
    "extract_strict": answers.extract_strict,
    "extract_flexible": answers.extract_flexible,
    "unit_of": answers.unit_of,
    "is_blank": records.is_blank,
    "is_rendered": lambda text: records.is_rendered("user", text),
    "marks_in": records.marks_in,
    "broken": records.BROKEN.findall,
    "printed": records.PRINTED.fullmatch,
    "check_plain": lambda text: records.check_plain("output", text),
    "without_thoughts": without_thoughts,
    "dropped by a template": dropped,
    "spoken": thoughts.spoken,
    "opens_thought": thoughts.opens_thought,
    "read a number": lambda text: reply_text.read_choice(text, SCALE),
    "read a letter": lambda text: reply_text.read_choice(text, LETTERS),
    "place of an answer": place,
    "answer_of": answer_key.answer_of,
    "marked_answer of a benchmark": math.marked_answer,
    "choices": multiple_choice._plain,
    "words of a server": openai_dialect.server_words,
    "quote": quoted,
}
