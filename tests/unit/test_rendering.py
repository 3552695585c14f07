"""The renderer: exactly what the assistant says, and its end-of-turn token, is trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ual_ray.errors import UserError
from ual_ray.records import Message
from ual_ray.rendering import IGNORE_INDEX, ChatRenderer, Rendered, load_renderer

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


@pytest.mark.parametrize("style", STYLES)
def test_labels_are_the_reply_and_its_end_of_turn(style: str, chat_tokenizer: Tokenizers, end_of_turn: dict) -> None:
    tokenizer = chat_tokenizer(style)
    end = end_of_turn[style]
    one = ChatRenderer(tokenizer).conversation(ONE_TURN)
    two = ChatRenderer(tokenizer).conversation(TWO_TURNS)
    assert trained_runs(tokenizer, one) == ["Blue light is scattered most." + end]
    assert trained_runs(tokenizer, two) == ["Blue." + end, "Green is a colour too." + end]


@pytest.mark.parametrize("style", STYLES)
def test_every_label_stands_at_its_own_token(style: str, chat_tokenizer: Tokenizers) -> None:
    rendered = ChatRenderer(chat_tokenizer(style)).conversation(TWO_TURNS)
    assert len(rendered.labels) == len(rendered.input_ids)
    pairs = zip(rendered.labels, rendered.input_ids, strict=True)
    assert all(label in (IGNORE_INDEX, token) for label, token in pairs)
    assert rendered.target_tokens == sum(label >= 0 for label in rendered.labels) > 0


@pytest.mark.parametrize("style", STYLES)
def test_tokens_spell_the_rendered_text(style: str, chat_tokenizer: Tokenizers) -> None:
    tokenizer = chat_tokenizer(style)
    renderer = ChatRenderer(tokenizer)
    text = tokenizer.decode(renderer.conversation(TWO_TURNS).input_ids, skip_special_tokens=False)
    assert text == renderer.text(TWO_TURNS, generation_prompt=False)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("messages", [ONE_TURN, TWO_TURNS], ids=["one_turn", "two_turns"])
def test_training_sees_the_prompt_of_generation(style: str, messages: Any, chat_tokenizer: Tokenizers) -> None:
    renderer = ChatRenderer(chat_tokenizer(style))
    prompt = renderer.prompt_ids(messages[:-1])
    assert renderer.conversation(messages).input_ids[: len(prompt)] == prompt


@pytest.mark.parametrize("style", ["llama3", "mistral", "gemma"])
def test_the_first_token_is_not_doubled(style: str, chat_tokenizer: Tokenizers) -> None:
    renderer = ChatRenderer(chat_tokenizer(style))
    (first,) = renderer.encode("<s>")
    assert renderer.prompt_ids(ONE_TURN[:1])[:1] == [first]
    assert renderer.prompt_ids(ONE_TURN[:1]).count(first) == 1
    assert renderer.conversation(TWO_TURNS).input_ids.count(first) == 1


@pytest.mark.parametrize("style", ["chatml", "llama3"])
def test_a_system_message_is_read_and_not_trained(style: str, chat_tokenizer: Tokenizers, end_of_turn: dict) -> None:
    tokenizer = chat_tokenizer(style)
    messages = chat("Name a colour.", "Blue.", system="You are a helpful assistant.")
    rendered = ChatRenderer(tokenizer).conversation(messages)
    assert "You are a helpful assistant." in tokenizer.decode(rendered.input_ids)
    assert trained_runs(tokenizer, rendered) == ["Blue." + end_of_turn[style]]


@pytest.mark.parametrize("style", ["mistral", "gemma"])
def test_a_role_the_template_refuses_is_a_value_error(style: str, chat_tokenizer: Tokenizers) -> None:
    """ValueError is what callers quarantine a row for; jinja's own error would end the job."""
    messages = chat("Name a colour.", "Blue.", system="You are a helpful assistant.")
    with pytest.raises(ValueError, match="supported"):
        ChatRenderer(chat_tokenizer(style)).conversation(messages)


