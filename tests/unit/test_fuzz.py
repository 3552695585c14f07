"""A short fuzz of what reads text, rows and files of others, and inputs that the fuzzers found (bench/fuzz.py)."""

from __future__ import annotations

import datetime
import json
from typing import Any

import pyarrow as pa
import pytest
from fuzz_files import CHATS
from fuzz_rows import SETTINGS
from fuzz_source import nested
from fuzz_tables import ARROW_FILE
from fuzzing import TARGETS, limited
from hypothesis import HealthCheck, given, settings

# Configurations take about 50 ms each, new templates 5 ms.
EXAMPLES = {"overrides": 60, "file": 60, "template": 60, "growth": 60, "text": 500}
TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
CHAT = SETTINGS[0]
DIGITS = tuple("0123456789")


def called(arguments: Any) -> list[dict[str, Any]]:
    call = {"function": {"name": "f", "arguments": arguments}}
    return [{"messages": [TURNS[0], {"role": "assistant", "content": "", "tool_calls": [call]}]}]


def token(written: Any) -> dict[str, Any]:
    entry = {"token": "7", "bytes": written, "logprob": -0.1, "top_logprobs": []}
    return {"choices": [{"message": {"content": "7"}, "logprobs": {"content": [entry]}}]}


# Inputs of the targets that broke a promise.
FOUND: list[tuple[str, Any]] = [
    *(("rows", ([{"messages": text}], "messages", CHAT)) for text in ("[" * 3000, json.dumps(nested("a", 0, 400)))),
    *(("rows", ([{"messages": nested("role", kind, 400)}], "messages", CHAT)) for kind in (0, 1, 2)),
    ("rows", ([{"messages": TURNS, "\ud800": 1}], "messages", CHAT)),
    ("rows", ([{"messages": TURNS, "group": "\ud800"}], "messages", SETTINGS[1])),
    *(("foreign rows", (called({"a": value}), "messages", CHAT)) for value in (b"x", datetime.date(2026, 1, 2))),
    ("foreign rows", ([{"messages": TURNS, "tools": [{"name": "f", "since": datetime.date(2026, 1, 2)}]}], "messages", CHAT)),
    *(
        ("questions", ([{"ctx": "q", "endings": ["x", "y"], "label": label}], "", CHAT))
        for label in ("\u00b2", "9" * 5000, "\u0661", "0")
    ),
    *(
        ("questions", ([record], "", CHAT))
        for record in (
            {"ctx": "\ud800", "endings": ["x", "y"], "label": "0"},
            {"problem": "\ud800", "solution": "\\boxed{1}"},
            {"prompt": "\ud800"},
            {"prompt": "q", "dataset": "\ud800"},
            {"turns": 7},
        )
    ),
    ("lines", (b'{"a": ' + b"[" * 400 + b"]" * 400 + b"}\n" + b"[" * 400 + b"]" * 400, 7)),
    *(
        ("table", ([(kind, [10**17, 0])], arrow))
        for kind in (pa.timestamp("s"), pa.timestamp("us", "Foo/Bar"), pa.date64(), pa.duration("s"))
        for arrow in (0, 1)
    ),
    *(("prompts", text) for text in ("a: 2026-99-99", "a: !!timestamp x", "a: !!bool maybe", "a: 0b_", "a: " + "[" * 2000)),
    *(("body", (token(written), DIGITS)) for written in (10**400, 10**9)),
    ("body", ({"error": nested("error", 2, 480)}, DIGITS)),
    ("refusal", (400, {"message": "top_logprobs must be at most " + "9" * 5000}, "logprobs")),
    ("refusal", (400, {"message": "maximum context length is " + "9" * 5000 + " tokens"}, "")),
    ("refusal", (400, nested("error", 0, 900), "")),
    *(
        ("state", (name, content))
        for name in ("started.json", "done.json", "owner.json")
        for content in (b"[]", b"7", b"[" * 3000)
    ),
    *(("state", (name, b'{"uri": 7}')) for name in ("mlflow_run.json", "model/../mlflow_run.json")),
    ("state", ("report/findings.json", b"[1]")),
    *(("pointer", text) for text in ("../..", "/", "a\x00b", "x" * 3000, "\ud800", "", "..")),
    *(
        ("user file", (name, content))
        for name, content in (
            ("config.json", b"\x00"),
            ("config.json", b'{"text_config": [1]}'),
            ("adapter_config.json", b'{"r": -Infinity}'),
            ("adapter_config.json", b"[" * 3000),
            ("state.json", b'{"_data_files": NaN}'),
            ("state.json", b'{"_data_files": [{}]}'),
            ("dataset_dict.json", b'{"splits": [true]}'),
            ("dataset_dict.json", b"[]"),
        )
    ),
    *(
        ("template", (text, CHATS[0]))
        for text in (
            "{{ 1/0 }}",
            "{{ 10 ** 400 * 1.0 }}",
            "{{ range(99999999) }}",
            "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
        )
    ),
]


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.slow
def test_no_input_breaks_a_promise(name: str) -> None:
    target = TARGETS[name]

    @settings(max_examples=EXAMPLES.get(name, 200), deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(target.inputs)
    def run(value: Any) -> None:
        limited(target.check, value)

    run()


@pytest.mark.parametrize(("name", "value"), FOUND)
@pytest.mark.slow
def test_an_input_that_was_found_breaks_no_promise(name: str, value: Any) -> None:
    limited(TARGETS[name].check, value)


@pytest.mark.slow
def test_a_damaged_arrow_file_is_an_error_that_does_not_end_the_process() -> None:
    for at in range(len(ARROW_FILE)):
        TARGETS["arrow"].check(("arrow", ARROW_FILE[:at] + bytes([ARROW_FILE[at] ^ 255]) + ARROW_FILE[at + 1 :]))
        TARGETS["arrow"].check(("arrow", ARROW_FILE[:at]))
