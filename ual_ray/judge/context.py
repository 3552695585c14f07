"""How long a context the pairs of a judge need: a pair that does not fit would be missing, and long answers first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ual_ray.engines.requests import Turns, messages_of

if TYPE_CHECKING:
    from ual_ray.models.chat import ChatRenderer

# The longest prompt in tokens is among so many of the longest in characters.
LOOKED_AT = 32


def needed_context(prompts: Sequence[Turns], reply_tokens: int, renderer: ChatRenderer, *, thinking: bool = False) -> int:
    """Return the tokens of the longest prompt and of the reply to it; 0 without prompts."""
    longest = sorted(prompts, key=lambda prompt: sum(len(content) for _, content, *_ in prompt), reverse=True)[:LOOKED_AT]
    tokens = [len(renderer.prompt_ids(messages_of(prompt), thinking=thinking)) for prompt in longest]
    return max(tokens) + reply_tokens if tokens else 0


def longest_context(model: str, trust_remote_code: bool = False) -> int | None:
    """Return the context that a resolved model was made for, in tokens; None where its configuration does not tell."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code).get_text_config()
    return getattr(config, "max_position_embeddings", None)
