"""Conversations, and what of them is trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ual_ray.columns import Message
from ual_ray.models.chat import IGNORE_INDEX, Rendered

STYLES = ["chatml", "llama3", "mistral", "gemma"]
Tokenizers = Callable[[str], Any]


def chat(*contents: str, system: str | None = None) -> list[Message]:
    """Alternate user and assistant messages, after a system message if there is one."""
    roles = ["user", "assistant"] * len(contents)
    first = [] if system is None else [Message(role="system", content=system)]
    return first + [Message(role=role, content=text) for role, text in zip(roles, contents, strict=False)]


ONE_TURN = chat("Why is the sky blue?", "Blue light is scattered most.")
TWO_TURNS = chat("Name a colour.", "Blue.", "And one more, please.", "Green is a colour too.")


def trained_runs(tokenizer: Any, rendered: Rendered) -> list[str]:
    """Decode each unbroken run of labels, special tokens written out."""
    runs: list[list[int]] = [[]]
    for label in rendered.labels:
        if label != IGNORE_INDEX:
            runs[-1].append(label)
        elif runs[-1]:
            runs.append([])
    return [tokenizer.decode(run, skip_special_tokens=False) for run in runs if run]
