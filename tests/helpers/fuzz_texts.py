"""Fuzz targets of what reads texts of models and words of servers. Each check raises for a broken promise."""

from __future__ import annotations

import time
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

from fuzz_source import ODD, PIECES, Source, Target, of_bytes, text_of
from text_readers import LETTERS, READERS, SCALE

from ual_ray.benchmarks.answer_key import answer_of, same_answer
from ual_ray.benchmarks.benchmark import Question
from ual_ray.benchmarks.gsm8k import Gsm8k
from ual_ray.benchmarks.math import marked_answer
from ual_ray.benchmarks.open_ended import OpenEnded
from ual_ray.columns import Message
from ual_ray.config import EndpointConfig
from ual_ray.data.answers import extract_flexible, extract_strict, normalise_number, same_number
from ual_ray.data.records import BadRow
from ual_ray.data.turns import without_thoughts
from ual_ray.elicit.estimators.verbalized import VerbalizedError
from ual_ray.engines.openai_client import read_overlong
from ual_ray.engines.openai_dialect import Dialect, quote, server_words
from ual_ray.engines.reading import answer_place, choice_probabilities
from ual_ray.engines.reply_text import Unread, read_reply
from ual_ray.engines.requests import Completion, CompletionResult
from ual_ray.engines.thoughts import end_of_thought, left_open, opens_thought, spoken
from ual_ray.judge.task import preference_of_candidate

PERCENT = tuple(map(str, range(101)))
FINISHES = (None, "stop", "length", "content_filter", "tool_calls", "eos", "", "STOP")
CHOICES = (SCALE, LETTERS, ("A", "B"), PERCENT)
GSM8K, OPEN_ENDED = Gsm8k(), OpenEnded()
RATING = VerbalizedError(prompts=None, lowest=0, highest=9)  # type: ignore[arg-type]
WORDS = (
    *("message", "msg", "detail", "error", "errors", "loc", "code", "param", "type", "n", "seed", "temperature", "logprobs"),
    *("max_completion_tokens", "max_tokens", "is not supported", "must be at most ", "top_logprobs", "best_of", "unknown"),
    *("maximum context length is ", "contains ", " tokens", "input length", "requested ", "5", "20", "4096", "9" * 5000),
    *("<!doctype html>", "<title>502</title>", "<style>", "</style>", "<!--", "-->", "<", ">", "&lt;", "&#99999999;"),
    *("sk-secret", "What is the colour of the sky on Mars?", " ", "\n", "context_length_exceeded", "reduce the length"),
    *ODD,
)
PROMPT = (("system", "Rate it."), ("user", "What is the colour of the sky on Mars?" * 3))
ENDPOINT = EndpointConfig(url="http://127.0.0.1:1/v1")
ASKED = Completion(PROMPT, 32)


# --- replies ---------------------------------------------------------------------------------------------------------


def verdict_of(data: bytes) -> Any:
    source = Source(data)
    choices, count = source.pick(CHOICES), 1 + source.number(3)
    finishes = [source.pick(FINISHES) for _ in range(count)]
    return [text_of(part) for part in split(source.rest(), count)], finishes, choices


