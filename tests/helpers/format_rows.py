"""A row of every format, and its conversion."""

from __future__ import annotations

from typing import Any

from ual_ray.data.formats import (
    BadRow,
    convert,
)

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
