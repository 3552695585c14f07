"""The renderer with the chat templates of families that are often fine-tuned.

Longer than other files, as each kind of template is written down here, with what it has to become.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
from chats import ONE_TURN, TWO_TURNS, ZEPHYR, Tokenizers, chat, sentencepiece_tokenizer, trained_runs

from ual_ray.columns import Message, with_extra
from ual_ray.models.chat import IGNORE_INDEX, ChatRenderer

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


@pytest.mark.parametrize("family", FAMILIES)
def test_the_content_alone_is_scored_without_thoughts_that_the_template_adds(family: str, family_tokenizer: Tokenizers) -> None:
    tokenizer = family_tokenizer(family)
    renderer = ChatRenderer(tokenizer)
    (rendered,) = renderer.sequences(ONE_TURN, last_reply_only=True, content_only=True)
    assert [run.strip() for run in trained_runs(tokenizer, rendered)] == [ONE_TURN[-1]["content"].strip()]


def test_roles_that_do_not_alternate_are_a_value_error_where_the_template_minds(family_tokenizer: Tokenizers) -> None:
    messages = [*ONE_TURN, Message(role="assistant", content="And green.")]
    with pytest.raises(ValueError, match="must alternate"):
        ChatRenderer(family_tokenizer("Gemma")).conversation(messages)


# --- the whole text is encoded once ---


@pytest.fixture(scope="module")
def sentencepiece() -> Any:
    """Build a tokenizer as Llama 2's and Mistral's."""
    return sentencepiece_tokenizer()


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


# --- templates that end a text with more than the reply, or begin it with a thought ---

ALWAYS_PROMPTS = CHATML_TURNS + "{{ '<|im_start|>assistant\n' }}"
MARKED_TURNS = (
    "{% for m in messages %}{{ m['role'].upper() + ': ' }}{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] + ' ' }}{% endgeneration %}{% else %}{{ m['content'] + ' ' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
EMPTY_THOUGHTS = ["<think>\n\n</think>\n\n", "<think>\n</think>", "<think></think>", "<|channel>thought\n<channel|>"]
# As gpt-oss, Kimi and others: a thought of its own, never read off the content.
OWN_THOUGHTS = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}"
    "{{ '<mm:think>' + (m.reasoning_content or '') + '</mm:think>' }}{% endif %}{{ m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture
def tokenizer_of(chat_tokenizer: Tokenizers) -> Tokenizers:
    """Get a tokenizer with a chat template, whose end of turn is its end of text."""

    def get(template: str) -> Any:
        tokenizer = copy.deepcopy(chat_tokenizer("chatml"))
        tokenizer.chat_template = template
        tokenizer.eos_token = "<|im_end|>"
        return tokenizer

    return get


@pytest.mark.parametrize("messages", [ONE_TURN, TWO_TURNS], ids=["one_turn", "two_turns"])
def test_the_next_replys_start_is_not_trained_where_a_template_always_writes_it(
    messages: Any, tokenizer_of: Tokenizers
) -> None:
    """As that of Command A, which pays no heed to add_generation_prompt."""
    always, plain = tokenizer_of(ALWAYS_PROMPTS), tokenizer_of(CHATML_TURNS + CHATML_PROMPT)
    found, expected = ChatRenderer(always).sequences(messages), ChatRenderer(plain).sequences(messages)
    assert [trained_runs(always, one) for one in found] == [trained_runs(plain, one) for one in expected]


def test_a_token_that_holds_the_start_or_end_of_a_marked_reply_is_trained_without_the_next_turn(
    tokenizer_of: Tokenizers,
) -> None:
    """Vicuna's style: the blank before a reply, and the one before the next turn, are parts of the tokens of words."""
    tokenizer = tokenizer_of(MARKED_TURNS)
    sequences = ChatRenderer(tokenizer).sequences(TWO_TURNS)
    assert [run.strip() for one in sequences for run in trained_runs(tokenizer, one)] == ["Blue.", "Green is a colour too."]


@pytest.mark.parametrize("thought", EMPTY_THOUGHTS)
def test_an_empty_thought_of_the_prompt_stands_before_a_reply_that_is_finished_without_it(
    thought: str, tokenizer_of: Tokenizers
) -> None:
    """As in the templates of Gemma 4, QwQ and MiniCPM: what is generated follows the prompt, and is trained behind it."""
    close = CHATML_PROMPT.replace("{% endif %}", f"{{% if not enable_thinking %}}{thought}{{% endif %}}{{% endif %}}")
    tokenizer = tokenizer_of(CHATML_TURNS + close)
    renderer = ChatRenderer(tokenizer)
    sequences = renderer.sequences(TWO_TURNS)
    assert [trained_runs(tokenizer, one) for one in sequences] == [["Blue.<|im_end|>"], ["Green is a colour too.<|im_end|>"]]
    for sequence, end in zip(sequences, (1, 3), strict=True):
        prompt = renderer.prompt_ids(TWO_TURNS[:end])
        assert sequence.input_ids[: len(prompt)] == prompt
        assert tokenizer.decode(prompt).endswith(thought)


