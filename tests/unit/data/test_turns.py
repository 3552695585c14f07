"""Turns as people have them: calls, reasoning, weights and media are used, or the row is bad and its reason names them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ual_ray.columns import Message, extra_of
from ual_ray.data.formats import BadRow, convert
from ual_ray.data.known_formats import messages_from_chat, messages_from_sharegpt
from ual_ray.data.turns import without_thoughts

USER = {"role": "user", "content": "q"}
ASSISTANT = {"role": "assistant", "content": "a"}
CALL = {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}


def calls_of(given: Any) -> Any:
    """Convert a row whose reply calls tools so."""
    return extra_of(messages_from_chat({"messages": [USER, {"role": "assistant", "tool_calls": given}]})[1])["tool_calls"]


@pytest.mark.parametrize("key", ["arguments", "parameters", "args", "input"])
def test_the_arguments_of_a_call_are_kept_whatever_their_key(key: str) -> None:
    assert calls_of([{"function": {"name": "f", key: {"a": 1}}}]) == [CALL]
    assert calls_of([{"name": "f", key: {"a": 1}}]) == [CALL]
    assert calls_of(json.dumps([{"name": "f", key: {"a": 1}}])) == [CALL]


@pytest.mark.parametrize("arguments", [None, "", " "])
def test_a_call_without_arguments_has_none(arguments: str | None) -> None:
    assert calls_of([{"name": "f", "arguments": arguments}])[0]["function"]["arguments"] == "{}"


@pytest.mark.parametrize("arguments", [[1], "[1]", "3", 3])
def test_arguments_that_are_no_object_make_a_bad_row(arguments: Any) -> None:
    with pytest.raises(BadRow, match="the arguments are not an object"):
        calls_of([{"name": "f", "arguments": arguments}])


@pytest.mark.parametrize("key", ["weight", "loss_weight", "loss", "train", "training", "trainable", "train_on", "loss_mask"])
@pytest.mark.parametrize(("value", "extra"), [(False, {"weight": 0}), (0, {"weight": 0}), (True, {}), (1, {}), (None, {})])
def test_a_reply_that_is_not_to_be_trained_on_has_the_weight_0(key: str, value: Any, extra: dict[str, int]) -> None:
    turns = messages_from_chat({"messages": [USER, ASSISTANT | {key: value}, USER, ASSISTANT]})
    assert [extra_of(turn) for turn in turns] == [{}, extra, {}, {}]


def test_weights_that_differ_make_a_bad_row() -> None:
    with pytest.raises(BadRow, match="weight and train differ"):
        messages_from_chat({"messages": [USER, ASSISTANT | {"weight": 1, "train": False}]})
    with pytest.raises(BadRow, match="loss is not 0 or 1: 0.3"):
        messages_from_chat({"messages": [USER, ASSISTANT | {"loss": 0.3}]})


@pytest.mark.parametrize(
    "key",
    [
        *("thought", "thoughts", "thinking_content", "reasoning_details", "images", "audio", "video"),
        *("tools", "functions", "documents", "recipient", "tool_plan"),
        *("cot", "rationale", "analysis", "refusal", "prefix"),
    ],
)
def test_what_cannot_be_used_is_named(key: str) -> None:
    with pytest.raises(BadRow, match=f"a message has {key}, which cannot be used: 'x'"):
        messages_from_chat({"messages": [USER, ASSISTANT | {key: "x"}]})
    for empty in (None, "", []):
        assert messages_from_chat({"messages": [USER, ASSISTANT | {key: empty}]}) == [USER, ASSISTANT]


@pytest.mark.parametrize("kind", ["text", "input_text", "output_text"])
def test_the_text_of_parts_is_joined(kind: str) -> None:
    parts = [{"type": kind, "text": "q"}, {"type": kind, "text": "w"}]
    assert messages_from_chat({"messages": [USER | {"content": parts}, ASSISTANT]})[0]["content"] == "qw"


def test_turns_may_be_json_text_as_in_a_cell_of_a_table() -> None:
    assert messages_from_chat({"messages": json.dumps([USER, ASSISTANT])}) == [USER, ASSISTANT]
    assert messages_from_chat({"messages": [json.dumps(USER), json.dumps(ASSISTANT)]}) == [USER, ASSISTANT]
    with pytest.raises(BadRow, match="messages is not JSON"):
        messages_from_chat({"messages": "[{'role': 'user'}]"})


@pytest.mark.parametrize("column", ["messages", "conversations"])
@pytest.mark.parametrize(("role", "content"), [("role", "content"), ("from", "value"), ("role", "value"), ("from", "content")])
@pytest.mark.parametrize(("asks", "answers"), [("user", "assistant"), ("human", "gpt"), ("Human", "AI"), ("prompter", "bot")])
def test_keys_and_roles_of_turns_may_be_mixed(column: str, role: str, content: str, asks: str, answers: str) -> None:
    convert = messages_from_chat if column == "messages" else messages_from_sharegpt
    turns = [{role: asks, content: "q"}, {role: answers, content: "a"}]
    assert convert({column: turns}) == [USER, ASSISTANT]
    assert convert({column: {role: [asks, answers], content: ["q", "a"]}}) == [USER, ASSISTANT]


@pytest.mark.parametrize("name", ["gpt", "chatgpt", "bing", "bard", "model", "assistant"])
def test_sharegpt_names_of_the_assistant(name: str) -> None:
    row = {"conversations": [{"from": "human", "value": "q"}, {"from": name, "value": "a"}]}
    assert messages_from_sharegpt(row) == [USER, ASSISTANT]


@pytest.mark.parametrize(("call", "result"), [("function_call", "observation"), ("tool_call", "tool_response")])
def test_sharegpt_names_of_calls_and_their_results(call: str, result: str) -> None:
    turns = [("human", "q"), (call, json.dumps({"name": "f", "arguments": {"a": 1}})), (result, "3"), ("gpt", "a")]
    found = messages_from_sharegpt({"conversations": [{"from": role, "value": text} for role, text in turns]})
    assert [(turn["role"], turn["content"]) for turn in found] == [
        ("user", "q"),
        ("assistant", ""),
        ("tool", "3"),
        ("assistant", "a"),
    ]
    assert extra_of(found[1])["tool_calls"] == [CALL]


@pytest.mark.parametrize(
    ("opening", "closing"),
    [
        *[(f"<{name}>", f"</{name}>") for name in ("think", "thinking", "Thought", "reasoning")],
        *[("[THINK]", "[/THINK]"), ("<|begin_of_thought|>", "<|end_of_thought|>")],
    ],
)
def test_a_thought_is_dropped_whatever_its_marks(opening: str, closing: str) -> None:
    turns = [Message(role="user", content="q"), Message(role="assistant", content=f"{opening}\nhm\n{closing}\n\na")]
    assert without_thoughts(turns) == [USER, ASSISTANT]
    several = f"{opening}a{closing}\n{opening}b{closing}\n\na"
    assert without_thoughts([turns[0], Message(role="assistant", content=several)]) == [USER, ASSISTANT]
    with pytest.raises(BadRow, match="does not end"):
        without_thoughts([turns[0], Message(role="assistant", content=f"{opening}hm")])
    quoted = [USER, {"role": "assistant", "content": f"Models write {opening}x"}]
    assert without_thoughts([Message(**turn) for turn in quoted]) == quoted
    with pytest.raises(BadRow, match="empty without its reasoning"):
        without_thoughts([turns[0], Message(role="assistant", content=f"{opening}hm{closing}")])


@pytest.mark.parametrize(
    ("content", "left"),
    [
        ("hm\n</think>\n\na", "a"),
        ("A <think>hm</think> b", "A b"),
        ("A.\n\n<think>hm</think>\n\nB.", "A.\n\nB."),
        ("`</thinking>` ends", "`</thinking>` ends"),
        ("  <b>x</b>\n", "  <b>x</b>\n"),
    ],
)
def test_a_thought_is_dropped_wherever_it_is_and_no_more(content: str, left: str) -> None:
    (_, reply) = without_thoughts([Message(role="user", content="q"), Message(role="assistant", content=content)])
    assert reply["content"] == left


def test_a_thought_that_is_there_twice_makes_a_bad_row() -> None:
    with pytest.raises(BadRow, match="a message has reasoning_content and thinking, which differ"):
        messages_from_chat({"messages": [USER, ASSISTANT | {"reasoning_content": "x", "thinking": "y"}]})
    (_, same) = messages_from_chat({"messages": [USER, ASSISTANT | {"reasoning_content": "x", "thinking": "x"}]})
    assert extra_of(same) == {"reasoning_content": "x"}
    row = {"messages": [USER, {"role": "assistant", "content": "\n<think>x</think>a", "reasoning_content": "x"}]}
    ((_, kept),) = convert([row], "messages", {})
    assert isinstance(kept, BadRow) and str(kept).startswith("a message has its reasoning apart from its content and in it")
    ((_, dropped),) = convert([row], "messages", {}, thinking="drop")
    assert dropped == [USER, ASSISTANT]


CHATS = [
    [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
    [{"content": "q", "role": "user"}],
    [{"from": "human", "value": "q"}],
    [{"type": "text", "text": "q"}],
]
LISTS = [[{"role": "admin", "name": "Ann"}], [{"type": "PERSON", "text": "Ann"}], ["a"], [{"content": "q"}], []]


@pytest.mark.parametrize("written", [json.dumps, str, lambda chat: json.dumps(chat, indent=1)])
@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("at", ["prompt", "completion", "content"])
def test_a_chat_that_a_table_has_as_text_is_not_trained_on_as_text(written: Any, chat: Any, at: str) -> None:
    def row(text: str) -> dict[str, Any]:
        if at == "content":
            return {"messages": [{"role": "user", "content": text}, ASSISTANT]}
        return {"prompt": "q", "completion": "a"} | {at: text}

    def read(text: str) -> Any:
        ((_, messages),) = convert([row(text)], "messages" if at == "content" else "prompt_completion", {})
        return messages

    found = read(written(chat))
    assert isinstance(found, BadRow) and str(found).startswith(f"{at} is a list of turns or parts as text")
    assert not any(isinstance(read(text), BadRow) for text in (*map(written, LISTS), f"{written(chat)} is a chat"))


def test_results_of_tools_may_be_parts_as_text() -> None:
    parts = json.dumps([{"type": "text", "text": "3"}])
    turns = [USER, {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "content": parts}, ASSISTANT]
    assert messages_from_chat({"messages": turns})[2]["content"] == parts


def test_tools_that_are_there_under_two_names_are_one_list() -> None:
    tools = [{"name": "f"}, {"type": "function", "function": {"name": "g"}}]
    row = {"messages": [USER, ASSISTANT], "tools": tools, "functions": json.dumps([*tools, {"name": "h"}])}
    ((_, messages),) = convert([row], "messages", {})
    assert [tool["function"]["name"] for tool in extra_of(messages[0])["tools"]] == ["f", "g", "h"]
