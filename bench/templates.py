"""Every chat template that the installed trl has: what of a conversation is trained with it, and what it drops.

    python bench/templates.py

One row per template. one, three, thought, tools: number of sequences that a conversation of one reply, of three, of two of
which one has reasoning, and of a tool call becomes; `-`: the template drops the reasoning or the tool call, and such rows are
left out with this reason. prompt: the tokens of the generation prompt of every reply start the sequence that trains it. once:
each reply is trained once, and nothing of the user. end: the end of the turn is trained; `warned`: the template has none.
"""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ual_ray.columns import Message, Messages, with_extra
from ual_ray.models.chat import IGNORE_INDEX, ChatRenderer, thought_of

SPECIAL = re.compile(
    r"<\|[^|<>]+\|>|<｜[^｜]+｜>|</?(?:start|end)_of_turn>|</?(?:think|s|turn\|?)>|<turn\|>|\[/?INST\]|<end_of_utterance>"
)
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TOOL = {
    "type": "function",
    "function": {"name": "weather", "description": "Tell it.", "parameters": {"type": "object", "properties": {}}},
}
CALL = {"id": "call_1_ab", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Rome"}'}}


def chat(*contents: str) -> list[Message]:
    """Alternate user and assistant messages."""
    return [Message(role=("user", "assistant")[at % 2], content=text) for at, text in enumerate(contents)]


ONE = chat("Name a colour.", "Blue.")
THREE = chat("Name a colour.", "Blue.", "Another?", "Green, as leaves are.", "One more?", "Red.")
THOUGHT = [*THREE[:3], with_extra(THREE[3], reasoning_content="Leaves come to mind.")]
ASKED = [with_extra(Message(role="user", content="Weather in Rome?"), tools=[TOOL])]
TOOLS = [*ASKED, with_extra(Message(role="assistant", content=""), tool_calls=[CALL])]


@dataclass(frozen=True)
class Trained:
    """What became of a conversation: number of sequences, None with the reason in `error`; the checks of the table."""

    sequences: int | None
    error: str = ""
    prompt: bool = True
    once: bool = True
    end: bool = True


def templates() -> Iterator[tuple[str, str]]:
    """Yield names and texts of the installed trl's templates; none without it."""
    spec = find_spec("trl")  # importing it takes seconds
    for path in sorted(Path(spec.origin).with_name("chat_templates").glob("*.jinja")) if spec and spec.origin else ():
        yield path.stem, path.read_text(encoding="utf-8")


def renderer_of(template: str, tokenizer: Any) -> ChatRenderer:
    """Give a copy of a tokenizer the template, and the marks of its turns as special tokens."""
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split

    own = copy.deepcopy(tokenizer)
    # Words as Llama 3, Qwen and gpt-oss split them: line breaks stand alone. GPT-2's pattern joins them to the blanks behind.
    split = Split(Regex(WORDS), behavior="isolated")
    own.backend_tokenizer.pre_tokenizer = Sequence([split, ByteLevel(add_prefix_space=False, use_regex=False)])
    own.add_special_tokens({"extra_special_tokens": sorted(set(SPECIAL.findall(template)))})
    own.chat_template = template
    return ChatRenderer(own)


def train(renderer: ChatRenderer, messages: Messages) -> Trained:
    """Render a conversation as training does, and check its prompts, its labels and its ends."""
    try:
        sequences = renderer.sequences(messages)
    except ValueError as error:
        return Trained(None, str(error))
    places = [at for at, message in enumerate(messages) if message["role"] == "assistant"]
    runs = [run for sequence in sequences for run in _runs(sequence.labels)]
    decode = renderer._tokenizer.decode
    wanted = [messages[at]["content"] or "weather" for at in places]
    once = len(runs) == len(places) and all(text in decode(run) for text, run in zip(wanted, runs, strict=True))
    once = once and not any(
        message["content"] in decode(run) for message in messages if message["role"] == "user" for run in runs
    )
    prompts = []
    for number, at in enumerate(places):
        text = renderer.text(messages[:at], generation_prompt=True, thinking=bool(thought_of(messages[at])))
        ids = renderer._tokenizer.encode(text, add_special_tokens=False)
        sequence = sequences[min(number, len(sequences) - 1)]
        prompts.append(sequence.input_ids[: len(ids)] == ids and sequence.labels[len(ids)] != IGNORE_INDEX)
    return Trained(len(sequences), "", all(prompts), once, all(map(renderer.ends_turn, sequences)))


def _runs(labels: list[int]) -> Iterator[list[int]]:
    run: list[int] = []
    for label in [*labels, IGNORE_INDEX]:
        if label != IGNORE_INDEX:
            run.append(label)
        elif run:
            yield run
            run = []


HEAD = "| template | one | three | thought | tools | prompt | once | end |\n|---|---|---|---|---|---|---|---|"


def row(name: str, one: Trained, three: Trained, thought: Trained, tools: Trained) -> tuple[str, bool]:
    """Write a template's row, and tell whether it trains one turn and several."""
    shown = [result for result in (one, three, thought, tools) if result.sequences]
    checks = [all(result.prompt for result in shown), all(result.once for result in shown)]
    numbers = " | ".join(str(result.sequences or "-") for result in (one, three, thought, tools))
    words = " | ".join("yes" if check else "NO" for check in checks)
    text = f"| {name} | {numbers} | {words} | {'yes' if all(r.end for r in shown) else 'warned'} |"
    return text, bool(one.sequences and three.sequences and all(checks))


def table() -> tuple[list[str], int]:
    """Write the table, and count the templates that fail."""
    from transformers import AutoTokenizer

    from ual_ray.models.resolve import resolve_model

    tokenizer = AutoTokenizer.from_pretrained(resolve_model("demo"))
    rows = []
    for name, template in templates():
        renderer = renderer_of(template, tokenizer)
        rows.append(row(name, *(train(renderer, messages) for messages in (ONE, THREE, THOUGHT, TOOLS))))
    bad = sum(not good for _, good in rows)
    told = f"{len(rows) - bad} of {len(rows)} are trained and scored, one turn and several (trl {version('trl')})."
    return [HEAD, *(text for text, _ in rows), "", told], bad


def main() -> int:
    """Print the table; the exit code is 1 when a template fails."""
    lines, bad = table()
    print("\n".join(lines))
    return bad > 0


if __name__ == "__main__":
    sys.exit(main())
