"""Formats: what a turn has besides its text, and columns that change what rows mean."""

from __future__ import annotations

import json
from typing import Any

import pytest
from format_rows import ASSISTANT, GPT, HUMAN, PLAIN, ROWS, USER, Row, messages_of

from ual_ray.columns import content_id, digest, extra_of
from ual_ray.data.formats import (
    BadRow,
    convert,
    recognise,
)
from ual_ray.data.known_formats import (
    messages_from_alpaca,
)
from ual_ray.errors import UserError

CALL = {"type": "function", "function": {"name": "weather", "arguments": '{"city":"Rome"}'}}
TOOL = {"type": "function", "function": {"name": "weather"}}


@pytest.mark.parametrize(
    "turn",
    [
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "assistant", "content": "", "tool_calls": [CALL["function"]]},
        {"role": "assistant", "function_call": CALL["function"]},
        {"role": "assistant", "content": "", "tool_calls": [CALL | {"index": 0}]},
    ],
)
def test_every_form_of_a_tool_call_is_kept(turn: Row) -> None:
    for row in ({"messages": [USER, turn]}, {"prompt": [USER], "completion": [turn]}):
        messages = messages_of(row, recognise([row], "x", {}))
        assert messages[-1]["content"] == "" and extra_of(messages[-1]) == {"tool_calls": [CALL]}


def test_sharegpt_calls_and_their_results_are_turns() -> None:
    call = {"from": "function_call", "value": json.dumps({"name": "weather", "arguments": {"city": "Rome"}})}
    row = {"conversations": [HUMAN, call, {"from": "observation", "value": '{"t":21}'}, GPT], "tools": '[{"name":"weather"}]'}
    messages = messages_of(row, "sharegpt")
    assert [message["role"] for message in messages] == ["user", "assistant", "tool", "assistant"]
    assert extra_of(messages[0]) == {"tools": [TOOL]}
    assert extra_of(messages[1])["tool_calls"][0]["function"] == {"name": "weather", "arguments": {"city": "Rome"}}


@pytest.mark.parametrize("tools", [[TOOL], [TOOL["function"]], json.dumps([TOOL])])
@pytest.mark.parametrize("name", ROWS)
def test_tools_are_kept_whatever_the_format(name: str, tools: Any) -> None:
    assert extra_of(messages_of(ROWS[name] | {"tools": tools}, name)[0]) == {"tools": [TOOL]}
    assert messages_of(ROWS[name] | {"tools": ""}, name) == messages_of(ROWS[name] | {"tools": []}, name) == PLAIN
    for bad in ("not JSON", [{"x": 1}], {"name": "f"}):
        with pytest.raises(BadRow, match="tools"):
            messages_of(ROWS[name] | {"tools": bad}, name)


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_is_kept_or_dropped(key: str) -> None:
    row = {"messages": [USER, ASSISTANT | {key: "Because."}]}
    assert extra_of(messages_of(row, "messages")[-1]) == {"reasoning_content": "Because."}
    assert messages_of(row, "messages", thinking="drop") == PLAIN
    inline = {"messages": [USER, {"role": "assistant", "content": "<think>Because.</think>\n\na"}]}
    assert messages_of(inline, "messages")[-1]["content"] == inline["messages"][1]["content"]
    assert messages_of(inline, "messages", thinking="drop") == PLAIN


@pytest.mark.parametrize("weight", [0, 0.3, "0", "2", 0.5])
def test_rows_of_different_weights_are_asked_for(weight: Any) -> None:
    rows = [ROWS["alpaca"] | {"weight": weight} for weight in (None, 1, 1.0, "1", "", weight)]
    with pytest.raises(UserError, match=f"has rows of weights other than 1: the column weight is {weight!r}"):
        recognise(rows, "x", {})
    assert recognise(rows[:-1], "x", {}) == "alpaca"


@pytest.mark.parametrize(
    ("column", "value"),
    [
        *[("context", "c"), ("choices", ["a"]), ("label", False), ("kto_tag", "FALSE"), ("weight", 0.0)],
        *[
            ("split", "test"),
            ("split", "Validation"),
            ("chat_template_kwargs", {"x": 1}),
            ("tools_json", "[]"),
            ("preamble", "x"),
            *[("contexts", ["x"]), ("paragraphs", ["x"]), ("schema", "x"), ("story", "x")],
        ],
        *[(column, "x") for column in ("solution", "rationale", "explanation", "cot")],
        *[("label", 0), ("is_correct", "0"), ("desirable", -1), ("weight", 0.5), ("sample_weight", "2")],
    ],
)
def test_a_later_row_with_a_column_that_changes_its_meaning_is_bad(column: str, value: Any) -> None:
    rows = [ROWS["gsm8k"], ROWS["gsm8k"] | {column: None}, ROWS["gsm8k"] | {column: value}]
    *good, (_, reason) = convert(rows, "gsm8k", {}, strict=True)
    assert [messages for _, messages in good] == [PLAIN, PLAIN]
    assert str(reason) == f"a column that is not read: {column} (data.format=gsm8k leaves it out)"
    assert [messages for _, messages in convert(rows, "gsm8k", {})] == [PLAIN] * 3
    assert [messages for _, messages in convert(rows[:2], "gsm8k", {"source": column}, strict=True)] == [PLAIN] * 2


