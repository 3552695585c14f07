"""The renderer: exactly what the assistant says, and its end-of-turn token, is trained."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ual_ray.columns import Message
from ual_ray.errors import UserError
from ual_ray.models.chat import IGNORE_INDEX, ChatRenderer, Rendered, load_renderer

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


# The styles of models that are often fine-tuned, cut down to what they do to a conversation: none has generation marks.
SYSTEM = "You are a helpful assistant."
DEFAULT_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
)
CHATML_TURNS = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
CHATML_PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
FAMILIES = {
    "SmolLM2": DEFAULT_SYSTEM + CHATML_TURNS + CHATML_PROMPT,
    "Qwen2.5": "{%- if messages[0]['role'] == 'system' %}"
    "{{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}"
    "{%- else %}{{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{%- endif %}"
    "{%- for m in messages %}{%- if m.role == 'user' or m.role == 'assistant' %}"
    "{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}",
    "Llama-3": "{% for m in messages %}{% set content = '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n'"
    "+ m['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}"
    "{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
    # Its reply begins with the blank: the model has to produce it.
    "Mistral-v0.3": "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + '[/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}",
    # It checks that roles alternate, counting from the first message.
    "Gemma": "{{ bos_token }}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}"
    "{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
    # It thinks in the last turn alone, and is told not to: an empty thought stands in the prompt, and is not trained.
    "Qwen3": "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m.content + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}",
}
ENDS = {"Llama-3": "<|eot_id|>", "Mistral-v0.3": "</s>", "Gemma": "<end_of_turn>"}
# A template that rewrites earlier turns can be trained with one reply only.
MANY_TURNS = [family for family in FAMILIES if family != "Qwen3"]
THREE_TURNS = [*TWO_TURNS, *chat("Name a colour, please.", "Blue, and green too.")]


@pytest.fixture
def family_tokenizer(chat_tokenizer: Tokenizers) -> Tokenizers:
    """Get a tokenizer with the chat template of a family."""

    def get(family: str) -> Any:
        tokenizer = copy.deepcopy(chat_tokenizer("chatml"))
        tokenizer.chat_template = FAMILIES[family]
        return tokenizer

    return get


def spoken(family: str, *replies: str) -> list[str]:
    """What is trained of replies: Mistral's with its blank, and each with the end of the turn."""
    blank = " " if family == "Mistral-v0.3" else ""
    return [blank + reply + ENDS.get(family, "<|im_end|>") for reply in replies]


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_is_trained_on_the_reply_and_its_end(family: str, family_tokenizer: Tokenizers) -> None:
    tokenizer = family_tokenizer(family)
    rendered = ChatRenderer(tokenizer).conversation(ONE_TURN)
    assert trained_runs(tokenizer, rendered) == spoken(family, ONE_TURN[-1]["content"])
    assert "<think>" not in "".join(trained_runs(tokenizer, rendered))


@pytest.mark.parametrize("family", MANY_TURNS)
def test_each_family_is_trained_on_every_reply(family: str, family_tokenizer: Tokenizers) -> None:
    tokenizer = family_tokenizer(family)
    rendered = ChatRenderer(tokenizer).conversation(THREE_TURNS)
    replies = [message["content"] for message in THREE_TURNS if message["role"] == "assistant"]
    assert trained_runs(tokenizer, rendered) == spoken(family, *replies)


@pytest.mark.parametrize("family", MANY_TURNS)
@pytest.mark.parametrize("turns", [1, 2, 3])
def test_the_mask_is_the_difference_of_prefixes(family: str, turns: int, family_tokenizer: Tokenizers) -> None:
    """An oracle of its own: characters that a reply adds behind its generation prompt, but for the blank that follows."""
    tokenizer = family_tokenizer(family)
    renderer = ChatRenderer(tokenizer)
    messages = THREE_TURNS[: 2 * turns]
    expected = []
    for end in range(2, len(messages) + 1, 2):
        prompt = renderer.text(messages[: end - 1], generation_prompt=True)
        whole = renderer.text(messages[:end], generation_prompt=False)
        assert whole.startswith(prompt)
        expected.append(whole[len(prompt) :].rstrip())
    rendered = renderer.conversation(messages)
    assert trained_runs(tokenizer, rendered) == expected
    text = tokenizer.decode(rendered.input_ids, skip_special_tokens=False)
    assert text == renderer.text(messages, generation_prompt=False)


@pytest.mark.parametrize("family", ["SmolLM2", "Qwen2.5"])
def test_the_system_message_a_template_puts_in_is_read_and_not_trained(family: str, family_tokenizer: Tokenizers) -> None:
    tokenizer = family_tokenizer(family)
    renderer = ChatRenderer(tokenizer)
    own, given = renderer.conversation(TWO_TURNS), renderer.conversation([*chat(system=SYSTEM), *TWO_TURNS])
    assert own == given
    assert tokenizer.decode(own.input_ids).count(SYSTEM) == 1
    assert not any(SYSTEM in run for run in trained_runs(tokenizer, own))


def test_a_template_that_thinks_in_the_last_turn_alone_is_refused_beyond_one_reply(family_tokenizer: Tokenizers) -> None:
    with pytest.raises(ValueError, match="rewrites earlier turns"):
        ChatRenderer(family_tokenizer("Qwen3")).conversation(TWO_TURNS)


def test_roles_that_do_not_alternate_are_a_value_error_where_the_template_minds(family_tokenizer: Tokenizers) -> None:
    messages = [*ONE_TURN, Message(role="assistant", content="And green.")]
    with pytest.raises(ValueError, match="must alternate"):
        ChatRenderer(family_tokenizer("Gemma")).conversation(messages)
