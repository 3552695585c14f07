"""Turns of chats: a record's message as a canonical one, with its tool calls, its reasoning and its weight.

Nothing that changes what a turn means is left out in silence: it is used, or the row is bad and its reason names the key.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ual_ray.columns import REPLY_WEIGHT, THOUGHT_KEYS, Message, Messages, extra_of, trained_replies, with_extra
from ual_ray.config.files import parse_json
from ual_ray.data.records import (
    CONTEXT,
    BadRow,
    Record,
    check_plain,
    check_unicode,
    is_blank,
    is_missing,
    optional_text,
    text_of,
)

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
    **dict.fromkeys(("human", "prompter"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "bing", "bard", "model", "bot", "ai", "function_call", "tool_call"), "assistant"),
    **dict.fromkeys(("observation", "tool_response", "tool_result", "function_response", "ipython"), "tool"),
}
# As rows have them.
ROLE_NAMES = tuple(dict.fromkeys(ROLES.values()))
# The keys of a turn: OpenAI's and ShareGPT's, which are mixed in practice.
ROLE_KEYS, CONTENT_KEYS = ("role", "from"), ("content", "value")
# Roles of turns whose content is a tool call, as JSON.
CALLING = ("function_call", "tool_call")
# Whether a reply is trained on: OpenAI's key first, then those of other trainers, with 0 and 1 or false and true.
WEIGHT_KEYS = (
    *("weight", "loss_weight", "loss", "loss_mask", "step_loss_mask"),
    *("train", "training", "trainable", "train_on", "train_on_turn"),
)
# Reasoning under names that no chat template reads, what is trained of a turn, whom it is for, what it may use, and media:
# without them it means another thing.
UNREADABLE_KEYS = (
    *("channel", "recipient", "mask", "masked", "train_detail", "training_detail"),
    *("tools", "functions", "documents", "tool_plan", "tool_results"),
    *("thought", "thoughts", "thinking_content", "thinking_blocks", "reasoning_details", "reasoning_text", "reasoning_trace"),
    *("cot", "chain_of_thought", "rationale", "analysis", "scratchpad", "refusal", "prefix"),
    *("image", "images", "audio", "audios", "video", "videos"),
)
# Thoughts at the start of a reply, in the marks of any family of models, also without the first mark; a later one; an open one.
THOUGHTS_FIRST = re.compile(
    r"(?:(?:(?!<think>).)*</think>\s*)?(?:(?:\s*(?:<(think|thinking|thought|thoughts|reasoning|reflection)>.*?</\1>"
    r"|\[THINK\].*?\[/THINK\]|<\|begin_of_thought\|>.*?<\|end_of_thought\|>))+\s*)?",
    re.DOTALL | re.IGNORECASE,
)
THOUGHT_LATER = re.compile(r"<think>.*?(?P<end></think>\s*|\Z)", re.DOTALL)
THOUGHT_OPEN = re.compile(
    r"<(?:think|thinking|thoughts?|reasoning|reflection)>|\[THINK\]|<\|begin_of_thought\|>", re.IGNORECASE
)
TEXT_PARTS = ("text", "input_text", "output_text")
HARMLESS: tuple[Any, ...] = (None, False, 0, "", [], {}, "final", "all")
# The keys that hold the arguments of a call: OpenAI's, Llama's, LangChain's, Anthropic's.
ARGUMENTS = ("arguments", "parameters", "args", "input")
KEYS = {*ROLE_KEYS, *CONTENT_KEYS, "tool_calls", "function_call", "tool_call_id", "name", *WEIGHT_KEYS, *THOUGHT_KEYS}


def unused_keys(turn: Mapping[str, Any]) -> list[str]:
    """List the keys of a message that `turn_of` does not read."""
    return [str(key) for key, value in turn.items() if key not in KEYS and value is not None]


def turns_of(record: Record, column: str) -> list[Message]:
    """Convert a column of turns: {role, content}, {from, value} or a mixture. Raises BadRow."""
    turns = _from_text(record.get(column), "[", column)
    if isinstance(turns, Mapping) and all(isinstance(part, list) for part in turns.values()):
        # Older versions of `datasets` store a list of objects as an object of lists.
        even = len(set(map(len, turns.values()))) == 1
        turns = [dict(zip(turns, values, strict=True)) for values in zip(*turns.values(), strict=True)] if even else None
    if not isinstance(turns, list) or not turns:
        raise BadRow(f"{column} is not a list of {{role, content}} or {{from, value}}")
    return [turn_of(_from_text(turn, "{", column)) for turn in turns]


def _from_text(value: Any, start: str, column: str) -> Any:
    """Parse what a cell of a table holds as JSON text, which starts so. Raises BadRow."""
    return _parsed(value, column) if isinstance(value, str) and value.lstrip().startswith(start) else value


def turn_of(turn: Any) -> Message:
    """Convert one turn. Raises BadRow."""
    given = str(_one_of(turn, ROLE_KEYS) if isinstance(turn, Mapping) else None).lower()
    role = ROLES.get(given)
    if role is None:
        raise BadRow(f"a message's role is not one of {', '.join(ROLES)}: {turn!r:.80}")
    content, calls = _content(turn), _calls(turn)
    if role != "tool":  # whose results are lists of parts as text in practice
        check_plain("content", content)
    if lost := next((key for key in UNREADABLE_KEYS if turn.get(key) not in HARMLESS), None):
        raise BadRow(f"a message has {lost}, which cannot be used: {turn[lost]!r:.80}")
    if given in CALLING:
        given_calls = _parsed(content, given)
        content, calls = "", [_call(call) for call in (given_calls if isinstance(given_calls, list) else [given_calls])]
    if is_blank(content) and not calls and role not in ("system", "tool"):
        raise BadRow("no response: the assistant message is empty" if role == "assistant" else "empty message")
    extra = {
        "tool_calls": calls,
        "reasoning_content": _thought(turn),
        "name": text_of(turn, "name"),
        "tool_call_id": text_of(turn, "tool_call_id"),
        REPLY_WEIGHT: _weight(turn) if role == "assistant" else None,
    }
    return _extended("a message", Message(role=role, content=content), **extra)


def _extended(what: str, message: Message, **extra: Any) -> Message:
    """Add to a message's extra. Raises BadRow for what cannot be written as JSON, such as a date of a table."""
    try:
        extended = with_extra(message, **extra)
    except TypeError as error:
        raise BadRow(f"{what} cannot be written as JSON: {error}") from error
    check_unicode(what, extended.get("extra") or "")
    return extended