@pytest.mark.parametrize("key", ["mask", "train_detail", "channel"])
def test_what_is_trained_of_a_turn_is_not_left_out(key: str) -> None:
    with pytest.raises(BadRow, match=f"a message has {key}, which cannot be used"):
        messages_of({"messages": [USER, ASSISTANT | {key: "analysis"}]}, "messages")
    for harmless in (None, False, 0, [], "", "final"):
        assert messages_of({"messages": [USER, ASSISTANT | {key: harmless}]}, "messages") == PLAIN


def test_parts_of_text_are_joined() -> None:
    parts = [{"type": "text", "text": "q1 "}, {"type": "text", "text": "q2"}]
    assert messages_of({"messages": [{"role": "user", "content": parts}, ASSISTANT]}, "messages")[0]["content"] == "q1 q2"


def test_a_part_without_its_text_is_not_left_out() -> None:
    parts = [{"type": "text", "text": "q1 "}, {"type": "text", "value": "q2"}]
    with pytest.raises(BadRow, match="a part without a text"):
        messages_of({"messages": [{"role": "user", "content": parts}, ASSISTANT]}, "messages")


def test_a_weight_of_0_is_kept_and_tells_rows_apart() -> None:
    turns = [USER, ASSISTANT | {"weight": 0}, USER, ASSISTANT | {"weight": 1}]
    messages = messages_of({"messages": turns}, "messages")
    assert [extra_of(message) for message in messages] == [{}, {"weight": 0}, {}, {}]
    assert content_id(messages) != content_id(messages_of({"messages": [USER, ASSISTANT] * 2}, "messages"))
    assert content_id(PLAIN) == digest([["user", "q"], ["assistant", "a"]])


# --- columns that change what rows mean ------------------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["context", "passage", "history", "A", "opa", "system_prompt", "sys", "reasoning_content"])
@pytest.mark.parametrize("name", ROWS)
def test_a_column_that_belongs_to_a_text_is_asked_for_wherever_it_first_has_a_value(name: str, column: str) -> None:
    rows = [ROWS[name] | {column: None}, ROWS[name] | {column: ""}, ROWS[name] | {column: "x"}]
    assert recognise(rows[:2], "x", {}) == name
    with pytest.raises(UserError, match=f"which does not read the column {column}"):
        recognise(rows, "x", {})


@pytest.mark.parametrize(
    ("column", "value", "fix"),
    [
        ("system_prompt", "s", "'data.columns={system: system_prompt}' uses it, data.format=gsm8k leaves it out"),
        ("available_tools", [{"name": "f"}], "'data.columns={tools: available_tools}' uses it, "),
        ("passage", "p", "'data.columns={context: passage}' puts it before the question, "),
        ("choices", ["a", "b"], "fix: data.format=gsm8k leaves it out"),
        ("reasoning", "r", "fix: data.format=gsm8k leaves it out"),
    ],
)
def test_what_can_be_done_with_a_column_is_stated(column: str, value: Any, fix: str) -> None:
    with pytest.raises(UserError) as error:
        recognise([ROWS["gsm8k"] | {column: value}], "x", {})
    assert fix in str(error.value)


@pytest.mark.parametrize(
    "column",
    [
        *("chat_history", "conversation_history", "previous_messages", "suffix", "prefix"),
        *("image_path", "image_url", "video_path", "audio_file", "mask_history", "train_on_last", "only_last"),
    ],
)
@pytest.mark.parametrize("name", ROWS)
def test_what_stands_before_a_text_or_tells_what_is_trained_is_asked_for(name: str, column: str) -> None:
    with pytest.raises(UserError, match=f"which does not read the column {column}"):
        recognise([ROWS[name] | {column: "x"}], "x", {})
    assert recognise([ROWS[name] | {column: None}], "x", {}) == name


@pytest.mark.parametrize("value", [0, False, "0"])
def test_rows_that_are_not_to_be_trained_on_are_asked_for(value: Any) -> None:
    with pytest.raises(UserError, match=f"the column loss is {value!r}"):
        recognise([ROWS["messages"] | {"loss": value}], "x", {})


@pytest.mark.parametrize(
    "column", ["System Prompt", "systemPrompt", "SYSTEM", "system-message", "Context", "PASSAGE", "Options"]
)
@pytest.mark.parametrize("name", ROWS)
def test_a_column_is_asked_for_however_its_name_is_spelled(name: str, column: str) -> None:
    with pytest.raises(UserError, match=f"which does not read the column {column}"):
        recognise([ROWS[name] | {column: "x"}], "x", {})
    *_, (_, reason) = convert([ROWS[name] | {column: "x"}], name, {}, strict=True)
    assert isinstance(reason, BadRow)


