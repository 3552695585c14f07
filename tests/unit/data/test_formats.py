"""Formats: every form of row, the columns that tell it, and a reason for every bad row."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pytest
from format_rows import ASSISTANT, GPT, HUMAN, PLAIN, ROWS, SYSTEM, USER, Row, messages_of
from hypothesis import given
from hypothesis import strategies as st

from ual_ray.benchmarks.open_ended import OpenEnded
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


@pytest.mark.slow
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


@pytest.mark.parametrize("given", ["<noinput>", "No input", "No Input.", "<no input>", "noinput\n", "nan", "N/A"])
def test_a_word_for_no_input_is_none(given: str) -> None:
    row = {"instruction": "q", "input": given, "output": "a"}
    assert messages_from_alpaca(row) == PLAIN
    assert OpenEnded().from_record(row, "x").messages == PLAIN[:1]
    assert messages_from_alpaca(row | {"input": "No input was given."})[0]["content"] == "q\n\nNo input was given."


# --- alpaca --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"instruction": "q", "output": ""}, "no response: output is empty"),
        ({"instruction": "q", "output": "  \n"}, "no response"),
        ({"instruction": "q", "output": "\u200b \ufeff"}, "no response"),
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
    assert messages_from_prompt_completion({"prompt": [SYSTEM, USER], "completion": "a"}) == [SYSTEM, *PLAIN]
    assert messages_from_prompt_completion({"prompt": "q", "completion": [ASSISTANT]}) == PLAIN


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "q"}, "no response: completion is empty"),
        ({"prompt": "", "completion": "a"}, "no instruction: prompt is empty"),
        ({"prompt": [USER]}, "no response: completion is empty"),
        ({"prompt": [USER], "completion": []}, "no response: completion is empty"),
        ({"prompt": [USER], "completion": " "}, "no response: the assistant message is empty"),
        ({"prompt": " ", "completion": [ASSISTANT]}, "empty message"),
        ({"prompt": {"text": "q"}, "completion": [ASSISTANT]}, "prompt is not a list"),
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
@pytest.mark.slow
def test_no_row_breaks_a_converter(name: str, data: Any) -> None:
    form = FORMATS[name]
    columns = st.sampled_from([*form.columns, *form.optional])
    record = data.draw(st.dictionaries(columns, JSON))
    for _, messages in convert([record], name, {}):
        assert isinstance(messages, BadRow) or messages[-1]["role"] == "assistant"
