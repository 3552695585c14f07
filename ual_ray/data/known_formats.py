"""The formats of instruction data that are in use: their columns, and how a row of each becomes messages."""

import re
from functools import partial

from ual_ray.columns import Message, Messages
from ual_ray.data.formats import BadRow, Format, Record, pair
from ual_ray.data.records import optional_text
from ual_ray.data.turns import checked, turn_of, turns_of

# What rows of Alpaca without an input may have in its place.
NO_INPUT = re.compile(r"\W*(?:no\s?input|n/a|nan)\W*", re.IGNORECASE)


def messages_from_alpaca(record: Record) -> Messages:
    """Turn instruction (+ input) and output into a chat. Raises BadRow."""
    user, reply = pair(record, "instruction", "output")
    extra = "" if record.get("input") in (None, [], {}) else optional_text(record, "input")
    if extra.strip() and not NO_INPUT.fullmatch(extra):
        user = Message(role="user", content=f"{user['content']}\n\n{extra}")
    return [user, reply]


def messages_from_sharegpt(record: Record) -> Messages:
    """Turn conversations, a list of {from, value}, into messages. Raises BadRow."""
    return checked(turns_of(record, "conversations"))


def messages_from_chat(record: Record) -> Messages:
    """Check a list of {role, content}: known roles, text in each, an assistant message at the end. Raises BadRow."""
    return checked(turns_of(record, "messages"))


def messages_from_prompt_completion(record: Record) -> Messages:
    """Join prompt and completion, each text or a list of {role, content} as TRL has them. Raises BadRow."""
    if not any(isinstance(record.get(column), list) for column in ("prompt", "completion")):
        return pair(record, "prompt", "completion")
    if record.get("completion") in (None, "", []):
        raise BadRow("no response: completion is empty")
    return checked([*_side(record, "prompt", "user"), *_side(record, "completion", "assistant")])


def _side(record: Record, column: str, role: str) -> list[Message]:
    """Return the turns of a column, which is one turn where it is text."""
    value = record.get(column)
    return [turn_of({"role": role, "content": value})] if isinstance(value, str) else turns_of(record, column)


MESSAGES = Format(messages_from_chat, ("messages",))
SHAREGPT = Format(messages_from_sharegpt, ("conversations",))
ALPACA = Format(messages_from_alpaca, ("instruction", "output"), optional=("input",))
# Alpaca rows that name who gave the output.
ALPACA_EVAL = Format(messages_from_alpaca, ("instruction", "output"), one_of=("generator", "dataset"), optional=("input",))
GSM8K = Format(partial(pair, question_column="question", response_column="answer"), ("question", "answer"))
METAMATH = Format(partial(pair, question_column="query", response_column="response"), ("query", "response"))
PROMPT_COMPLETION = Format(messages_from_prompt_completion, ("prompt", "completion"))
