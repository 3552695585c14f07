"""The chat renderer shared by scoring, training and evaluation: conversation to token ids.

Training and scoring see what generation sees: the text of the chat template is encoded once, and the prompt that generation
would encode at a reply is a prefix of its sequence. A conversation is one sequence where this holds for all replies at once;
where the template writes earlier turns differently from the last one, as most that think do, it is one sequence per reply.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from os.path import commonprefix
from typing import Any

from ual_ray.columns import THOUGHT, THOUGHT_KEYS, Message, Messages, digest, extra_of, trained_replies
from ual_ray.errors import UserError

IGNORE_INDEX = -100

MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")
NO_END = (
    "the chat template ends a reply without a special token: no end of turn is trained, and the model may not stop; "
    "end the reply with eos_token in the template, within its {% generation %} marks if it has them"
)
# A character for private use, which no data has.
SENTINEL = "\ue000"
# The first of several lines, with its indent: without it the lines are another program.
INDENTED = re.compile(r"\s*?(?<![ \t])((?:[ ]{2}|\t)[ \t]*\S[^\n]*)\n\s*\S")
# A thought that a generation prompt leaves open.
OPEN_THOUGHT = re.compile(r"<think>\s*\Z")


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

    def __init__(self, tokenizer: Any, template_arguments: Mapping[str, Any] | None = None) -> None:
        """Take a Hugging Face tokenizer, and arguments for its chat template. Raises UserError when it has no chat template."""
        if not getattr(tokenizer, "chat_template", None):
            raise UserError(
                "the model's tokenizer has no chat template", got=tokenizer.name_or_path, fix="use an instruct model"
            )
        self._tokenizer = tokenizer
        self._arguments = dict(template_arguments or {})
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

    def _render(self, messages: Messages, prompt: bool, thinking: bool) -> tuple[str, list[tuple[int, int]]]:
        """Return the text and, where the template has generation marks, the spans of characters within them."""
        extras = [extra_of(message) for message in messages]
        tools = extras[0].get("tools") if extras else None
        options = {"tools": tools, "add_generation_prompt": prompt, "enable_thinking": thinking} | self._arguments
        error: Exception | None = None
        for given in _forms(messages, extras, self._in_parts):
            try:
                text, spans = self._apply(given, options)
            except Exception as failed:  # a template is code of the model's author, which may raise anything
                error = error or ValueError(f"the chat template rejects the conversation: {failed}")
                continue
            if lost := _dropped(text, messages, extras):
                error = ValueError(f"the chat template drops {lost}")
                continue
            return text, spans
        assert error is not None
        raise error

    def _apply(self, given: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> tuple[str, list[tuple[int, int]]]:
        if self._marked and not options["add_generation_prompt"]:
            from ual_ray.models.compat_transformers import render_with_marks

            return render_with_marks(self._tokenizer, given, options)
        return self._tokenizer.apply_chat_template(list(given), tokenize=False, **options), []

    @cached_property
    def _in_parts(self) -> bool:
        """Whether the template reads contents as lists of parts alone, as those of vision models do."""
        word = "Hello"
        for parts in (False, True):
            given = [{"role": "user", "content": _content(word, parts)}]
            try:
                if word in self._tokenizer.apply_chat_template(given, tokenize=False, add_generation_prompt=True):
                    return parts
            except Exception:  # noqa: S112 - tried again, and reported, where a conversation is rendered
                continue
        return False

    # --- tokens ---

    def prompt_ids(self, messages: Messages, thinking: bool = False) -> list[int]:
        """Tokens up to and including the generation prompt."""
        return self._ids(self.text(messages, generation_prompt=True, thinking=thinking))

    @property
    def vocabulary(self) -> list[str]:
        """The tokens by their ids, as the tokenizer writes them."""
        return self._tokenizer.convert_ids_to_tokens(range(len(self._tokenizer)))

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
            raise ValueError(f"the chat template rewrites earlier turns: the conversation is {len(found)} sequences")
        return found[0]

    def ends_turn(self, rendered: Rendered) -> bool:
        """Whether the last token trained on, white space aside, is a special one, at which generation can stop."""
        special = set(self._tokenizer.all_special_ids) | set(getattr(self._tokenizer, "added_tokens_decoder", ()))
        trained = (label for label in reversed(rendered.labels) if label != IGNORE_INDEX)
        last = next((label for label in trained if label in special or self._tokenizer.decode([label]).strip()), None)
        return last in special

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
        text, marks = self._render(messages, False, thinking)
        if not text.startswith(prompt):
            marks = []
            opened = OPEN_THOUGHT.search(prompt)
            before = prompt[: opened.start()] if opened else prompt
            if not text.startswith(before):
                raise ValueError("the chat template does not continue its generation prompt with the reply")
            # The prompt opens a thought that the template leaves out of finished turns, but not what stood behind it.
            rest = _without_thought(text[len(before) :])
            rest = rest.lstrip("\n") if THOUGHT.match(messages[-1]["content"]) else rest
            text = f"{prompt}{thought}\n</think>\n\n{rest}"
        if thought not in text[len(prompt) :]:
            raise ValueError("the chat template drops the reply's reasoning_content (data.thinking=drop leaves it out)")
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
        ids, starts = self._offsets(text)
        labels = [IGNORE_INDEX] * len(ids)
        for reply in replies:
            prompt = self._ids(reply.prompt)
            if ids[: len(prompt)] != prompt:
                return None
            for start, end in reply.spans:
                first = len(prompt) if start == len(reply.prompt) else bisect_left(starts, start)
                last = bisect_left(starts, end)
                labels[first:last] = ids[first:last]
        return Rendered(ids, labels)

    def _alone(self, reply: Reply) -> Rendered:
        """Make the sequence of one reply. Raises ValueError where its tokens cannot follow those of its prompt."""
        if found := self._together([reply]):
            return found
        # A token would reach over the end of the prompt, such as a line break and the indent behind it. Generation cannot
        # produce it: the prompt's tokens are given.
        prompt, rest = self._ids(reply.prompt), reply.text[len(reply.prompt) :]
        ids, starts = self._offsets(rest)
        if self._decode([*prompt, *ids]) != self._decode(self._ids(reply.text)):
            raise ValueError("the tokenizer encodes the reply differently behind its prompt; its tokens cannot be identified")
        labels = [IGNORE_INDEX] * len(ids)
        for start, end in reply.spans:
            first, last = (bisect_left(starts, place - len(reply.prompt)) for place in (start, end))
            labels[first:last] = ids[first:last]
        return Rendered(prompt + ids, [IGNORE_INDEX] * len(prompt) + labels)

    def _ids(self, text: str) -> list[int]:
        # The template already adds the special tokens.
        return self._tokenizer.encode(text, add_special_tokens=False) if text else []

    def _offsets(self, text: str) -> tuple[list[int], list[int]]:
        """Encode a text; return the tokens, and where each starts in it."""
        if not self._tokenizer.is_fast:
            raise ValueError("the tokenizer does not tell which characters its tokens cover (it is not a fast one)")
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return encoded["input_ids"], [start for start, _ in encoded["offset_mapping"]]

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def thought_of(message: Message) -> str:
    """Return the reasoning of a reply, stripped: its reasoning_content, or the thought that its content starts with."""
    given = extra_of(message).get("reasoning_content")
    if given is None and (found := THOUGHT.match(message["content"])):
        given = found[1]
    return (given or "").strip()


def _without_thought(text: str) -> str:
    """Leave out the first thought, and the white space around it: THOUGHT without its search from every blank."""
    start = text.find("<think>")
    end = text.find("</think>", start)
    return text if min(start, end) < 0 else text[:start].rstrip() + text[end + len("</think>") :].lstrip()


def _content(text: str, parts: bool) -> str | list[dict[str, str]]:
    return [{"type": "text", "text": text}] if parts else text


def _forms(messages: Messages, extras: Sequence[Mapping[str, Any]], parts: bool) -> Iterator[list[dict[str, Any]]]:
    """Yield the variants of tool calls that templates expect: arguments as an object or text, no content as "" or null."""
    calls = any("tool_calls" in extra for extra in extras)
    for parsed, empty in product((True, False), ("", None)) if calls else [(True, "")]:
        yield [_given(message, extra, parts, parsed, empty) for message, extra in zip(messages, extras, strict=True)]


def _given(message: Message, extra: Mapping[str, Any], parts: bool, parsed: bool, empty: str | None) -> dict[str, Any]:
    given: dict[str, Any] = {"role": message["role"], "content": _content(message["content"], parts)}
    given |= {key: extra[key] for key in ("name", "tool_call_id") if key in extra}
    if thought := extra.get("reasoning_content"):
        given |= dict.fromkeys(THOUGHT_KEYS, thought)
    if calls := extra.get("tool_calls"):
        given["content"] = given["content"] if message["content"] else empty
        given["tool_calls"] = [_call(call, parsed) for call in calls]
    return given


def _call(call: Mapping[str, Any], parsed: bool) -> dict[str, Any]:
    arguments = call["function"]["arguments"]
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return {**call, "function": {**call["function"], "arguments": json.loads(text) if parsed else text}}


def _dropped(text: str, messages: Messages, extras: Sequence[Mapping[str, Any]]) -> str | None:
    """Name the first part of a conversation that is not in its text; None where all are.

    Thoughts of earlier turns may be left out, as `ChatRenderer._reply` checks that of the turn that is trained.
    """
    called: Counter[str] = Counter()
    contents: Counter[str] = Counter()
    for tool in extras[0].get("tools", ()) if extras else ():
        called[tool["function"]["name"]] += 1
        if tool["function"]["name"] not in text:
            return f"tools ({tool['function']['name']})"
    for number, (message, extra) in enumerate(zip(messages, extras, strict=True), start=1):
        content = message["content"].strip()
        if message["role"] == "assistant" and content not in text:
            content = _without_thought(content).strip()
        contents[content] += 1
        if text.count(content) < contents[content]:
            return f"the content of turn {number} ({message['role']})"
        indented = INDENTED.match(message["content"])
        if message["role"] == "assistant" and indented and indented[1] not in text:
            return f"the indent of turn {number} (assistant)"
        for call in extra.get("tool_calls", ()):
            name = call["function"]["name"]
            called[name] += 1
            if text.count(name) < called[name]:
                return f"tool_calls of turn {number} ({name})"
            for value, *written in _leaves(_call(call, True)["function"]["arguments"]):
                if not any(form in text for form in (value, *written)):
                    return f"arguments of turn {number} ({name}: {value:.40})"
    return None


def _leaves(arguments: Any) -> Iterator[tuple[str, ...]]:
    """Yield the ways in which a template may write each value of a call's arguments: as it is, in JSON, in JSON as text."""
    if isinstance(arguments, Mapping | list):
        for part in arguments.values() if isinstance(arguments, Mapping) else arguments:
            yield from _leaves(part)
    elif isinstance(arguments, str):
        quoted = [json.dumps(arguments, ensure_ascii=escaped)[1:-1] for escaped in (False, True)]
        yield arguments, *quoted, *(json.dumps(text)[1:-1] for text in quoted), json.dumps(quoted[0], ensure_ascii=False)[1:-1]
    elif arguments is not None:
        yield json.dumps(arguments), str(arguments)


def load_renderer(
    model: str, trust_remote_code: bool = False, template_arguments: Mapping[str, Any] | None = None
) -> ChatRenderer:
    """Load the tokenizer of a resolved model name and wrap it in a renderer."""
    from transformers import AutoTokenizer

    return ChatRenderer(AutoTokenizer.from_pretrained(model, trust_remote_code=trust_remote_code), template_arguments)