@given(
    reply=st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1),
    style=st.sampled_from(STYLES),
)
def test_any_reply_is_trained_whole(reply: str, style: str, chat_tokenizer: Tokenizers, end_of_turn: dict) -> None:
    tokenizer = chat_tokenizer(style)
    rendered = ChatRenderer(tokenizer).conversation(chat("Name a colour.", reply))
    assert trained_runs(tokenizer, rendered) == [reply + end_of_turn[style]]


def test_a_tokenizer_without_a_template_is_refused(chat_tokenizer: Tokenizers) -> None:
    with pytest.raises(UserError, match="(?s)no chat template.*tiny.*instruct model"):
        ChatRenderer(chat_tokenizer("none"))


def test_a_template_that_rewrites_earlier_turns_is_refused(chat_tokenizer: Tokenizers) -> None:
    renderer = ChatRenderer(chat_tokenizer("rewriting"))
    assert renderer.conversation(ONE_TURN).target_tokens > 0
    with pytest.raises(ValueError, match="rewrites earlier turns"):
        renderer.conversation(TWO_TURNS)


@pytest.mark.parametrize("style", STYLES)
def test_only_the_last_reply_is_trained_where_that_is_asked(style: str, chat_tokenizer: Tokenizers, end_of_turn: dict) -> None:
    tokenizer = chat_tokenizer(style)
    renderer = ChatRenderer(tokenizer)
    every, last = renderer.conversation(TWO_TURNS), renderer.conversation(TWO_TURNS, last_reply_only=True)
    assert last.input_ids == every.input_ids
    assert trained_runs(tokenizer, last) == ["Green is a colour too." + end_of_turn[style]]
    assert renderer.conversation(ONE_TURN, last_reply_only=True) == renderer.conversation(ONE_TURN)


@pytest.mark.parametrize("style", ["chatml", "llama3"])
@pytest.mark.parametrize("text", ["0", "9", "A", "100", "42", "Blue."])
def test_a_bare_text_is_as_many_tokens_as_it_needs(style: str, text: str, chat_tokenizer: Tokenizers) -> None:
    tokenizer = chat_tokenizer(style)
    ids = ChatRenderer(tokenizer).encode(text)
    assert tokenizer.decode(ids) == text
    assert len(text) > 1 or len(ids) == 1


def test_an_empty_text_is_no_token(chat_tokenizer: Tokenizers) -> None:
    renderer = ChatRenderer(chat_tokenizer("llama3"))
    assert renderer.encode("") == renderer.encode_all([]) == []


@pytest.mark.parametrize("style", STYLES)
def test_many_texts_are_encoded_as_each_alone(style: str, chat_tokenizer: Tokenizers) -> None:
    renderer = ChatRenderer(chat_tokenizer(style))
    texts = [renderer.text(messages[:-1], generation_prompt=True) for messages in (ONE_TURN, TWO_TURNS)]
    assert renderer.encode_all(texts) == [renderer.prompt_ids(messages[:-1]) for messages in (ONE_TURN, TWO_TURNS)]


def test_a_model_that_thinks_first_is_told_not_to(chat_tokenizer: Tokenizers) -> None:
    class Thinking:
        chat_template = "x"

        def apply_chat_template(self, messages: Any, **options: Any) -> str:
            return "" if options["enable_thinking"] is False else "<think>"

    assert ChatRenderer(Thinking()).text(ONE_TURN, generation_prompt=True) == ""


def test_a_saved_tokenizer_is_loaded(tmp_path: Path, chat_tokenizer: Tokenizers) -> None:
    chat_tokenizer("chatml").save_pretrained(tmp_path)
    loaded, own = load_renderer(str(tmp_path)), ChatRenderer(chat_tokenizer("chatml"))
    assert loaded.template_hash == own.template_hash
    assert loaded.conversation(TWO_TURNS) == own.conversation(TWO_TURNS)


def test_the_template_hash_tells_templates_apart(chat_tokenizer: Tokenizers) -> None:
    hashes = [ChatRenderer(chat_tokenizer(style)).template_hash for style in STYLES]
    assert len(set(hashes)) == len(STYLES)
    assert ChatRenderer(chat_tokenizer("chatml")).template_hash == hashes[0]
