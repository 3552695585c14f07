"""What a chat template is handed of a conversation, and what of it is missing or elsewhere in the text that it writes."""

import json
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import product
from typing import Any

from ual_ray.columns import THOUGHT, THOUGHT_KEYS, Message, Messages, extra_of, with_extra

# The first of several lines, with its indent: without it the lines are another program.
INDENTED = re.compile(r"\s*?(?<![ \t])((?:[ ]{2}|\t)[ \t]*\S[^\n]*)\n\s*\S")

# What a user writes to turn thinking on or off: some templates read it and leave it out.
SWITCH = re.compile(r"(?<!<)/(?:no_)?think\b")
# A thought that a generation prompt leaves open, and an empty one that it ends with.
OPEN_THOUGHT = re.compile(r"<think>\s*\Z")
EMPTY_THOUGHT = re.compile(
    r"(?:<think(?::\w+)?>\s*(?=</think)|<\|channel>thought\s*(?=<channel)|<\|START_THINKING\|>(?=<))"
    r"(?P<close></think(?::\w+)?>|<channel\|>|<\|END_THINKING\|>)\s*\Z"
)
# An empty thought that a finished reply starts with.
NO_THOUGHT = re.compile(r"<think>(\s*)</think>")


def with_own_thought(message: Message) -> Message:
    """Take the thought that a reply's content starts with out of it, for a template that writes thoughts itself."""
    found = THOUGHT.match(message["content"]) if message["role"] == "assistant" else None
    if not found or not found[1].strip() or "reasoning_content" in extra_of(message):
        return message
    content = message["content"][found.end(1) + len("</think>") :].lstrip("\n")
    return with_extra(Message(**{**message, "content": content}), reasoning_content=found[1].strip("\n"))


def without_thought(text: str) -> str:
    """Leave out the first thought, and the white space around it: THOUGHT without its search from every blank."""
    start = text.find("<think>")
    end = text.find("</think>", start)
    return text if min(start, end) < 0 else text[:start].rstrip() + text[end + len("</think>") :].lstrip()


def as_content(text: str, parts: bool) -> str | list[dict[str, str]]:
    """Write a content as a text, or as a list of parts."""
    return [{"type": "text", "text": text}] if parts else text


def forms_of(messages: Messages, extras: Sequence[Mapping[str, Any]], parts: bool) -> Iterator[list[dict[str, Any]]]:
    """Yield the variants of tool calls that templates expect: arguments as an object or text, no content as "" or null."""
    calls = any("tool_calls" in extra for extra in extras)
    for parsed, empty in product((True, False), ("", None)) if calls else [(True, "")]:
        yield [_given(message, extra, parts, parsed, empty) for message, extra in zip(messages, extras, strict=True)]


def _given(message: Message, extra: Mapping[str, Any], parts: bool, parsed: bool, empty: str | None) -> dict[str, Any]:
    given: dict[str, Any] = {"role": message["role"], "content": as_content(message["content"], parts)}
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


