"""The renderer: exactly what the assistant says, and its end-of-turn token, is trained."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ual_ray.columns import Message, with_extra
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
    with pytest.raises(ValueError, match=r"drops the content of turn 2 \(assistant\)"):
        renderer.sequences(TWO_TURNS)


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
    tokenizer = copy.deepcopy(chat_tokenizer("chatml"))
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}{% if enable_thinking %}<think>{% endif %}"
    renderer = ChatRenderer(tokenizer)
    assert "<think>" not in renderer.text(ONE_TURN, generation_prompt=True)
    assert renderer.text(ONE_TURN, generation_prompt=True, thinking=True).endswith("<think>")


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


def test_a_template_that_thinks_in_the_last_turn_alone_is_a_sequence_per_reply(family_tokenizer: Tokenizers) -> None:
    tokenizer = family_tokenizer("Qwen3")
    renderer = ChatRenderer(tokenizer)
    first, second = renderer.sequences(TWO_TURNS)
    assert [trained_runs(tokenizer, one) for one in (first, second)] == [
        ["Blue.<|im_end|>"],
        ["Green is a colour too.<|im_end|>"],
    ]
    for sequence, end in ((first, 1), (second, 3)):
        prompt = renderer.prompt_ids(TWO_TURNS[:end])
        assert sequence.input_ids[: len(prompt)] == prompt
    assert renderer.conversation(TWO_TURNS, last_reply_only=True) == second
    with pytest.raises(ValueError, match="2 sequences"):
        renderer.conversation(TWO_TURNS)


def test_roles_that_do_not_alternate_are_a_value_error_where_the_template_minds(family_tokenizer: Tokenizers) -> None:
    messages = [*ONE_TURN, Message(role="assistant", content="And green.")]
    with pytest.raises(ValueError, match="must alternate"):
        ChatRenderer(family_tokenizer("Gemma")).conversation(messages)


# --- the whole text is encoded once ---


@pytest.fixture(scope="module")
def sentencepiece() -> Any:
    """Build a tokenizer as Llama 2's and Mistral's: it puts a blank before every text that it encodes."""
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    texts = [message["content"] for message in [*ONE_TURN, *TWO_TURNS]] * 5 + [
        f" {n} Blue A B <|user|> <|assistant|>" for n in range(10)
    ]
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=500, special_tokens=special, show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


@pytest.mark.parametrize("template", [ZEPHYR, FAMILIES["Llama-3"], FAMILIES["Mistral-v0.3"]])
@pytest.mark.parametrize("messages", [ONE_TURN, TWO_TURNS], ids=["one_turn", "two_turns"])
def test_tokens_are_those_of_the_whole_text(template: str, messages: Any, sentencepiece: Any) -> None:
    tokenizer = copy.deepcopy(sentencepiece)
    tokenizer.chat_template = template
    renderer = ChatRenderer(tokenizer)
    rendered = renderer.conversation(messages)
    whole = renderer.text(messages, generation_prompt=False)
    assert rendered.input_ids == tokenizer(whole, add_special_tokens=False)["input_ids"]
    for at in range(1, len(messages), 2):
        prompt = renderer.prompt_ids(messages[:at])
        assert rendered.input_ids[: len(prompt)] == prompt
        assert rendered.labels[len(prompt)] == rendered.input_ids[len(prompt)] != IGNORE_INDEX


def test_a_choice_is_encoded_as_at_the_start_of_a_reply(sentencepiece: Any) -> None:
    tokenizer = copy.deepcopy(sentencepiece)
    tokenizer.chat_template = ZEPHYR
    assert tokenizer.convert_ids_to_tokens(ChatRenderer(tokenizer).encode("A")) == ["A"]
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("A", add_special_tokens=False))[0].startswith("▁")


def test_a_reply_whose_start_joins_the_end_of_its_prompt_follows_the_prompts_tokens(chat_tokenizer: Tokenizers) -> None:
    tokenizer = chat_tokenizer("chatml")
    renderer = ChatRenderer(tokenizer)
    messages = chat("Complete it.", "\n\n    return x\n")
    prompt = renderer.prompt_ids(messages[:1])
    rendered = renderer.conversation(messages)
    assert rendered.input_ids[: len(prompt)] == prompt
    assert trained_runs(tokenizer, rendered) == ["\n\n    return x\n<|im_end|>"]


# --- what a template is handed, and what it drops ---

CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Rome"}'}}
TOOL = {"type": "function", "function": {"name": "weather"}}
TOOLS = (
    "{% if tools %}{% for t in tools %}{{ t.function.name }}{% endfor %}{% endif %}{% for m in messages %}"
    "{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.reasoning_content %}{{ '<think>' + m.reasoning_content + '</think>' }}{% endif %}"
    "{{ m.content }}{% for c in m.tool_calls or [] %}{{ '<call>' + c.function.name + ARGUMENTS + '</call>' }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def with_template(tokenizer: Any, template: str) -> Any:
    own = copy.deepcopy(tokenizer)
    own.chat_template = template
    return own


@pytest.mark.parametrize("arguments", ["c.function.arguments", "c.function.arguments.city", "(c.function.arguments | tojson)"])
def test_tool_calls_are_handed_over_in_the_form_the_template_takes(arguments: str, chat_tokenizer: Tokenizers) -> None:
    tokenizer = with_template(chat_tokenizer("chatml"), TOOLS.replace("ARGUMENTS", arguments))
    asked = with_extra(Message(role="user", content="Weather?"), tools=[TOOL])
    (run,) = trained_runs(tokenizer, ChatRenderer(tokenizer).conversation([asked, with_extra(ONE_TURN[1], tool_calls=[CALL])]))
    assert run.startswith(ONE_TURN[1]["content"] + "<call>weather") and "Rome" in run and run.endswith("<|im_end|>")


@pytest.mark.parametrize(
    ("extra", "said"),
    [({"tool_calls": [CALL]}, "tool_calls of turn 2"), ({"reasoning_content": "It scatters."}, "reasoning_content")],
)
def test_what_a_template_drops_refuses_the_row(extra: Any, said: str, chat_tokenizer: Tokenizers) -> None:
    renderer = ChatRenderer(chat_tokenizer("chatml"))
    with pytest.raises(ValueError, match=f"drops.*{said}"):
        renderer.sequences([ONE_TURN[0], with_extra(ONE_TURN[1], **extra)])
    with pytest.raises(ValueError, match="drops tools"):
        renderer.sequences([with_extra(ONE_TURN[0], tools=[TOOL]), ONE_TURN[1]])


def test_reasoning_is_trained_where_the_template_has_it(chat_tokenizer: Tokenizers) -> None:
    tokenizer = with_template(chat_tokenizer("chatml"), TOOLS.replace("ARGUMENTS", "''"))
    rendered = ChatRenderer(tokenizer).conversation([ONE_TURN[0], with_extra(ONE_TURN[1], reasoning_content="It scatters.")])
    assert trained_runs(tokenizer, rendered) == ["<think>It scatters.</think>" + ONE_TURN[1]["content"] + "<|im_end|>"]


@pytest.mark.parametrize("reasoning", ["", "Leaves."])
def test_a_prompt_that_opens_a_thought_is_continued_to_its_end(reasoning: str, chat_tokenizer: Tokenizers) -> None:
    """R1's template opens a thought in its prompt, and leaves the thought out of a finished turn."""
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
        "{{ m.content.split('</think>')[-1] + '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
    )
    tokenizer = with_template(chat_tokenizer("chatml"), template)
    content = f"<think>{reasoning}</think>Green." if reasoning else "Green."
    rendered = ChatRenderer(tokenizer).conversation(chat("Name a colour.", content))
    assert trained_runs(tokenizer, rendered) == [f"{reasoning}\n</think>\n\nGreen.<|im_end|>"]