def checked(messages: list[Message]) -> Messages:
    """Return the messages. Raises BadRow unless a user asks and the assistant has the last word."""
    if messages[-1]["role"] != "assistant":
        raise BadRow("no response: the last message is not the assistant's")
    if not any(message["role"] == "user" for message in messages):
        raise BadRow("no instruction: there is no user message")
    if not trained_replies(messages):
        raise BadRow("no response: the weight of every reply is 0")
    return messages


def add_common(record: Record, messages: Messages, names: Collection[str]) -> Messages:
    """Add what the named columns of a record hold: context, system message, tools. Raises BadRow."""
    added = list(messages)
    if CONTEXT in names and (context := optional_text(record, CONTEXT)).strip():
        at = next(at for at, message in enumerate(added) if message["role"] == "user")
        added[at] = Message(**{**added[at], "content": f"{context}\n\n{added[at]['content']}"})
    if "system" in names and (system := optional_text(record, "system")).strip():
        if added[0]["role"] != "system":
            added.insert(0, Message(role="system", content=system))
        elif added[0]["content"] != system:
            raise BadRow("two system messages: the column system is not the first message")
    tools: list[dict[str, Any]] = []
    for name in ("tools", "functions"):
        # Some data have the same tools under both names.
        tools += [tool for tool in _tools(record, name) if tool not in tools] if name in names else []
    if tools:
        added[0] = _extended("tools", added[0], tools=tools)
    return added


def with_one_thought(messages: Messages) -> Messages:
    """Return the messages. Raises BadRow for a reply whose thought is in its content too: a chat template writes both."""
    for message in messages:
        if "reasoning_content" in extra_of(message) and THOUGHT_OPEN.match(message["content"].lstrip()):
            raise BadRow("a message has its reasoning apart from its content and in it (data.thinking=drop leaves out both)")
    return messages


def is_closed(content: str) -> bool:
    """Whether the thought that a reply starts with ends."""
    return not THOUGHT_OPEN.match(content[found.end() :].lstrip()) if (found := THOUGHTS_FIRST.match(content)) else False


def without_thoughts(messages: Messages) -> Messages:
    """Leave out the reasoning of replies. Raises BadRow for a reply that is nothing else."""
    kept = []
    for message in messages:
        content = message["content"]
        if message["role"] == "assistant":
            first = THOUGHTS_FIRST.match(content)
            content = content[first.end() :] if first else content
            content = THOUGHT_LATER.sub(lambda found: "" if found["end"] else found[0], content)
            if THOUGHT_OPEN.match(content):
                raise BadRow("no response: the reasoning of the assistant message does not end")
        extra = {key: value for key, value in extra_of(message).items() if key != "reasoning_content"}
        if is_blank(content) and not is_blank(message["content"]) and "tool_calls" not in extra:
            raise BadRow("no response: the assistant message is empty without its reasoning")
        kept.append(with_extra(Message(role=message["role"], content=content), **extra))
    return kept