def split(data: bytes, count: int) -> list[bytes]:
    size = -(-len(data) // count)
    return [data[at * size : (at + 1) * size] for at in range(count)]


def check_verdict(given: tuple[list[str], list[str | None], tuple[str, ...]]) -> None:
    """Replies give shares of the choices, or a reason; a rating is on the scale, and a preference between 1 and 2."""
    texts, finishes, choices = given
    readings = [read_reply(text, finish, choices) for text, finish in zip(texts, finishes, strict=True)]
    for reading in readings:
        assert reading.reason if isinstance(reading, Unread) else reading in choices
    result = CompletionResult(tuple(texts), 1, 1, finish_reasons=tuple(finishes))
    shares = choice_probabilities(result, choices, 0.01)
    if choices == SCALE:
        estimate = RATING.reduce([result], [])
        assert estimate.reason if estimate.uncertainty is None else 0 <= estimate.uncertainty <= 1
    if isinstance(shares, Unread):
        assert shares.reason
        return
    assert len(shares) == len(choices) and abs(sum(shares) - 1) < 1e-9 and min(shares) >= 0
    assert all(1 <= preference_of_candidate(shares[0], first) <= 2 for first in (True, False))


def check_thought(text: str) -> None:
    """What follows a thought is a part of the reply, and a thought is left out of replies alone."""
    said = spoken(text)
    assert said is None or (said == said.strip() and isinstance(left_open(said), bool))
    assert 0 <= end_of_thought(text) <= len(text) and isinstance(opens_thought(text), bool)
    asked = Message(role="user", content=text)
    with suppress(BadRow):
        first, reply = without_thoughts([asked, Message(role="assistant", content=text)])
        assert first == asked, "a question is not changed"
        assert len(reply["content"]) <= len(text)


def check_place(given: tuple[list[str], list[str | None], tuple[str, ...]]) -> None:
    """The place of an answer is a token that starts it."""
    (text, *_), _, choices = given
    value = read_reply(text, None, choices)
    if isinstance(value, str):
        for tokens in (list(text), text.split("7")):
            place = answer_place(tokens, value, choices)
            assert place is None or value.startswith(tokens[place].strip())


# --- answers ---------------------------------------------------------------------------------------------------------


def check_answer(text: str) -> None:
    """Answers are equal to themselves, and a number that is marked is a number of the text."""
    strict, flexible, marked, key = extract_strict(text), extract_flexible(text), marked_answer(text), answer_of(text)
    for number in (strict, flexible):
        assert number is None or (same_number(number, number) and normalise_number(number) == number)
    assert strict is None or flexible is not None
    assert marked is None or marked
    assert key is None or (key.text and same_answer(key, key))
    asked = [Message(role="user", content="q"), Message(role="assistant", content=text)]
    assert (GSM8K.question(asked, "s") is None) == (strict is None)
    assert (OPEN_ENDED.question(asked, "s") is None) == (strict is not None or marked is not None)
    if strict is not None:
        reading = GSM8K.read(Question(asked[:1], answer=strict), [CompletionResult((text,), 1, 1)])
        assert {*reading.scores.values()} <= {0.0, 1.0} and reading.scores["exact_match_strict"] == 1.0


# --- words of a server -----------------------------------------------------------------------------------------------


def refusal_of(data: bytes) -> Any:
    source = Source(data)
    status = source.pick((400, 404, 413, 422, 429, 500))
    return status, source.mostly(lambda: source.value(WORDS), lambda: source.text(WORDS, 40)), source.text(WORDS, 6)


def check_refusal(given: tuple[int, Any, str]) -> None:
    """Words of a refusal are quoted without the key, and change what is sent only once."""
    status, body, param = given
    words = server_words(body)
    assert "sk-secret" not in quote(words, PROMPT, ("sk-secret",))
    error = SimpleNamespace(status_code=status, message=words, code=None, type=param, body=body)
    read_overlong(error, ASKED)  # type: ignore[arg-type]
    dialect, steps = Dialect.of(ENDPOINT), 0
    while (adapted := dialect.adapted(words, param)) is not None:
        assert adapted != dialect and adapted.top_logprobs > 0
        assert (steps := steps + 1) < 64, "the server is asked for ever"
        dialect = adapted


# --- time ------------------------------------------------------------------------------------------------------------

SHORT, LONG = 4000, 16_000  # characters
SUSPECT_SECONDS = 0.016  # at least, as the clock of a process ticks every 4 ms on some machines
NAMES = tuple(READERS)


def repeated_of(data: bytes) -> Any:
    source = Source(data)
    name = source.pick(NAMES)
    unit = source.pick((" ", "\n", *PIECES)) if source.number(3) else source.text() or "\u0316\u0300"
    start, end = source.text(most=4), source.text(most=3)
    return name, start, unit, end


def check_growth(given: tuple[str, str, str, str]) -> None:
    """Four times the text takes four times as long, not sixteen times."""
    name, start, unit, end = given

    def seconds(characters: int) -> float:
        text, began = start + unit * (characters // len(unit)) + end, time.process_time()
        with suppress(BadRow):
            READERS[name](text)
        return time.process_time() - began

    if seconds(SHORT) > SUSPECT_SECONDS:
        short = min(seconds(SHORT) for _ in range(3))
        if short > SUSPECT_SECONDS:
            assert min(seconds(LONG) for _ in range(2)) < 9 * short, f"{name} takes more than linear time"


TARGETS: dict[str, Target] = {
    "verdict": of_bytes(verdict_of, check_verdict),
    "thought": of_bytes(text_of, check_thought),
    "place": of_bytes(verdict_of, check_place, size=60),
    "answer": of_bytes(text_of, check_answer),
    "refusal": of_bytes(refusal_of, check_refusal),
    "growth": of_bytes(repeated_of, check_growth, size=20),
}
