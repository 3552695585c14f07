"""Calls of engines as traces for MLflow: a sample, chosen by id and written from what is stored, after the stage.

A trace is {"id", "name", "spans"}; a span {"name", "type", "inputs", "outputs", "attributes"}, of which the first is the root
of the others. Prompts and replies have the form of OpenAI's API, which MLflow's UI shows as a chat.
"""

import heapq
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ual_ray.engines.requests import Turns, chat_body
from ual_ray.formatting import shorten

Trace = dict[str, Any]
Span = dict[str, Any]
# The longest text of a message, in characters: a database holds the traces.
LONGEST_TEXT = 20_000
# Splits and second measurements go by the first and the last digits of an id.
FIRST_DIGIT = 4


def sample(ids: Iterable[str], count: int) -> list[str]:
    """Choose ids, which are digests, by their value: always the same ones, from all splits."""
    return heapq.nsmallest(count, ids, key=lambda identity: (identity[FIRST_DIGIT:], identity))


def call(name: str, prompt: Turns | None, outputs: Mapping[str, Any], attributes: Mapping[str, Any]) -> Span:
    """Make the span of a call. prompt: None if it is not known."""
    inputs = {"messages": "not stored"} if prompt is None else chat(prompt)
    return {"name": name, "type": "CHAT_MODEL", "inputs": inputs, "outputs": dict(outputs), "attributes": dict(attributes)}


def chat(prompt: Turns) -> dict[str, Any]:
    """Write a conversation as the inputs of a span."""
    body = chat_body(prompt)
    messages = [message | {"content": shorten(message["content"] or "", LONGEST_TEXT)} for message in body["messages"]]
    return body | {"messages": messages}


def sampled(texts: Sequence[str], finish_reasons: Sequence[str | None]) -> dict[str, Any]:
    """Write sampled replies as the outputs of a span."""
    return {
        "choices": [
            {"index": index, "message": {"role": "assistant", "content": shorten(text, LONGEST_TEXT)}, "finish_reason": finish}
            for index, (text, finish) in enumerate(zip(texts, finish_reasons, strict=True))
        ]
    }