def test_a_turn_of_weight_0_is_read_and_not_trained(chat_tokenizer: Tokenizers) -> None:
    tokenizer = chat_tokenizer("chatml")
    renderer = ChatRenderer(tokenizer)
    rendered = renderer.conversation([TWO_TURNS[0], with_extra(TWO_TURNS[1], weight=0), *TWO_TURNS[2:]])
    assert rendered.input_ids == renderer.conversation(TWO_TURNS).input_ids
    assert trained_runs(tokenizer, rendered) == ["Green is a colour too.<|im_end|>"]


@pytest.mark.parametrize("last", [False, True])
def test_generation_marks_decide_what_is_trained(last: bool, chat_tokenizer: Tokenizers) -> None:
    marked = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    tokenizer = with_template(chat_tokenizer("chatml"), marked)
    renderer = ChatRenderer(tokenizer)
    rendered = renderer.conversation(TWO_TURNS, last_reply_only=last)
    assert trained_runs(tokenizer, rendered) == ["Blue.", "Green is a colour too."][last:]
    assert not renderer.ends_turn(rendered)
    assert ChatRenderer(chat_tokenizer("chatml")).ends_turn(ChatRenderer(chat_tokenizer("chatml")).conversation(TWO_TURNS))


def test_a_template_without_an_end_of_turn_is_told(chat_tokenizer: Tokenizers) -> None:
    template = "{% for m in messages %}{{ '### ' + m.role + ':\n' + m.content + '\n\n' }}{% endfor %}"
    tokenizer = with_template(
        chat_tokenizer("chatml"), template + "{% if add_generation_prompt %}{{ '### assistant:\n' }}{% endif %}"
    )
    renderer = ChatRenderer(tokenizer)
    assert not renderer.ends_turn(renderer.conversation(TWO_TURNS))