def _one_of(turn: Mapping[str, Any], keys: Sequence[str]) -> Any:
    """Return the value of the one key that a turn has. Raises BadRow for two that differ."""
    values = [turn[key] for key in keys if turn.get(key) is not None]
    if any(value != values[0] for value in values):
        raise BadRow(f"a message has {' and '.join(keys)}, which differ: {turn!r:.80}")
    return values[0] if values else None


def _thought(turn: Mapping[str, Any]) -> str:
    """Return the thought that a turn has apart from its content. Raises BadRow for two that differ."""
    thoughts = {text_of(turn, key) for key in THOUGHT_KEYS} - {""}
    if len(thoughts) > 1:
        raise BadRow(f"a message has {' and '.join(key for key in THOUGHT_KEYS if turn.get(key))}, which differ: {turn!r:.80}")
    return "".join(thoughts)


def _content(turn: Mapping[str, Any]) -> str:
    """Return the text of a turn, which may be a list of parts."""
    parts = _one_of(turn, CONTENT_KEYS)
    if not isinstance(parts, list):
        return text_of({"content": parts}, "content")
    for part in parts:
        if not isinstance(part, Mapping) or part.get("type", "text") not in TEXT_PARTS:
            kind = part.get("type") if isinstance(part, Mapping) else part
            raise BadRow(f"content has a part that is not text: {kind!r:.80}")
        if part.get("text") is None:
            raise BadRow(f"content has a part without a text: {part!r:.80}")
    return "".join(text_of(part, "text") for part in parts)


def _calls(turn: Mapping[str, Any]) -> list[dict[str, Any]]:
    calls = turn.get("tool_calls") or []
    if turn.get("function_call"):  # the form before tool_calls
        calls = [turn["function_call"]]
    calls = _from_text(calls, "[", "tool_calls")
    if not isinstance(calls, Sequence) or isinstance(calls, str):
        raise BadRow(f"tool_calls is not a list: {calls!r:.80}")
    return [_call(call) for call in calls]


def _call(call: Any) -> dict[str, Any]:
    """Return a tool call as {type, function: {name, arguments}}, with its id if it has one."""
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise BadRow(f"tool_calls: a call has no function name: {call!r:.80}")
    arguments = next((function[key] for key in ARGUMENTS if function.get(key) is not None), "")
    if isinstance(arguments, str):
        arguments = arguments if arguments.strip() else "{}"
        named = _parsed(arguments, "tool_calls")
    else:
        named = arguments
    if not isinstance(named, Mapping):
        raise BadRow(f"tool_calls: the arguments are not an object: {arguments!r:.80}")
    own = {"id": call["id"]} if call.get("id") else {}
    return {**own, "type": "function", "function": {"name": function["name"], "arguments": arguments}}


def _tools(record: Record, column: str) -> list[dict[str, Any]]:
    """Return the tools of a row as {type, function}, from a list or its JSON text."""
    tools = None if is_missing(record.get(column)) else record[column]
    tools = _parsed(tools, column) if isinstance(tools, str) and tools.strip() else tools or []
    if not isinstance(tools, list):
        raise BadRow(f"{column} is not a list: {tools!r:.80}")
    wrapped = []
    for tool in tools:
        function = tool.get("function", tool) if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise BadRow(f"{column}: a tool has no name: {tool!r:.80}")
        wrapped.append({"type": "function", "function": function})
    return wrapped


def _parsed(text: str, column: str) -> Any:
    try:
        return parse_json(text)
    except ValueError as error:
        raise BadRow(f"{column} is not JSON: {text!r:.80}") from error


def _weight(turn: Mapping[str, Any]) -> int | None:
    """Return 0 for a turn that is not trained on. Raises BadRow for another weight, and for two that differ."""
    given = {key: turn[key] for key in WEIGHT_KEYS if turn.get(key) is not None}
    for key, weight in given.items():
        if weight not in (0, 1):
            raise BadRow(f"{key} is not 0 or 1: {weight!r:.80}")
    if len(set(given.values())) > 1:
        raise BadRow(f"{' and '.join(given)} differ")
    return 0 if 0 in given.values() else None


def with_reference(messages: Messages, record: Record, column: str) -> Messages:
    """Keep the reference answer of a record with its first message; a number counts as text. Raises BadRow for others."""
    value = record.get(column)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    text = str(value) if number and not is_missing(value) else optional_text(record, column)
    return [with_extra(messages[0], reference=text), *messages[1:]] if text.strip() else messages