@pytest.mark.parametrize("arguments", [{}, {"enable_thinking": True}, {"thinking": True}])
@pytest.mark.parametrize("indent", ["", "    "])
def test_a_thought_in_the_content_is_the_templates_thought_where_it_has_one(
    indent: str, arguments: Any, tokenizer_of: Tokenizers
) -> None:
    tokenizer = tokenizer_of(OWN_THOUGHTS)
    renderer = ChatRenderer(tokenizer, arguments)
    content = f"<think>\nIt scatters.\n</think>\n\n{indent}Blue."
    (rendered,) = renderer.sequences(chat("Why?", content))
    assert trained_runs(tokenizer, rendered) == [f"<mm:think>It scatters.</mm:think>{indent}Blue.<|im_end|>"]
    deaf = ChatRenderer(tokenizer_of(OWN_THOUGHTS.replace("(m.reasoning_content or '')", "''")))
    with pytest.raises(ValueError, match="a thought of its own"):
        deaf.sequences(chat("Why?", content))


# As Mistral's templates of 2024: the system message stands before the last turn, if that is the user's.
SYSTEM_LAST = (
    "{% set said = messages | selectattr('role', 'ne', 'system') | list %}{{ bos_token }}{% for m in said %}"
    "{% if m.role == 'user' %}{{ '[INST] ' }}{% if loop.last and messages[0].role == 'system' %}"
    "{{ messages[0].content + '\n\n' }}{% endif %}{{ m.content + '[/INST]' }}"
    "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize("marked", [False, True])
@pytest.mark.parametrize(
    "turns",
    [TWO_TURNS, ONE_TURN, THREE_TURNS, chat("Blue.", "Blue.", "Blue.", "Blue."), chat("a", "[INST] a[/INST]", " b\n", " a b")],
)
def test_a_system_message_before_the_last_turn_is_before_the_turn_of_every_reply(
    turns: Any, marked: bool, tokenizer_of: Tokenizers
) -> None:
    body = "{{ ' ' }}{% generation %}{{ m.content + eos_token }}{% endgeneration %}"
    tokenizer = tokenizer_of(SYSTEM_LAST.replace("{{ ' ' + m.content + eos_token }}", body) if marked else SYSTEM_LAST)
    renderer = ChatRenderer(tokenizer)
    messages = [*chat(system=SYSTEM), *turns]
    found = renderer.sequences(messages)
    assert len(found) == len(turns) // 2
    before = "<s>"
    for sequence, asked, reply in zip(found, turns[::2], turns[1::2], strict=True):
        said = f"{reply['content']}<|im_end|>"
        text = f"{before}[INST] {SYSTEM}\n\n{asked['content']}[/INST] {said}"
        assert tokenizer.decode(sequence.input_ids) == text
        assert [run.lstrip() for run in trained_runs(tokenizer, sequence)] == [said.lstrip()]
        before += f"[INST] {asked['content']}[/INST] {said}"
    assert renderer.sequences(messages, last_reply_only=True) == found[-1:]
    assert len(renderer.sequences(turns)) == 1


def test_a_system_message_that_the_prompt_behind_a_tool_lacks_refuses_the_row(tokenizer_of: Tokenizers) -> None:
    result = Message(role="tool", content="Sunny.")
    with pytest.raises(ValueError, match=r"drops the content of turn 1 \(system\)"):
        ChatRenderer(tokenizer_of(SYSTEM_LAST)).sequences([*chat(system=SYSTEM), *ONE_TURN, result, ONE_TURN[1]])


@pytest.mark.parametrize(
    ("content", "thought", "trained"),
    [
        ("Blue.", None, "\n</think>\n\nBlue."),
        ("Blue, not </think>.", None, "\n</think>\n\nBlue, not </think>."),
        ("Blue.", "It scatters.", "It scatters.\n</think>\n\nBlue."),
        ("<think>\nIt scatters.\n</think>\n\nBlue.", None, "It scatters.\n</think>\n\nBlue."),
    ],
)
def test_a_finished_reply_within_the_thought_that_its_prompt_opens_is_put_behind_it(
    content: str, thought: str | None, trained: str, tokenizer_of: Tokenizers
) -> None:
    """As Nemotron Nano 2's template, which writes the last reply behind the open thought as it is."""
    opens = "{% if m.role == 'assistant' and loop.last %}<think>\n{% endif %}{{ m['content'] }}"
    tokenizer = tokenizer_of(
        CHATML_TURNS.replace("{{ m['content'] }}", opens) + CHATML_PROMPT.replace("assistant\n", "assistant\n<think>\n")
    )
    reply = with_extra(Message(role="assistant", content=content), reasoning_content=thought)
    messages = [*ONE_TURN, Message(role="user", content="Why?"), reply]
    found = ChatRenderer(tokenizer).sequences(messages)
    assert [trained_runs(tokenizer, one) for one in found] == [
        [f"\n</think>\n\n{ONE_TURN[1]['content']}<|im_end|>"],
        [f"{trained}<|im_end|>"],
    ]


@pytest.mark.parametrize("at", [0, 1])
@pytest.mark.parametrize("switch", ["/no_think", "Be brief. /think", "/no_think Be brief."])
def test_a_switch_of_thinking_that_the_template_reads_and_leaves_out_is_no_drop(
    switch: str, at: int, tokenizer_of: Tokenizers
) -> None:
    """As Nemotron's templates do; that of Qwen3 writes it."""
    reads = "{{ m['content'].replace('/no_think', '').replace('/think', '').strip() }}"
    tokenizer = tokenizer_of(CHATML_TURNS.replace("{{ m['content'] }}", reads) + CHATML_PROMPT)
    messages = [*chat(system=SYSTEM), *TWO_TURNS]
    messages[at] = Message(role=messages[at]["role"], content=switch)
    assert len(trained_runs(tokenizer, ChatRenderer(tokenizer).conversation(messages))) == 2


@pytest.mark.parametrize("name", ["enable_thinking", "thinking", "reasoning"])
def test_thinking_is_turned_on_and_off_by_the_argument_that_a_template_reads(name: str, tokenizer_of: Tokenizers) -> None:
    """DeepSeek's and Kimi K3's templates read `thinking`, Cohere's `reasoning`; the last two think by default."""
    ends = f"{{% if {name} is defined and not {name} %}}</think>{{% endif %}}"
    renderer = ChatRenderer(tokenizer_of(CHATML_TURNS + CHATML_PROMPT.replace("assistant\n", f"assistant\n<think>{ends}")))
    for thinking, end in ((False, "<think></think>"), (True, "<think>")):
        assert renderer.text(ONE_TURN[:1], generation_prompt=True, thinking=thinking).endswith(f"assistant\n{end}")
    for given in ("enable_thinking", "thinking", "reasoning"):  # as engine.chat_template_kwargs has it
        asked = ChatRenderer(renderer._tokenizer, {given: True}).text(ONE_TURN[:1], generation_prompt=True)
        assert asked.endswith("assistant\n<think>")


def test_a_template_that_ends_the_last_reply_in_training_alone_is_told_so(tokenizer_of: Tokenizers) -> None:
    """As that of Hunyuan 3."""
    end = "{% if m.role == 'user' or not loop.last or is_training %}<|im_end|>\n{% endif %}"
    tokenizer = tokenizer_of(CHATML_TURNS.replace("<|im_end|>\n", end) + CHATML_PROMPT)
    renderer = ChatRenderer(tokenizer)
    (rendered,) = renderer.sequences(TWO_TURNS)
    assert trained_runs(tokenizer, rendered) == ["Blue.<|im_end|>", "Green is a colour too.<|im_end|>"]
    assert renderer.ends_turn(rendered)
    off = ChatRenderer(tokenizer, {"is_training": False})
    assert [trained_runs(tokenizer, one)[-1] for one in off.sequences(TWO_TURNS)][-1] == "Green is a colour too."


def test_a_prompt_that_the_reply_does_not_continue_is_told_with_what_to_do(tokenizer_of: Tokenizers) -> None:
    """As Apriel's, which starts a thought in words of its own, and leaves it out of finished replies."""
    words = CHATML_PROMPT.replace("assistant\n", "assistant\nHere are my reasoning steps:\n")
    with pytest.raises(ValueError, match=r"does not continue its generation prompt .*chat_template\.jinja"):
        ChatRenderer(tokenizer_of(CHATML_TURNS + words)).sequences(ONE_TURN)
    for empty in ("<think></think>", "<think:opensource></think:opensource>"):
        deaf = CHATML_TURNS + CHATML_PROMPT.replace("assistant\n", f"assistant\n{empty}")
        with pytest.raises(ValueError, match=r"asks for replies without a thought.*data\.thinking=drop"):
            ChatRenderer(tokenizer_of(deaf)).sequences(chat("Why?", "<think>It scatters.</think>Blue."))


@pytest.mark.parametrize("inline", [False, True])
@pytest.mark.parametrize(
    ("written", "end"), [("{{ m.reasoning_content or '' }}\n</think>\n\n", "\n</think>\n\n"), ("</think>", "</think>")]
)
def test_a_thought_that_a_finished_reply_goes_on_with_or_ends_empty_is_trained_once(
    written: str, end: str, inline: bool, tokenizer_of: Tokenizers
) -> None:
    """As QwQ's and Qwen3.5's templates, which write it behind the open mark, and DeepSeek V3.1's, which leaves it out."""
    opens = f"{{% if m.role == 'assistant' %}}<think>{written}{{% endif %}}"
    turns = CHATML_TURNS.replace("{{ m['content'] }}", opens + "{{ m['content'].split('</think>')[-1].lstrip() }}")
    tokenizer = tokenizer_of(turns + CHATML_PROMPT.replace("assistant\n", "assistant\n<think>"))
    reply = Message(role="assistant", content="<think>It scatters.</think>\n\nBlue." if inline else "Blue.")
    reply = reply if inline else with_extra(reply, reasoning_content="It scatters.")
    (rendered,) = ChatRenderer(tokenizer).sequences([Message(role="user", content="Why?"), reply])
    assert trained_runs(tokenizer, rendered) == [f"It scatters.{end}Blue.<|im_end|>"]


# As DeepSeek V3.1, which ends the thought of every finished reply and writes none, and Kimi K2, which writes an empty one.
BARE_ENDS = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}"
    "{{ '</think>' + m.content.split('</think>')[-1] }}{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' + ('<think>' if enable_thinking else '</think>') }}{% endif %}"
)
EMPTY_STARTS = (
    CHATML_TURNS.replace("m['content']", "('EMPTY' if m['role'] == 'assistant' else '') + m['content']") + CHATML_PROMPT
)


