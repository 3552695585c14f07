"""What is fuzzed: strategies for inputs, and what must hold for each. `bench/fuzz.py` runs them for long, unit tests briefly.

A target takes any input and returns, or raises only the error that its callers expect; it never hangs.
"""

from __future__ import annotations

import json
import math
import signal
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import fuzz_files
import fuzz_rows
import fuzz_tables
import fuzz_texts
import yaml
from fuzz_source import Target
from hypothesis import strategies as st

from ual_ray.config import Config
from ual_ray.config.load import dotted_keys, dump, load
from ual_ray.config.redact import redact
from ual_ray.engines.openai_dialect import server_words
from ual_ray.engines.openai_replies import (
    MalformedReply,
    parse_body,
    read_choices,
    read_choices_behind_thought,
    read_replies,
    used_tokens,
)
from ual_ray.engines.reply_text import Unread, read_choice
from ual_ray.errors import UserError

DEFAULTS = Config().model_dump(mode="json")
KEYS = sorted(dotted_keys(DEFAULTS))
# Any character that a program can hold, lone surrogates too: JSON's escapes make them.
TEXT = st.text(st.characters(), max_size=30)
ODD = st.sampled_from(
    ["", " ", "null", "~", "0x1F", "1e999", "-0", ".nan", ".inf", "1_000", "2026-11-28", "${seed}", "${oc.env:HOME}", "${", "}"]
    + ["[", "{", "- a", "a: b", "*a", "&a", "!!python/object:os.system", "%", "@", "`", "\t", "\x00", "'", '"', "\\", "on"]
)
SCALAR = st.none() | st.booleans() | st.integers() | st.floats() | TEXT | ODD
NAMES = st.sampled_from([*DEFAULTS, *KEYS, *{part for key in KEYS for part in key.split(".")}])
NESTED = st.recursive(
    SCALAR, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES | TEXT, inner, max_size=4), max_leaves=12
)
OVERRIDE = st.tuples(st.sampled_from(KEYS) | NAMES | TEXT, SCALAR.map(str) | NESTED.map(repr)).map("=".join) | TEXT

REPLY_KEYS = st.sampled_from(
    ["choices", "message", "content", "text", "type", "logprobs", "top_logprobs", "token", "bytes", "logprob", "finish_reason"]
    + ["usage", "prompt_tokens", "completion_tokens", "error", "code", "param", "reasoning_content", "reasoning", "refusal"]
)
MARKS = st.lists(
    st.sampled_from(
        ["<think>", "</think>", "<|channel|>", "analysis", "final", "<|message|>", "assistantfinal", "Rating:", "7", "10", "0"]
        + ["A", "\\boxed{7}", '{"rating": 7}', "```json\n7\n```", "**", "<answer>7</answer>", "/", " ", "\n", "[THINK]", "not"]
    )
    | TEXT,
    max_size=12,
).map("".join)
NUMBER = st.integers() | st.floats() | st.sampled_from([0, -1.5, -math.inf, 10**400, -(10**400)])
LEAF = st.none() | st.booleans() | NUMBER | TEXT | MARKS
ANY_JSON = st.recursive(
    LEAF, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(REPLY_KEYS | TEXT, inner, max_size=4), max_leaves=15
)


def _sometimes(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Mostly what is expected, else anything."""
    return strategy | strategy | strategy | ANY_JSON


TOKEN = st.fixed_dictionaries(
    {"token": _sometimes(MARKS), "logprob": _sometimes(NUMBER)}, optional={"bytes": _sometimes(st.lists(st.integers(0, 255)))}
)
TOKENS = st.fixed_dictionaries(
    {
        "token": _sometimes(MARKS),
        "logprob": _sometimes(NUMBER),
        "top_logprobs": _sometimes(st.lists(_sometimes(TOKEN), max_size=4)),
    }
)
CHOICE = st.fixed_dictionaries(
    {
        "message": _sometimes(
            st.fixed_dictionaries({"content": _sometimes(MARKS)}, optional={"reasoning_content": ANY_JSON, "refusal": ANY_JSON})
        )
    },
    optional={
        "finish_reason": st.sampled_from(["stop", "length"]) | ANY_JSON,
        "logprobs": _sometimes(st.fixed_dictionaries({"content": _sometimes(st.lists(_sometimes(TOKENS), max_size=3))})),
    },
)
BODY = _sometimes(
    st.fixed_dictionaries(
        {"choices": _sometimes(st.lists(_sometimes(CHOICE), max_size=3))}, optional={"usage": ANY_JSON, "error": ANY_JSON}
    )
)
SCALES = st.sampled_from([tuple("0123456789"), ("A", "B"), tuple(map(str, range(101)))])


SECONDS = 10  # of CPU time that any input may take


class TooLong(BaseException):
    """An input takes too long; no code under test catches it."""


def limited(check: Callable[[Any], None], value: Any) -> None:
    """Check an input. Raises AssertionError where it takes longer than SECONDS, in the main thread."""

    def end(*_: object) -> None:
        raise TooLong

    before = signal.signal(signal.SIGVTALRM, end)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        check(value)
    except TooLong:
        raise AssertionError(f"the input takes more than {SECONDS} s") from None
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def check_overrides(overrides: list[str]) -> None:
    """Overrides load, or are refused as a user's mistake; what loads can be written and read back."""
    try:
        config = load(None, overrides)
    except UserError as error:
        assert str(error)
        return
    check_round_trip(config)


def check_file(content: Any) -> None:
    """A configuration file of any content loads, or is refused as a user's mistake."""
    raw = content if isinstance(content, bytes) else yaml.safe_dump(content).encode()
    with tempfile.NamedTemporaryFile(suffix=".yaml") as file:
        file.write(raw)
        file.flush()
        try:
            config = load(file.name)
        except UserError:
            return
    check_round_trip(config)


def check_round_trip(config: Config) -> None:
    """A configuration that was accepted is the same after writing and reading, and can be redacted."""
    redact(config)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(dump(config), encoding="utf-8")
        assert load(path) == config


def check_body(given: tuple[Any, tuple[str, ...]]) -> None:
    """A server's reply is read, or is malformed; log-probabilities are at most 0, and counts are not negative."""
    content, choices = given
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    try:
        body = parse_body(raw)
    except MalformedReply:
        return
    assert used_tokens(body, "prompt_tokens") >= 0
    server_words(body.get("error"))
    try:
        for reply in read_replies(body):
            assert reply.log_probability is None or math.isfinite(reply.log_probability)
    except MalformedReply:
        pass
    for read in (read_choices, read_choices_behind_thought):
        try:
            values = read(body, choices)
        except MalformedReply:
            continue
        if isinstance(values, tuple):
            assert len(values) == len(choices) and all(value <= 0 for value in values)


def check_text(given: tuple[str, tuple[str, ...]]) -> None:
    """A reply's text gives one of the choices, or a reason."""
    text, choices = given
    found = read_choice(text, choices)
    assert found.reason if isinstance(found, Unread) else found in choices


TARGETS: Mapping[str, Target] = {
    "overrides": Target(st.lists(OVERRIDE, max_size=4), check_overrides),
    "file": Target(st.dictionaries(NAMES, NESTED, max_size=4) | st.binary(max_size=200), check_file),
    "body": Target(st.tuples(BODY | st.binary(max_size=200), SCALES), check_body),
    "text": Target(st.tuples(MARKS | TEXT, SCALES), check_text),
    **fuzz_texts.TARGETS,
    **fuzz_rows.TARGETS,
    **fuzz_tables.TARGETS,
    **fuzz_files.TARGETS,
}
