"""The chat renderer shared by scoring, training and evaluation: conversation to token ids.

The assistant-only mask is computed by prefix difference: the labels are the tokens that the template adds after the generation
prompt when the assistant's message is appended. It needs no {% generation %} marks in the template.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from ual_ray.columns import Messages, digest
from ual_ray.errors import UserError

IGNORE_INDEX = -100


@dataclass(frozen=True)
class Rendered:
    """A conversation as tokens: `labels` is `input_ids` at the assistant's tokens and IGNORE_INDEX elsewhere."""

    input_ids: list[int]
    labels: list[int]

    @property
    def target_tokens(self) -> int:
        """Number of label tokens."""
        return sum(label != IGNORE_INDEX for label in self.labels)


class ChatRenderer:
    """Render conversations with one tokenizer's chat template."""

    def __init__(self, tokenizer: Any) -> None:
        """Take a Hugging Face tokenizer. Raises UserError when it has no chat template."""
        if not getattr(tokenizer, "chat_template", None):
            raise UserError(
                "the model's tokenizer has no chat template", got=tokenizer.name_or_path, fix="use an instruct model"
            )
        self._tokenizer = tokenizer

    @property
    def template_hash(self) -> str:
        """Hash of the chat template."""
        return digest(self._tokenizer.chat_template)

    def text(self, messages: Messages, *, generation_prompt: bool) -> str:
        """Render to text as the model will see it, with special tokens written out.

        Thinking is disabled, as a score has to be the first token; templates without this option ignore it.
        """
        try:
            return self._tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tokenize=False,
                add_generation_prompt=generation_prompt,
                enable_thinking=False,
            )
        except TemplateError as error:
            raise ValueError(f"the chat template rejects the conversation: {error}") from error

    def prompt_ids(self, messages: Messages) -> list[int]:
        """Tokens up to and including the generation prompt."""
        return self._encode(self.text(messages, generation_prompt=True))

    def conversation(self, messages: Messages, *, last_reply_only: bool = False) -> Rendered:
        """Tokens of the whole conversation, with every assistant turn and its end-of-turn token as labels.

        `last_reply_only` restricts labels to the last assistant turn.

        Each turn is tokenized separately, as in generation, so that training and generation see the same tokens.
        Raises ValueError when the template is not a prefix code (an earlier turn changes when a later one is added).
        """
        input_ids: list[int] = []
        labels: list[int] = []

        def append(text: str, trained: bool) -> None:
            ids = self._encode(text)
            input_ids.extend(ids)
            labels.extend(ids if trained else [IGNORE_INDEX] * len(ids))

        done = untrained = ""
        for position, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            prompt = self.text(messages[:position], generation_prompt=True)
            full = self.text(messages[: position + 1], generation_prompt=False)
            if not prompt.startswith(done) or not full.startswith(prompt):
                raise ValueError("the chat template rewrites earlier turns; the assistant's tokens cannot be identified")
            reply = full[len(prompt) :]
            spoken = reply.rstrip()  # the line break after the end-of-turn token is added by the template, not by the model
            append(untrained + prompt[len(done) :], trained=False)
            append(spoken, trained=not last_reply_only or position == len(messages) - 1)
            untrained = reply[len(spoken) :]
            done = full
        append(untrained, trained=False)
        return Rendered(input_ids, labels)

    def encode(self, text: str) -> list[int]:
        """Tokens of a plain text, as the model would write it at the start of its reply."""
        return self._encode(text)

    def encode_all(self, texts: list[str]) -> list[list[int]]:
        """Tokens of many rendered texts, using all threads of the tokenizer."""
        if not texts:
            return []
        if self._tokenizer.is_fast:
            # The same tokens without their offsets in the text, which take a sixth of the time.
            return [
                encoded.ids for encoded in self._tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
            ]
        return self._tokenizer(texts, add_special_tokens=False)["input_ids"]

    def _encode(self, text: str) -> list[int]:
        # The template already adds the special tokens.
        return self._tokenizer.encode(text, add_special_tokens=False) if text else []


def load_renderer(model: str, trust_remote_code: bool = False) -> ChatRenderer:
    """Load the tokenizer of a resolved model name and wrap it in a renderer."""
    from transformers import AutoTokenizer

    return ChatRenderer(AutoTokenizer.from_pretrained(model, trust_remote_code=trust_remote_code))
