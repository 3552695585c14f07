"""The formats of instruction data that are in use: their columns, and how a row of each becomes messages."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from ual_ray.columns import Message, Messages
from ual_ray.data.formats import BadRow, Format, Record, pair, text_of

ROLES = {"system": "system", "user": "user", "assistant": "assistant"}
SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "assistant": "assistant",
    "system": "system",
}


def messages_from_alpaca(record: Record) -> Messages:
    """Turn instruction (+ input) and output into a chat, after an optional system message. Raises BadRow."""
    user, reply = pair(record, "instruction", "output")
    if record.get("input") and (extra := text_of(record, "input")):
        user = Message(role="user", content=f"{user['content']}\n\n{extra}")
    system = text_of(record, "system")
    return [Message(role="system", content=system), user, reply] if system else [user, reply]


def messages_from_sharegpt(record: Record) -> Messages:
    """Turn conversations, a list of {from, value}, into messages, behind an optional system. Raises BadRow."""
    messages = _turns(record, "conversations", "from", "value", SHAREGPT_ROLES)
    system = text_of(record, "system")
    if not system or messages[0] == {"role": "system", "content": system}:
        return _checked(messages)
    if messages[0]["role"] == "system":
        raise BadRow("two system messages: the column system is not the first message of conversations")
    return _checked([Message(role="system", content=system), *messages])


def messages_from_chat(record: Record) -> Messages:
    """Check a list of {role, content}: known roles, text in each, an assistant message at the end. Raises BadRow."""
    return _checked(_turns(record, "messages", "role", "content", ROLES))


def messages_from_prompt_completion(record: Record) -> Messages:
    """Join prompt and completion, both text or both lists of {role, content} as TRL has them. Raises BadRow."""
    prompt, completion = record.get("prompt"), record.get("completion")
    if not isinstance(prompt, list) and not isinstance(completion, list):
        return pair(record, "prompt", "completion")
    if not isinstance(prompt, list):
        raise BadRow("prompt is not a list of {role, content}, which completion is")
    if completion is None or completion in ("", []):
        raise BadRow("no response: completion is empty")
    if not isinstance(completion, list):
        raise BadRow("completion is not a list of {role, content}, which prompt is")
    question = _turns(record, "prompt", "role", "content", ROLES)
    return _checked(question + _turns(record, "completion", "role", "content", ROLES))


def _turns(record: Record, column: str, role_key: str, content_key: str, roles: Mapping[str, str]) -> list[Message]:
    turns = record.get(column)
    if not isinstance(turns, list) or not turns:
        raise BadRow(f"{column} is not a list of {{{role_key}, {content_key}}}")
    return [_turn(turn, role_key, content_key, roles) for turn in turns]


def _turn(turn: Any, role_key: str, content_key: str, roles: Mapping[str, str]) -> Message:
    given = turn.get(role_key) if isinstance(turn, Mapping) else None
    role = roles.get(given) if isinstance(given, str) else None
    if role is None:
        raise BadRow(f"a message's role is not one of {', '.join(roles)}: {turn!r:.80}")
    content = text_of(turn, content_key)
    if not content and role != "system":
        raise BadRow("no response: the assistant message is empty" if role == "assistant" else "empty message")
    return Message(role=role, content=content)


def _checked(messages: list[Message]) -> Messages:
    if messages[-1]["role"] != "assistant":
        raise BadRow("no response: the last message is not the assistant's")
    if not any(message["role"] == "user" for message in messages):
        raise BadRow("no instruction: there is no user message")
    return messages


MESSAGES = Format(messages_from_chat, ("messages",))
SHAREGPT = Format(messages_from_sharegpt, ("conversations",), optional=("system",))
ALPACA = Format(messages_from_alpaca, ("instruction", "output"), optional=("input", "system"))
# Alpaca rows that name who gave the output. A column `input` is read here too: an alpaca row with a column `dataset` fits.
ALPACA_EVAL = Format(messages_from_alpaca, ("instruction", "output"), one_of=("generator", "dataset"))
GSM8K = Format(partial(pair, question_column="question", response_column="answer"), ("question", "answer"))
METAMATH = Format(partial(pair, question_column="query", response_column="response"), ("query", "response"))
PROMPT_COMPLETION = Format(messages_from_prompt_completion, ("prompt", "completion"))