@pytest.mark.parametrize(
    "column", ["Complex_CoT", "deepseek_reasoning", "thinking_trajectory", "reasoning trace", "model_thoughts"]
)
@pytest.mark.parametrize("name", ROWS)
def test_a_thought_in_a_column_of_any_name_is_asked_for(name: str, column: str) -> None:
    for value in ("First I add both numbers.", ["First I add both numbers."]):
        with pytest.raises(
            UserError, match=f"which does not read the column {column}(?s:.*)fix: data.format={name} leaves it out"
        ):
            recognise([ROWS[name] | {column: value}], "x", {})
    for harmless in ("deep", True, 3, None, "", []):
        assert recognise([ROWS[name] | {column: harmless}], "x", {}) == name
    assert recognise([ROWS[name] | {"reasonings": "First I add both numbers."}], "x", {}) == name


@pytest.mark.parametrize(
    ("columns", "mapping"),
    [
        (("instruction", "response"), "output: response"),
        (("instruction", "response", "context", "category"), "output: response, input: context"),
        (("prompt", "response"), "instruction: prompt, output: response"),
        (("input", "output"), "instruction: input"),
        (("Question", "Answer", "n"), "instruction: Question, output: Answer"),
        (("question", "response", "system_prompt"), "instruction: question, output: response"),
    ],
)
def test_the_mapping_of_a_pair_is_told(columns: tuple[str, ...], mapping: str) -> None:
    row = dict.fromkeys(columns, "x")
    with pytest.raises(UserError, match=f"data.columns={{{mapping}}}"):
        recognise([row], "x", {})


def test_dialogues_of_preference_data_are_to_be_split() -> None:
    with pytest.raises(UserError, match="preference data: split the dialogues of chosen"):
        recognise([{"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "x"}], "x", {})


@pytest.mark.parametrize("column", ["label", "kto_tag", "is_correct", "desirable", "verified", "accepted", "is_safe", "passed"])
@pytest.mark.parametrize("bad", [False, "False", 0, "0", 0.0, "0.0", -1, "undesirable", "Rejected"])
def test_responses_that_are_marked_as_bad_are_not_trained_on_unasked(column: str, bad: Any) -> None:
    good = [ROWS["alpaca"] | {column: verdict} for verdict in (True, 1, "1.0", None, "", "desirable")]
    assert recognise(good, "x", {}) == "alpaca"
    # A class 0 is told from a verdict by nobody but the user.
    for rows in ([*good, ROWS["alpaca"] | {column: bad}], [ROWS["alpaca"] | {column: topic} for topic in (1, bad, 2)]):
        with pytest.raises(
            UserError, match=f"has rows that may not be for training: the column {column} is (?s:.*)data.format=alpaca"
        ):
            recognise(rows, "x", {})


@pytest.mark.parametrize(
    ("row", "mapping"),
    [
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, {"completion": "chosen"}),
        ({"chosen": PLAIN, "rejected": PLAIN}, {"messages": "chosen"}),
        ({"prompt": "q", "chosen": PLAIN, "rejected": PLAIN}, {"messages": "chosen"}),
        ({"prompt": [USER], "chosen": [ASSISTANT], "rejected": [ASSISTANT]}, {"completion": "chosen"}),
        ({"instruction": "q", "chosen": "a", "rejected": "b"}, {"output": "chosen"}),
    ],
)
def test_preference_data_is_named_and_its_mapping_works(row: Row, mapping: dict[str, str]) -> None:
    ((ours, theirs),) = mapping.items()
    with pytest.raises(UserError, match=f"preference data: 'data.columns={{{ours}: {theirs}}}'"):
        recognise([row], "x", {})
    name = recognise([row], "x", mapping)
    ((_, messages),) = convert([row], name, mapping)
    assert messages == PLAIN


def test_a_zero_is_no_empty_input() -> None:
    with pytest.raises(BadRow, match="input is not text: 0"):
        messages_from_alpaca({"instruction": "q", "input": 0, "output": "a"})


def test_the_way_to_an_answer_is_asked_for_where_there_are_no_turns() -> None:
    fix = "'data.columns={answer: solution}' trains on it, data.format=gsm8k leaves it out"
    with pytest.raises(UserError, match=f"does not read the column solution(?s:.*){fix}"):
        recognise([ROWS["gsm8k"] | {"solution": "s"}], "x", {})
    assert recognise([ROWS["messages"] | {"problem": "p", "solution": "s"}], "x", {}) == "messages"
    assert recognise([ROWS["alpaca"] | {"split": "train"}], "x", {}) == "alpaca"