@pytest.mark.parametrize("inline", [False, True])
@pytest.mark.parametrize(
    ("template", "trained"),
    [
        (BARE_ENDS, "It scatters.</think>Blue.<|im_end|>"),
        (EMPTY_STARTS.replace("EMPTY", "<think></think>"), "<think>It scatters.</think>Blue.<|im_end|>"),
        (EMPTY_STARTS.replace("EMPTY", "<think>\n\n</think>\n\n"), "<think>\nIt scatters.\n</think>\n\nBlue.<|im_end|>"),
    ],
)
def test_a_thought_that_the_template_drops_from_finished_replies_is_trained_once_in_its_marks(
    template: str, trained: str, inline: bool, tokenizer_of: Tokenizers
) -> None:
    tokenizer = tokenizer_of(template)
    content = "<think>It scatters.</think>Blue." if inline else "Blue."
    reply = Message(role="assistant", content=content)
    if not inline:
        reply = with_extra(reply, reasoning_content="It scatters.")
    renderer = ChatRenderer(tokenizer)
    (rendered,) = renderer.sequences([Message(role="user", content="Why?"), reply])
    assert trained_runs(tokenizer, rendered) == [trained]
    prompt = renderer.prompt_ids([Message(role="user", content="Why?")], thinking=True)
    assert rendered.input_ids[: len(prompt)] == prompt


@pytest.mark.parametrize("question", ["search for blue", "Is it blue? I search and search.", "blue"])
@pytest.mark.parametrize("what", ["tools", "tool_calls"])
def test_a_call_whose_words_other_turns_have_is_told_from_one_that_is_written(
    what: str, question: str, tokenizer_of: Tokenizers
) -> None:
    function = {"name": "search" if "search" in question else "b", "arguments": '{"query":"blue"}'}
    call = {"id": "call_0123456", "type": "function", "function": function}
    tool = {"type": "function", "function": {"name": function["name"], "parameters": {}}}
    asked, reply = Message(role="user", content=question), Message(role="assistant", content="It is blue.")
    if what == "tools":
        asked = with_extra(asked, tools=[tool])
    else:
        reply = with_extra(reply, tool_calls=[call])
    with pytest.raises(ValueError, match=f"drops {what}"):
        ChatRenderer(tokenizer_of(CHATML_TURNS + CHATML_PROMPT)).sequences([asked, reply])
    writes = "{{ tools or '' }}" + CHATML_TURNS.replace("m['content']", "m['content'] ~ (m.tool_calls or '')") + CHATML_PROMPT
    assert ChatRenderer(tokenizer_of(writes)).sequences([asked, reply])
