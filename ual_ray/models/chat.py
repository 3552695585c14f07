"""The one chat renderer: scoring, training and evaluation all see a conversation as these token ids.

The assistant-only mask is made by prefix difference: what the template adds when the assistant's message is appended, after
the generation prompt, is what the model has to produce. It needs no generation marks in the template.
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
    """A conversation as tokens: `labels` is `input_ids` where the assistant speaks and IGNORE_INDEX elsewhere."""

    input_ids: list[int]
    labels: list[int]

    @property
    def target_tokens(self) -> int:
        """Number of tokens that the model has to produce."""
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
        """Render to text, as the model will see it, special tokens written out.

        Models that think first are told not to: a score has to be the first token. Other templates ignore it.
        """
        try:
            return self._tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tokenize=False,
                add_generation_prompt=generation_prompt,
                enable_thinking=False,
            )
        except TemplateError as error:
            raise ValueError(f"the chat template refuses the conversation: {error}") from error

    def prompt_ids(self, messages: Messages) -> list[int]:
        """Tokens up to where the assistant is to speak."""
        return self._encode(self.text(messages, generation_prompt=True))

    def conversation(self, messages: Messages, *, last_reply_only: bool = False) -> Rendered:
        """Tokens of the whole conversation, with every assistant turn and its end-of-turn token as labels.

        `last_reply_only` makes labels of the last of them alone.

        Each turn is tokenized apart, as it is when the model generates it, so training and generation see the same tokens.
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
                raise ValueError("the chat template rewrites earlier turns; the assistant's tokens cannot be told apart")
            reply = full[len(prompt) :]
            spoken = reply.rstrip()  # the line break behind the end-of-turn token is the template's, not the model's
            append(untrained + prompt[len(done) :], trained=False)
            append(spoken, trained=not last_reply_only or position == len(messages) - 1)
            untrained = reply[len(spoken) :]
            done = full
        append(untrained, trained=False)
        return Rendered(input_ids, labels)

    def encode(self, text: str) -> list[int]:
        """Tokens of a bare text, as the model would write it at the start of its reply."""
        return self._encode(text)

    def encode_all(self, texts: list[str]) -> list[list[int]]:
        """Tokens of many rendered texts; the tokenizer uses all its threads."""
        if not texts:
            return []
        if self._tokenizer.is_fast:
            # The same tokens without their places in the text, which cost a sixth of the time.
            return [
                encoded.ids for encoded in self._tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
            ]
        return self._tokenizer(texts, add_special_tokens=False)["input_ids"]

    def _encode(self, text: str) -> list[int]:
        # The template writes the special tokens itself: adding them again would double the first.
        return self._tokenizer.encode(text, add_special_tokens=False) if text else []


def load_renderer(model: str, trust_remote_code: bool = False) -> ChatRenderer:
    """Load the tokenizer of a resolved model name and wrap it."""
    from transformers import AutoTokenizer

    return ChatRenderer(AutoTokenizer.from_pretrained(model, trust_remote_code=trust_remote_code))
