"""The chat renderer shared by scoring, training and evaluation: conversation to token ids.

Training and scoring see what generation sees: the text of the chat template is encoded once, and the prompt that generation
would encode at a reply is a prefix of its sequence. A conversation is one sequence where this holds for all replies at once;
where the template writes earlier turns differently from the last one, as most that think do, it is one sequence per reply.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from os.path import commonprefix
from typing import Any

from ual_ray.columns import THOUGHT, THOUGHT_KEYS, Message, Messages, digest, extra_of, trained_replies, with_extra
from ual_ray.errors import UserError
from ual_ray.models.given import (
    NO_THOUGHT,
    as_content,
    behind,
    dropped,
    filled,
    forms_of,
    left_open,
    moved_reply,
    with_own_thought,
)
from ual_ray.models.resolve import stop_tokens

IGNORE_INDEX = -100
# Raised when rows become other tokens, so that a store of them is not used.
RENDERING_VERSION = 4

MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")
NO_END = (
    "the chat template does not end a reply with a token at which generation stops: the model may not stop; end the reply with "
    "eos_token in the template, within its {% generation %} marks if it has them, or list its last token under eos_token_id in "
    "the model's generation_config.json"
)
# The names under which templates read whether to think: Qwen's; DeepSeek's, Granite's and Kimi's; Cohere's.
SWITCHES = ("enable_thinking", "thinking", "reasoning")
# What Hunyuan's templates need to be told to end the last reply as all others.
FINISHED = {"is_training": True}
LARGER_TOKENIZER = "the tokenizer is larger than the model's embedding"
RESIZE = "use the tokenizer that belongs to the model, or resize the embedding and save the model again"
# What to do about rows that a template does not take.
OTHER_TEMPLATE = "use another template, as chat_template.jinja in the model's directory, or another model"
# A character for private use, which no data has.
SENTINEL = "\ue000"
CALLS = {"tools", "tool_calls"}
PROBED_NAME = "name_of_a_probed_tool"
# The end of a thought, in any marks.
THOUGHT_END = re.compile(r"</(?:\w+:)?think>|<channel\|>")


@dataclass(frozen=True)
class Rendered:
    """A sequence of tokens: `labels` is `input_ids` at the tokens to predict and IGNORE_INDEX elsewhere."""

    input_ids: list[int]
    labels: list[int]

    @property
    def target_tokens(self) -> int:
        """Number of label tokens."""
        return sum(label != IGNORE_INDEX for label in self.labels)


@dataclass(frozen=True)
class Reply:
    """One reply as text: its prompt, the conversation up to its end, and the spans of characters in it that are trained."""

    prompt: str
    text: str
    spans: list[tuple[int, int]]

    @property
    def end(self) -> int:
        """Where the last trained span ends."""
        return self.spans[-1][1] if self.spans else len(self.prompt)

    def until(self, end: int) -> Reply:
        """Cut the spans at a place in the text."""
        return replace(self, spans=[(first, min(last, end)) for first, last in self.spans if first < end])


class ChatRenderer:
    """Render conversations with one tokenizer's chat template."""

    def __init__(
        self, tokenizer: Any, template_arguments: Mapping[str, Any] | None = None, stops: Collection[int] = ()
    ) -> None:
        """Take a Hugging Face tokenizer, and arguments for its chat template. Raises UserError when it has no chat template.

        stops: tokens at which generation ends, besides the tokenizer's eos_token; empty = any special token may.
        """
        if not getattr(tokenizer, "chat_template", None):
            raise UserError(
                "the model's tokenizer has no chat template", got=tokenizer.name_or_path, fix="use an instruct model"
            )
        self._tokenizer = tokenizer
        self._arguments = dict(template_arguments or {})
        self._stops = {*stops, tokenizer.eos_token_id} if stops else set()
        self._marked = bool(MARKED.search(str(tokenizer.chat_template)))

    @property
    def template_hash(self) -> str:
        """Hash of the chat template."""
        return digest(self._tokenizer.chat_template)

    # --- text ---

    def text(self, messages: Messages, *, generation_prompt: bool, thinking: bool = False) -> str:
        """Render to text as the model will see it, with special tokens written out.

        Thinking is disabled unless it is asked for, as a score has to be the first token; templates without this option ignore
        it. Raises ValueError when the template rejects the conversation or drops a part of it.
        """
        return self._render(messages, generation_prompt, thinking)[0]

    def _render(self, messages: Messages, prompt: bool, thinking: bool, before: str = "") -> tuple[str, list[tuple[int, int]]]:
        """Return the text and, where the template has generation marks, the spans of characters within them.

        before: the prompt of the last reply, with which the text is made to start where the template writes it otherwise.
        """
        if self._has_thoughts:
            messages = [with_own_thought(message) for message in messages]
        extras = [extra_of(message) for message in messages]
        tools = extras[0].get("tools") if extras else None
        options = {"tools": tools, "add_generation_prompt": prompt, **self._switches(thinking)}
        options |= ({} if prompt else FINISHED) | self._arguments
        error: Exception | None = None
        for given in forms_of(messages, extras, self._in_parts):
            try:
                text, spans = self._apply(given, options)
                if before and (start := moved_reply(before, text, *(turn["content"].strip() for turn in messages[-2:]))):
                    text, by = before + text[start:], len(before) - start
                    spans = [(first + by, last + by) for first, last in spans]
            except Exception as failed:  # a template is code of the model's author, which may raise anything
                what = f"the chat template rejects the conversation: {failed}"
                error = error or ValueError(f"{what} (correct the row, or {OTHER_TEMPLATE})")
                continue
            if lost := dropped(text, messages, extras, self._unwritten if CALLS & {*chain(*extras)} else ()):
                error = ValueError(f"the chat template drops {lost} ({OTHER_TEMPLATE})")
                continue
            return text, spans
        assert error is not None
        raise error

    def _apply(self, given: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> tuple[str, list[tuple[int, int]]]:
        if self._marked and not options["add_generation_prompt"]:
            from ual_ray.models.compat_transformers import render_with_marks

            return render_with_marks(self._tokenizer, given, options)
        return self._tokenizer.apply_chat_template(list(given), tokenize=False, **options), []

    def _switches(self, thinking: bool) -> dict[str, Any]:
        """Write whether to think under all names; one that was given holds for the others too."""
        return dict.fromkeys(SWITCHES, next((self._arguments[name] for name in SWITCHES if name in self._arguments), thinking))

    def _probe(self, given: Sequence[Mapping[str, Any]], **options: Any) -> str:
        """Render turns that tell what the template does; "" where it rejects them, as is reported of those of the data."""
        try:
            return self._tokenizer.apply_chat_template(list(given), tokenize=False, **(options | self._arguments))
        except Exception:  # a template may raise anything
            return ""

    @cached_property
    def _in_parts(self) -> bool:
        """Whether the template reads contents as lists of parts alone, as those of vision models do."""
        texts = [self._probe([{"role": "user", "content": as_content(SENTINEL, parts)}]) for parts in (False, True)]
        return SENTINEL in texts[1] and SENTINEL not in texts[0]

    @cached_property
    def _probed_turns(self) -> list[dict[str, Any]]:
        return [{"role": role, "content": as_content("Hello", self._in_parts)} for role in ("user", "assistant")]

    @cached_property
    def _has_thoughts(self) -> bool:
        """Whether the template writes a thought that it is handed apart from the content."""
        asked, answered = self._probed_turns
        return SENTINEL in self._probe([asked, answered | dict.fromkeys(THOUGHT_KEYS, SENTINEL)], **self._switches(True))

    @cached_property
    def _unwritten(self) -> set[str]:
        """Name what the template leaves out of every conversation of tools and tool_calls; not what it rejects."""
        function: dict[str, Any] = {"name": PROBED_NAME, "description": "", "parameters": {"type": "object", "properties": {}}}
        tools = [{"type": "function", "function": function}]
        call = {"id": f"functions.{PROBED_NAME}:0", "type": "function", "function": {"name": PROBED_NAME, "arguments": {}}}
        turns = [Message(role="user", content="Hello"), with_extra(Message(role="assistant", content=""), tool_calls=[call])]
        forms = forms_of(turns, [extra_of(turn) for turn in turns], self._in_parts)
        texts = {"tool_calls": [self._probe(given) for given in forms]}
        texts["tools"] = [self._probe(self._probed_turns[:1], tools=tools, add_generation_prompt=True)]
        return {kind for kind, found in texts.items() if any(found) and not any(PROBED_NAME in text for text in found)}

    @cached_property
    def _next_starts(self) -> list[str]:
        """The start of a next reply with which some templates end every text, without and with thinking; "" for most."""
        end = self._tokenizer.eos_token or SENTINEL
        starts = []
        for thinking in (False, True):
            texts = (self._probe(self._probed_turns[:turns], **self._switches(thinking)) for turns in (1, 2))
            asked, answered = (text.rpartition(end)[2] for text in texts)
            starts.append(answered if asked == answered and answered.strip() else "")
        return starts

    # --- tokens ---

    def prompt_ids(self, messages: Messages, thinking: bool = False) -> list[int]:
        """Tokens up to and including the generation prompt."""
        return self._ids(self.text(messages, generation_prompt=True, thinking=thinking))

    @property
    def vocabulary(self) -> list[str]:
        """The tokens by their ids, as the tokenizer writes them."""
        return self._tokenizer.convert_ids_to_tokens(range(len(self._tokenizer)))

    @cached_property
    def special_tokens(self) -> frozenset[str]:
        """The tokens that a text is decoded without."""
        added = getattr(self._tokenizer, "added_tokens_decoder", {}).values()
        return frozenset(str(token) for token in added if token.special)

    def sequences(self, messages: Messages, *, last_reply_only: bool = False, content_only: bool = False) -> list[Rendered]:
        """Tokens of the conversation, with every assistant turn and its end-of-turn token as labels once.

        One sequence for all replies where the prompts of all are prefixes of it, else one per reply, with the turns before it
        as they are when it is generated. Replies of weight 0, and one that comes first, are read and not trained.
        `last_reply_only` restricts labels to the last one, `content_only` to tokens that begin before the end of a reply's
        content. Raises ValueError when a prompt is not a prefix of the text or of the tokens.
        """
        trained = trained_replies(messages)
        if last_reply_only:
            last = max((at for at, message in enumerate(messages) if message["role"] == "assistant"), default=0)
            trained = [at for at in trained if at == last]
        replies = [self._reply(messages[: at + 1]) for at in trained]
        if content_only:
            replies = [
                reply.until(self._end_of_content(messages[: at + 1])) for at, reply in zip(trained, replies, strict=True)
            ]
        together = self._together(replies) if replies else None
        return [together] if together else [self._alone(reply) for reply in replies]

    def conversation(self, messages: Messages, *, last_reply_only: bool = False, content_only: bool = False) -> Rendered:
        """Tokens of a conversation that is one sequence, as `sequences` has them. Raises ValueError where it is several."""
        found = self.sequences(messages, last_reply_only=last_reply_only, content_only=content_only)
        if len(found) != 1:
            raise ValueError(
                f"the chat template rewrites earlier turns: the conversation is {len(found)} sequences ({OTHER_TEMPLATE})"
            )
        return found[0]

    def ends_turn(self, rendered: Rendered) -> bool:
        """Whether the last token trained on, white space aside, is one at which generation stops."""
        special = set(self._tokenizer.all_special_ids) | set(getattr(self._tokenizer, "added_tokens_decoder", ()))
        trained = (label for label in reversed(rendered.labels) if label != IGNORE_INDEX)
        last = next((label for label in trained if label in special or self._tokenizer.decode([label]).strip()), None)
        return last in (self._stops or special)

    def encode(self, text: str) -> list[int]:
        """Tokens of a plain text, as the model would write it at the start of its reply."""
        # Behind a prompt: SentencePiece puts a blank in front of a text of its own.
        prompt = self._ids(self._any_prompt)
        ids = self._ids(self._any_prompt + text)
        return ids[len(prompt) :] if ids[: len(prompt)] == prompt else self._ids(text)

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

    @cached_property
    def _any_prompt(self) -> str:
        return self.text([Message(role="user", content="Hello")], generation_prompt=True)

    def _reply(self, messages: Messages) -> Reply:
        """Split the conversation at its last reply. Raises ValueError when the template does not continue its own prompt."""
        thought = thought_of(messages[-1])
        thinking = bool(thought)
        prompt = self.text(messages[:-1], generation_prompt=True, thinking=thinking)
        text, marks = self._render(messages, False, thinking, prompt)
        if opened := left_open(prompt, text, messages[-1], thought):
            text = prompt[: opened.start()] + text[len(prompt) :]
        if not text.startswith(prompt):
            marks = []
            text = behind(prompt, text, thought, messages[-1])
        elif thought and not marks and (empty := NO_THOUGHT.match(text, len(prompt))):
            text = prompt + filled(empty, thought, text[empty.end() :])
        text = text.removesuffix(self._next_starts[thinking])
        start = text.find(thought, len(prompt))
        if start < 0 or (thought and THOUGHT_END.search(text, len(prompt), start)):
            what = "drops the reply's reasoning_content" if start < 0 else "writes a thought of its own before the reply's"
            raise ValueError(f"the chat template {what} (data.thinking=drop leaves it out)")
        # The line break after the end-of-turn token is added by the template, not by the model.
        own = [(len(prompt), len(text.rstrip()))]
        spans = [(max(start, len(prompt)), end) for start, end in marks if end > len(prompt)] or own
        return Reply(prompt, text, spans)

    def _end_of_content(self, messages: Messages) -> int:
        """Find where the content of the last reply ends in its text: there the text goes on where the content does."""
        last = Message(**{**messages[-1], "content": messages[-1]["content"] + SENTINEL})
        texts = [self._reply(each).text for each in (messages, [*messages[:-1], last])]
        return len(commonprefix(texts))

    def _together(self, replies: Sequence[Reply]) -> Rendered | None:
        """Make one sequence of all replies; None where the prompt of one, or what is trained of it, is not a prefix of it."""
        text = replies[-1].text
        if not all(text.startswith(reply.prompt) and text.startswith(reply.text[: reply.end]) for reply in replies):
            return None
        ids, starts, ends = self._offsets(text)
        labels = [IGNORE_INDEX] * len(ids)
        for reply in replies:
            prompt = self._ids(reply.prompt)
            if ids[: len(prompt)] != prompt:
                return None
            for start, end in reply.spans:
                first, last = max(len(prompt), bisect_right(ends, start)), bisect_left(starts, end)
                if reply is not replies[-1] and last and text[end : ends[last - 1]].strip():
                    return None  # a token that the reply ends in holds a part of the next turn
                labels[first:last] = ids[first:last]
        return Rendered(ids, labels)

    def _alone(self, reply: Reply) -> Rendered:
        """Make the sequence of one reply. Raises ValueError where its tokens cannot follow those of its prompt."""
        if found := self._together([reply]):
            return found
        # A token would reach over the end of the prompt, such as a line break and the indent behind it. Generation cannot
        # produce it: the prompt's tokens are given.
        prompt, rest = self._ids(reply.prompt), reply.text[len(reply.prompt) :]
        ids, starts, ends = self._offsets(rest)
        if self._decode([*prompt, *ids]) != self._decode(self._ids(reply.text)):
            raise ValueError(
                "the tokenizer encodes the reply differently behind its prompt; its tokens cannot be identified (use a model "
                "with another tokenizer)"
            )
        labels = [IGNORE_INDEX] * len(ids)
        for start, end in reply.spans:
            first, last = bisect_right(ends, start - len(reply.prompt)), bisect_left(starts, end - len(reply.prompt))
            labels[first:last] = ids[first:last]
        return Rendered(prompt + ids, [IGNORE_INDEX] * len(prompt) + labels)

    def _ids(self, text: str) -> list[int]:
        # The template already adds the special tokens.
        return self._tokenizer.encode(text, add_special_tokens=False) if text else []

    def _offsets(self, text: str) -> tuple[list[int], list[int], list[int]]:
        """Encode a text; return the tokens, and where each starts and ends in it."""
        if not self._tokenizer.is_fast:
            raise ValueError(
                "the tokenizer does not tell which characters its tokens cover (use a fast one, which has a tokenizer.json)"
            )
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        starts, ends = ([place[side] for place in encoded["offset_mapping"]] for side in (0, 1))
        return encoded["input_ids"], starts, ends

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def without_embedding(sequences: Iterable[Rendered], entries: int) -> str | None:
    """Name the largest token if a model whose vocabulary has so many entries has no embedding for it."""
    largest = max((token for one in sequences for token in one.input_ids), default=0)
    return f"token {largest} is outside of the model's vocabulary of {entries} entries" if largest >= entries else None


def thought_of(message: Message) -> str:
    """Return the reasoning of a reply, stripped: its reasoning_content, or the thought that its content starts with."""
    given = extra_of(message).get("reasoning_content")
    if given is None and (found := THOUGHT.match(message["content"])):
        given = found[1]
    return (given or "").strip()


def load_renderer(
    model: str, trust_remote_code: bool = False, template_arguments: Mapping[str, Any] | None = None
) -> ChatRenderer:
    """Load the tokenizer of a resolved model name and wrap it in a renderer."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=trust_remote_code)
    return ChatRenderer(tokenizer, template_arguments, stop_tokens(model))