def dropped(text: str, messages: Messages, extras: Sequence[Mapping[str, Any]], unwritten: Collection[str] = ()) -> str | None:
    """Name the first part of a conversation that is not in its text; None where all are.

    unwritten: tools and tool_calls, where the template writes none: other turns may have their words.
    Thoughts of earlier turns may be left out, as `ChatRenderer._reply` checks that of the turn that is trained.
    """
    called: Counter[str] = Counter()
    contents: list[tuple[str, str]] = []
    for tool in extras[0].get("tools", ()) if extras else ():
        called[tool["function"]["name"]] += 1
        if "tools" in unwritten or tool["function"]["name"] not in text:
            return f"tools ({tool['function']['name']})"
    for number, (message, extra) in enumerate(zip(messages, extras, strict=True), start=1):
        content = message["content"].strip()
        if message["role"] == "assistant" and content not in text:
            content = without_thought(content).strip()
        if message["role"] in ("system", "user") and content not in text:
            content = SWITCH.sub("", content).strip()
        if message["role"] == "tool" and content not in text:
            content = next((form for form in next(_leaves(content)) if form in text), content)
        contents.append((content, f"the content of turn {number} ({message['role']})"))
        indented = INDENTED.match(message["content"])
        if message["role"] == "assistant" and indented and indented[1] not in text:
            return f"the indent of turn {number} (assistant)"
        for call in extra.get("tool_calls", ()):
            name = call["function"]["name"]
            called[name] += 1
            if "tool_calls" in unwritten or text.count(name) < called[name]:
                return f"tool_calls of turn {number} ({name})"
            for value, *written in _leaves(_call(call, True)["function"]["arguments"]):
                if not any(form in text for form in (value, *written)):
                    return f"arguments of turn {number} ({name}: {value:.40})"
    # The longest first, each at a place of its own: a turn may be of words that another has too.
    for content, what in sorted(contents, key=lambda content: -len(content[0])):
        if content not in text:
            return what
        text = text.replace(content, "\0", 1) if content else text
    return None


def moved_reply(prompt: str, text: str, asked: str, reply: str) -> int:
    """Find where the reply starts in a text that has the turns before it in another form than its prompt; 0 in others.

    As where a system message stands before the last turn, if that is the user's, in Mistral's templates of 2024.
    asked, reply: the last two turns; from the first on, prompt and text are the same.
    """
    end = prompt[prompt.rfind(asked) :] if asked and asked in prompt else ""
    at = text.rfind(end, 0, text.rfind(reply)) if end and not text.startswith(prompt) else -1
    return at + len(end) if at >= 0 else 0


def left_open(prompt: str, text: str, reply: Message, thought: str) -> re.Match[str] | None:
    """Find the thought that a prompt opens where a finished reply opens it again, ends it empty, or not before its content."""
    opened = OPEN_THOUGHT.search(prompt) if text.startswith(prompt) else None
    content = without_thought(reply["content"]) if THOUGHT.match(reply["content"]) else reply["content"]
    ends = text.find("</think>", len(prompt), text.rfind(content.strip()))
    return opened if THOUGHT.match(text, len(prompt)) or ends < 0 or (thought and ends == len(prompt)) else None


def filled(empty: re.Match[str], thought: str, rest: str) -> str:
    """Write the thought of a reply where the template has an empty one before it, as those that drop all thoughts have."""
    edge = "\n" if "\n" in empty[1] else ""
    if own := THOUGHT.match(rest):  # in the content
        rest = rest[: own.start(1) - len("<think>")] + rest[own.end(1) + len("</think>") :].lstrip("\n")
    return f"<think>{edge}{thought}{edge}</think>{rest}"


def behind(prompt: str, text: str, thought: str, reply: Message) -> str:
    """Put a reply behind a prompt that ends in a thought, open or empty, which the template leaves out of finished turns."""
    opened, empty = OPEN_THOUGHT.search(prompt), EMPTY_THOUGHT.search(prompt)
    found = opened or empty
    before = prompt[: found.start()] if found else prompt
    if empty and thought:
        raise ValueError(
            "the chat template asks for replies without a thought, and this has one (data.thinking=drop leaves it out)"
        )
    if not text.startswith(before) or not found:
        raise ValueError(
            "the chat template does not continue its generation prompt with the reply (correct the model's "
            "chat_template.jinja: a finished conversation has to be its prompt and then the reply)"
        )
    if empty:
        return prompt + text[len(before) :].removeprefix(empty["close"])
    if text.startswith("</think>", len(before)):  # the template writes the end of every thought, and no thought
        return f"{prompt}{thought}{text[len(before) :]}"
    # But not what stood behind it.
    rest = without_thought(text[len(before) :])
    rest = rest.lstrip("\n") if THOUGHT.match(reply["content"]) else rest
    return f"{prompt}{thought}\n</think>\n\n{rest}"


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
