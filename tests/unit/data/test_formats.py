"""Formats: every form of row, the columns that tell it, and a reason for every bad row."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ual_ray.columns import content_id, digest, extra_of
from ual_ray.data.formats import (
    FORMATS,
    BadRow,
    convert,
    expected_columns,
    recognise,
    rename,
)
from ual_ray.data.known_formats import (
    messages_from_alpaca,
    messages_from_chat,
    messages_from_prompt_completion,
    messages_from_sharegpt,
)
from ual_ray.errors import UserError

Row = dict[str, Any]

USER = {"role": "user", "content": "q"}
ASSISTANT = {"role": "assistant", "content": "a"}
SYSTEM = {"role": "system", "content": "s"}
HUMAN = {"from": "human", "value": "q"}
GPT = {"from": "gpt", "value": "a"}

PLAIN = [USER, ASSISTANT]
ROWS: dict[str, Row] = {
    "messages": {"messages": [USER, ASSISTANT]},
    "sharegpt": {"conversations": [HUMAN, GPT]},
    "alpaca_eval": {"instruction": "q", "output": "a", "generator": "gpt4"},
    "alpaca": {"instruction": "q", "input": "", "output": "a"},
    "gsm8k": {"question": "q", "answer": "a"},
    "metamath": {"query": "q", "response": "a"},
    "prompt_completion": {"prompt": "q", "completion": "a"},
}


def messages_of(row: Row, name: str, **settings: str) -> Any:
    """Convert one row, its common columns included; raise what makes it a bad one."""
    ((_, messages),) = convert([row], name, {}, **settings)
    if isinstance(messages, BadRow):
        raise messages
    return messages


# --- what tells a format -----------------------------------------------------------------------------------------------


def test_there_is_an_example_of_every_format() -> None:
    assert set(ROWS) == set(FORMATS)


@pytest.mark.parametrize("name", ROWS)
def test_every_format_is_recognised_and_converted(name: str) -> None:
    row = {**ROWS[name], "score": 3}
    assert recognise([row], "rows.jsonl", {}) == name
    assert [*convert([row], name, {})] == [(row, PLAIN)]


def test_the_dataset_of_an_alpaca_eval_row_tells_it_too() -> None:
    assert recognise([{"dataset": "koala", "instruction": "q", "output": "a"}], "x", {}) == "alpaca_eval"


def test_an_input_is_kept_whatever_the_row_is_taken_for() -> None:
    row = {"dataset": "mixed", "instruction": "q", "input": "x", "output": "a"}
    ((_, messages),) = convert([row], recognise([row], "x", {}), {})
    assert messages == [{"role": "user", "content": "q\n\nx"}, ASSISTANT]


def test_the_format_is_recognised_behind_bad_lines() -> None:
    assert recognise([BadRow("not JSON"), {"a": 1}, ROWS["alpaca"]], "x", {}) == "alpaca"


def test_the_demo_is_made_of_messages() -> None:
    assert [*convert([{"messages": PLAIN}], "demo", {})] == [({"messages": PLAIN}, PLAIN)]


def test_unknown_columns_are_shown_with_the_legal_ones() -> None:
    with pytest.raises(UserError) as error:
        recognise([{"text": "q"}, {"label": "a"}], "rows.jsonl", {})
    message = str(error.value)
    assert "rows.jsonl is unknown" in message
    assert "got: columns ['label', 'text']" in message
    assert "alpaca (instruction, output); gsm8k (question, answer)" in message
    assert "alpaca_eval (instruction, output, generator or dataset)" in message


def test_rows_that_are_no_objects_have_no_format() -> None:
    with pytest.raises(UserError, match="no row that can be read"):
        recognise([BadRow("line 1 is not JSON")], "a.jsonl", {})


# --- columns of other names ----------------------------------------------------------------------------------------------


def test_columns_of_other_names_are_mapped() -> None:
    row = {"ask": "q", "reply": "a", "topic": "maths", "n": 1}
    columns = {"instruction": "ask", "output": "reply", "source": "topic"}
    assert recognise([row], "x", columns) == "alpaca"
    assert [*convert([row], "alpaca", columns)] == [({"n": 1, "instruction": "q", "output": "a", "source": "maths"}, PLAIN)]


def test_two_columns_may_change_places() -> None:
    assert rename({"query": "a", "response": "q"}, {"query": "response", "response": "query"}) == {
        "query": "q",
        "response": "a",
    }


def test_a_mapped_column_is_never_filled_from_another() -> None:
    """Where a row lacks the column that is mapped, one that happens to have our name is not what the user asked for."""
    assert rename({"instruction": "q", "output": "wrong"}, {"output": "best"}) == {"instruction": "q"}


@given(st.dictionaries(st.text(), st.integers()))
def test_without_a_mapping_a_record_is_as_it_was(record: dict[str, int]) -> None:
    assert rename(record, {}) is record


def test_a_mapping_of_no_known_column_is_refused() -> None:
    with pytest.raises(UserError) as error:
        recognise([{"ask": "q"}], "x", {"instructions": "ask"})
    assert "unknown column in data.columns: 'instructions'" in str(error.value)
    assert ", ".join(expected_columns()) in str(error.value)
    assert {"instruction", "conversations", "source", "id"} <= set(expected_columns())


def test_a_mapping_to_no_column_of_the_data_is_refused() -> None:
    with pytest.raises(UserError) as error:
        recognise([{"ask": "q", "reply": "a"}], "rows.jsonl", {"instruction": "asks", "output": "reply"})
    assert "rows.jsonl has no column 'asks' (for instruction)" in str(error.value)
    assert "columns ['ask', 'reply']" in str(error.value)


# --- alpaca --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"instruction": "q", "output": ""}, "no response: output is empty"),
        ({"instruction": "q", "output": "  \n"}, "no response"),
        ({"instruction": "q", "output": None}, "no response"),
        ({"instruction": "q"}, "no response"),
        ({"instruction": "", "output": "a"}, "no instruction"),
        ({"instruction": "", "input": "x", "output": "a"}, "no instruction"),
        ({"output": "a"}, "no instruction"),
        ({"instruction": 5, "output": "a"}, "instruction is not text: 5"),
        ({"instruction": "q", "output": ["a"]}, r"output is not text: \['a'\]"),
        ({"instruction": "q", "input": ["x"], "output": "a"}, r"input is not text: \['x'\]"),
        ({"instruction": "Cut \ud83d", "output": "a"}, "instruction is not Unicode: it holds half a surrogate pair"),
        ({"instruction": "q", "input": "\udc00", "output": "a"}, "input is not Unicode"),
    ],
)
def test_bad_alpaca_rows(row: Row, reason: str) -> None:
    with pytest.raises(BadRow, match=reason):
        messages_from_alpaca(row)


@pytest.mark.parametrize("extra", ["", None, "  "])
def test_an_empty_input_leaves_the_instruction_alone(extra: str | None) -> None:
    assert messages_from_alpaca({"instruction": "q", "input": extra, "output": "a"}) == PLAIN


def test_an_input_follows_the_instruction() -> None:
    row = {"instruction": "Translate.", "input": "être", "output": "to be"}
    assert messages_from_alpaca(row)[0] == {"role": "user", "content": "Translate.\n\nêtre"}


@pytest.mark.parametrize("name", ROWS)
def test_a_row_of_any_format_may_have_a_system_message(name: str) -> None:
    assert messages_of(ROWS[name] | {"system": "s"}, name) == [SYSTEM, *PLAIN]
    assert messages_of(ROWS[name] | {"system": None}, name) == PLAIN


@pytest.mark.parametrize("text", ["    x = 1\n    return x\n", "\n\ta ", " a", "a\r\n"])
@pytest.mark.parametrize("name", ROWS)
def test_a_text_is_kept_byte_for_byte(name: str, text: str) -> None:
    row = json.loads(json.dumps(ROWS[name]).replace('"a"', json.dumps(text)).replace('"q"', json.dumps(text)))
    assert [message["content"] for message in messages_of(row, name)] == [text, text]


def test_reasons_are_short_however_long_the_value() -> None:
    with pytest.raises(BadRow) as error:
        messages_from_alpaca({"instruction": ["x" * 5000], "output": "a"})
    assert len(str(error.value)) < 150


# --- messages ------------------------------------------------------------------------------------------------------------


def test_a_conversation_of_many_turns() -> None:
    turns = [SYSTEM, USER, ASSISTANT, {"role": "user", "content": "2?"}, {"role": "assistant", "content": "2"}]
    assert messages_from_chat({"messages": turns}) == turns


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        (None, "messages is not a list of {role, content}"),
        ({"role": ["user", "assistant"], "content": ["q"]}, "not a list"),
        ([USER | {"value": "other"}, ASSISTANT], "content and value, which differ"),
        ("hello", "not a list"),
        ([], "not a list"),
        (["hello"], "role is not one of .*user, assistant"),
        ([{"role": ["user"], "content": "q"}, ASSISTANT], "role is not one of .*user, assistant"),
        ([USER, {"role": "critic", "content": "4"}, ASSISTANT], "role is not one of .*user, assistant.*critic"),
        ([{"content": "q"}, ASSISTANT], "role is not one of"),
        ([USER], "no response: the last message"),
        ([USER, ASSISTANT, USER], "no response: the last message"),
        ([USER, {"role": "assistant", "content": ""}], "no response: the assistant message is empty"),
        ([USER, {"role": "assistant", "content": None}], "no response: the assistant message is empty"),
        ([USER, {"role": "assistant"}], "no response: the assistant message is empty"),
        ([{"role": "user", "content": " "}, ASSISTANT], "empty message"),
        ([USER, {"role": "assistant", "content": [{"type": "text", "text": 4}]}], "text is not text"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}, ASSISTANT],
            "part that is not text: 'image_url'",
        ),
        ([USER, ASSISTANT | {"tool_calls": "x"}], "tool_calls is not a list"),
        ([USER, ASSISTANT | {"tool_calls": [{"function": {"arguments": "{}"}}]}], "tool_calls: a call has no function name"),
        ([USER, ASSISTANT | {"tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}], "tool_calls is not JSON"),
        ([USER, ASSISTANT | {"weight": 0.5}], "weight is not 0 or 1: 0.5"),
        ([USER, ASSISTANT | {"weight": 0}], "the weight of every reply is 0"),
        ([USER, ASSISTANT | {"reasoning_content": ["x"]}], "reasoning_content is not text"),
        ([ASSISTANT], "no instruction"),
        ([SYSTEM, ASSISTANT], "no instruction"),
    ],
)
def test_bad_messages(turns: Any, reason: str) -> None:
    with pytest.raises(BadRow, match=reason):
        messages_from_chat({"messages": turns})


# --- sharegpt ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("human", "gpt"), [("human", "gpt"), ("user", "assistant"), ("human", "model")])
def test_sharegpt_roles(human: str, gpt: str) -> None:
    turns = [{"from": "system", "value": "s"}, {"from": human, "value": "q"}, {"from": gpt, "value": "a"}]
    assert messages_from_sharegpt({"conversations": turns}) == [SYSTEM, *PLAIN]


def test_sharegpt_may_keep_the_system_message_apart() -> None:
    both = {"system": "s", "conversations": [{"from": "system", "value": "s"}, HUMAN, GPT]}
    assert messages_of(both, "sharegpt") == [SYSTEM, *PLAIN]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"conversations": []}, "conversations is not a list of {role, content} or {from, value}"),
        ({"conversations": [HUMAN, {"from": "narrator", "value": "4"}, GPT]}, "role is not one of .*human.*narrator"),
        ({"conversations": [HUMAN]}, "no response: the last message"),
        ({"conversations": [HUMAN, {"from": "gpt", "value": ""}]}, "no response: the assistant message is empty"),
        ({"conversations": [HUMAN, {"from": "gpt", "value": 3}]}, "content is not text: 3"),
        ({"conversations": [GPT]}, "no instruction"),
        ({"system": "t", "conversations": [{"from": "system", "value": "s"}, HUMAN, GPT]}, "two system messages"),
    ],
)
def test_bad_sharegpt_rows(row: Row, reason: str) -> None:
    with pytest.raises(BadRow, match=reason):
        messages_of(row, "sharegpt")


# --- the others ------------------------------------------------------------------------------------------------------------


def test_prompt_and_completion_may_be_conversations() -> None:
    row = {"prompt": [SYSTEM, USER], "completion": [ASSISTANT]}
    assert recognise([row], "x", {}) == "prompt_completion"
    assert messages_from_prompt_completion(row) == [SYSTEM, *PLAIN]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "q"}, "no response: completion is empty"),
        ({"prompt": "", "completion": "a"}, "no instruction: prompt is empty"),
        ({"prompt": [USER]}, "no response: completion is empty"),
        ({"prompt": [USER], "completion": []}, "no response: completion is empty"),
        ({"prompt": [USER], "completion": "a"}, "completion is not a list"),
        ({"prompt": "q", "completion": [ASSISTANT]}, "prompt is not a list"),
        ({"prompt": [USER], "completion": [USER]}, "no response: the last message"),
        ({"prompt": {"text": "q"}, "completion": "a"}, "prompt is not text"),
        ({"prompt": [{"role": "critic", "content": "x"}], "completion": [ASSISTANT]}, "role is not one of"),
    ],
)
def test_bad_prompts_and_completions(row: Row, reason: str) -> None:
    with pytest.raises(BadRow, match=reason):
        messages_from_prompt_completion(row)


@pytest.mark.parametrize(
    ("name", "row", "reason"),
    [
        ("gsm8k", {"question": "q", "answer": ""}, "no response: answer is empty"),
        ("gsm8k", {"question": " ", "answer": "a"}, "no instruction: question is empty"),
        ("metamath", {"query": "q", "response": None}, "no response: response is empty"),
        ("metamath", {"response": "a"}, "no instruction: query is empty"),
    ],
)
def test_bad_questions_and_answers(name: str, row: Row, reason: str) -> None:
    with pytest.raises(BadRow, match=reason):
        FORMATS[name].convert(row)


# --- all together ------------------------------------------------------------------------------------------------------------


def test_a_bad_row_is_yielded_between_good_ones() -> None:
    rows = [ROWS["alpaca"], {"instruction": "q", "output": ""}, BadRow("not JSON", "{oops"), ROWS["alpaca"]]
    outcomes = [*convert(rows, "alpaca", {})]
    assert [record for record, _ in outcomes] == [rows[0], rows[1], {"raw": "{oops"}, rows[3]]
    assert [isinstance(messages, BadRow) for _, messages in outcomes] == [False, True, True, False]


def test_a_bad_row_travels_between_processes() -> None:
    copy = pickle.loads(pickle.dumps(BadRow("not JSON: line 3", "{oops")))
    assert (str(copy), copy.raw) == ("not JSON: line 3", "{oops")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "from", "value"]), inner),
    max_leaves=6,
)


@pytest.mark.parametrize("name", FORMATS)
@given(data=st.data())
def test_no_row_breaks_a_converter(name: str, data: Any) -> None:
    form = FORMATS[name]
    columns = st.sampled_from([*form.columns, *form.optional])
    record = data.draw(st.dictionaries(columns, JSON))
    for _, messages in convert([record], name, {}):
        assert isinstance(messages, BadRow) or messages[-1]["role"] == "assistant"


# --- what a turn has besides its text ---

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


def test_parts_of_text_are_joined() -> None:
    parts = [{"type": "text", "text": "q1 "}, {"type": "text", "text": "q2"}]
    assert messages_of({"messages": [{"role": "user", "content": parts}, ASSISTANT]}, "messages")[0]["content"] == "q1 q2"


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
        ("system_prompt", "s", "data.columns={system: system_prompt} uses it, data.format=gsm8k leaves it out"),
        ("available_tools", [{"name": "f"}], "data.columns={tools: available_tools} uses it, "),
        ("passage", "p", "data.columns={context: passage} puts it before the question, "),
        ("choices", ["a", "b"], "fix: data.format=gsm8k leaves it out"),
        ("reasoning", "r", "fix: data.format=gsm8k leaves it out"),
    ],
)
def test_what_can_be_done_with_a_column_is_stated(column: str, value: Any, fix: str) -> None:
    with pytest.raises(UserError) as error:
        recognise([ROWS["gsm8k"] | {column: value}], "x", {})
    assert fix in str(error.value)


@pytest.mark.parametrize(
    ("columns", "mapping"), [((), "output: response"), (("context", "category"), "output: response, input: context")]
)
def test_the_mapping_of_dolly_is_told(columns: tuple[str, ...], mapping: str) -> None:
    row = dict.fromkeys(("instruction", "response", *columns), "x")
    with pytest.raises(UserError, match=f"data.columns={{{mapping}}}"):
        recognise([row], "x", {})


@pytest.mark.parametrize("column", ["label", "kto_tag"])
def test_responses_that_are_marked_as_bad_are_not_trained_on_unasked(column: str) -> None:
    rows = [ROWS["prompt_completion"] | {column: verdict} for verdict in (True, False)]
    with pytest.raises(UserError, match=f"has good and bad responses: the column {column} is false or 0 in some rows"):
        recognise(rows, "x", {})
    assert recognise(rows[:1], "x", {}) == "prompt_completion"
    with pytest.raises(UserError, match="is false or 0 in some rows"):
        recognise([ROWS["alpaca"] | {column: "False"}], "x.csv", {})
    assert recognise([ROWS["alpaca"] | {column: 0}], "x", {}) == "alpaca"
    with pytest.raises(UserError, match="is false or 0 in some rows"):
        recognise([ROWS["alpaca"] | {column: verdict} for verdict in (1, 0)], "x", {})
    assert recognise([ROWS["alpaca"] | {column: topic} for topic in (1, 0, 2)], "x", {}) == "alpaca"


@pytest.mark.parametrize(
    ("row", "mapping"),
    [
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, {"completion": "chosen"}),
        ({"chosen": PLAIN, "rejected": PLAIN}, {"messages": "chosen"}),
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
