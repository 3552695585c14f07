"""The renderer: exactly what the assistant says, and its end-of-turn token, is trained."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from chats import ONE_TURN, STYLES, TWO_TURNS, Tokenizers, chat, trained_runs
from hypothesis import given
from hypothesis import strategies as st

from ual_ray.columns import Message, with_extra
from ual_ray.engines.requests import chat_body, turns
from ual_ray.errors import UserError
from ual_ray.models.chat import IGNORE_INDEX, ChatRenderer, load_renderer


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


@pytest.mark.slow
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


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("reply", ["Blue.", "m", "end", "eot", "think", "s", "a b"])
def test_the_content_of_a_reply_without_the_end_of_its_turn(style: str, reply: str, chat_tokenizer: Tokenizers) -> None:
    tokenizer = chat_tokenizer(style)
    renderer = ChatRenderer(tokenizer)
    messages = chat("Name a colour.", reply)
    whole = renderer.conversation(messages, last_reply_only=True)
    content = renderer.conversation(messages, last_reply_only=True, content_only=True)
    assert content.input_ids == whole.input_ids
    assert [run.strip() for run in trained_runs(tokenizer, content)] == [reply]
    kept = [label for label in whole.labels if label != IGNORE_INDEX][: content.target_tokens]
    assert [label for label in content.labels if label != IGNORE_INDEX] == kept
    assert content.target_tokens < whole.target_tokens


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


@pytest.mark.parametrize(
    "given",
    [
        *({"city": "Rome"}, {"at": {"city": "Rome"}}, {"cities": ["Rome"]}),
        *({"days": 31}, {"days": 0.5}, {"note": 'say "é"\n<b>'}, {"x": False}),
    ],
)
@pytest.mark.parametrize("text", [False, True])
def test_arguments_of_a_call_that_a_template_drops_refuse_the_row(text: bool, given: Any, chat_tokenizer: Tokenizers) -> None:
    call = {"type": "function", "function": {"name": "weather", "arguments": json.dumps(given) if text else given}}
    messages = [Message(role="user", content="Weather?"), with_extra(ONE_TURN[1], tool_calls=[call])]
    with pytest.raises(ValueError, match="drops arguments of turn 2"):
        ChatRenderer(with_template(chat_tokenizer("chatml"), TOOLS.replace("ARGUMENTS", "''"))).sequences(messages)
    for whole in ("c.function.arguments", "(c.function.arguments | tojson)", "(c.function.arguments | tojson | tojson)"):
        ChatRenderer(with_template(chat_tokenizer("chatml"), TOOLS.replace("ARGUMENTS", whole))).sequences(messages)


@pytest.mark.parametrize("reply", ["    return x\n    # done\n", "\n\tif x:\n\t\treturn x", "  - one\n  - two"])
@pytest.mark.parametrize("last", [True, False])
def test_an_indent_that_a_template_strips_refuses_the_row(last: bool, reply: str, chat_tokenizer: Tokenizers) -> None:
    turns = chat("Complete it.", reply) if last else chat("Complete it.", reply, "And?", "That is all.")
    assert ChatRenderer(chat_tokenizer("chatml")).sequences(turns)
    template = chat_tokenizer("chatml").chat_template.replace("m['content']", "m['content'] | trim")
    assert "trim" in template
    stripping = ChatRenderer(with_template(chat_tokenizer("chatml"), template))
    with pytest.raises(ValueError, match="drops the indent of turn 2"):
        stripping.sequences(turns)
    for plain in (" Blue.", "\n\nBlue.\nGreen.", "Blue.\n    Green.", "  Blue.", "   \nBlue.\n"):
        assert stripping.sequences(chat("Name a colour.", plain))


def test_tools_and_arguments_are_written_in_the_order_of_the_data(chat_tokenizer: Tokenizers) -> None:
    """As a server writes them, which is asked with tools in the user's order."""
    given = {"z": 1, "a": {"y": [{"d": 1, "c": 2}], "b": 3}}
    function = {
        "name": "weather",
        "description": "Tell it.",
        "parameters": {"type": "object", "properties": {"z": {}, "a": {}}},
    }
    call = {"type": "function", "function": {"name": "weather", "arguments": given}}
    asked = with_extra(Message(role="user", content="Weather?"), tools=[{"type": "function", "function": function}])
    messages = [asked, with_extra(Message(role="assistant", content="Wait."), name="x", tool_calls=[call])]
    template = TOOLS.replace("{{ t.function.name }}", "{{ t | tojson }}").replace(
        "ARGUMENTS", "(c.function.arguments | tojson)"
    )
    text = ChatRenderer(with_template(chat_tokenizer("chatml"), template)).text(messages, generation_prompt=False)
    assert json.dumps({"type": "function", "function": function}) in text
    assert f"<call>weather{json.dumps(given)}</call>" in text
    body = chat_body(turns(messages))
    assert list(body["tools"][0]["function"]) == ["name", "description", "parameters"]
    assert body["messages"][1]["tool_calls"][0]["function"]["arguments"] == json.dumps(given, separators=(",", ":"))


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
    for between in ("", "\n\n"):
        content = f"<think>\n{reasoning}\n</think>{between}Green." if reasoning or between else "Green."
        rendered = ChatRenderer(tokenizer).conversation(chat("Name a colour.", content))
        assert trained_runs(tokenizer, rendered) == [f"{reasoning}\n</think>\n\nGreen.<|im_end|>"]


def test_a_turn_of_weight_0_is_read_and_not_trained(chat_tokenizer: Tokenizers) -> None:
    tokenizer = chat_tokenizer("chatml")
    renderer = ChatRenderer(tokenizer)
    rendered = renderer.conversation([TWO_TURNS[0], with_extra(TWO_TURNS[1], weight=0), *TWO_TURNS[2:]])
    assert rendered.input_ids == renderer.conversation(TWO_TURNS).input_ids
    assert trained_runs(tokenizer, rendered) == ["Green is a colour too.<|im_end|>"]


@pytest.mark.parametrize("content", ["The tag </think> closes <think>.", "No opening mark.</think>Green."])
def test_text_before_a_closing_mark_is_not_dropped_unless_it_is_a_thought(content: str, chat_tokenizer: Tokenizers) -> None:
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content.split('</think>')[-1] + '<|im_end|>' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    with pytest.raises(ValueError, match=r"drops the content of turn 2 \(assistant\)"):
        ChatRenderer(with_template(chat_tokenizer("chatml"), template)).sequences(chat("Name a colour.", content))


@pytest.mark.parametrize("style", STYLES)
def test_a_thought_that_a_user_quotes_is_no_drop(style: str, chat_tokenizer: Tokenizers) -> None:
    """As the prompts of elicitors quote the responses that they are asked about."""
    asked = "Rate this: <think>It scatters.</think>\n\nBlue light."
    assert asked in ChatRenderer(chat_tokenizer(style)).text(chat(asked, "7")[:1], generation_prompt=True)


def test_a_turn_that_is_dropped_is_told_from_another_of_its_words(chat_tokenizer: Tokenizers) -> None:
    template = "{% for m in messages if m.role != 'system' %}{{ m.role + ': ' + m.content + '<|im_end|>' }}{% endfor %}"
    renderer = ChatRenderer(with_template(chat_tokenizer("chatml"), template))
    turns = [Message(role="system", content="Be brief."), *chat("Be brief.", "Yes.")]
    with pytest.raises(ValueError, match=r"drops the content of turn 2 \(user\)"):
        renderer.text(turns, generation_prompt=False)
    assert renderer.text(turns[1:], generation_prompt=False).count("Be brief.") == 1


def test_a_greeting_before_everything_is_read_and_not_trained(chat_tokenizer: Tokenizers) -> None:
    tokenizer = chat_tokenizer("chatml")
    rendered = ChatRenderer(tokenizer).conversation([Message(role="assistant", content="Hello!"), *TWO_TURNS])
    assert trained_runs(tokenizer, rendered) == ["Blue.<|im_end|>", "Green is a colour too.<|im_end|>"]
    assert "Hello!" in tokenizer.decode(rendered.input_ids)


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


@pytest.mark.parametrize("name", ["generation_config.json", "config.json"])
@pytest.mark.parametrize(("stops", "ends"), [("</s>", False), ("</s> <|im_end|>", True), ("", True)])
def test_an_end_of_turn_at_which_generation_goes_on_is_told(
    stops: str, ends: bool, name: str, chat_tokenizer: Tokenizers, tmp_path: Path
) -> None:
    """As of Qwen2.5's base models, whose template ends turns with <|im_end|>, while they stop at <|endoftext|> alone."""
    tokenizer = chat_tokenizer("chatml")
    tokenizer.save_pretrained(tmp_path)
    ids = tokenizer.convert_tokens_to_ids(stops.split())
    (tmp_path / name).write_text(json.dumps({"eos_token_id": ids[0] if len(ids) == 1 else ids or None}))
    renderer = load_renderer(str(tmp_path))
    assert tokenizer.eos_token == "</s>"
    assert renderer.ends_turn(renderer.conversation(TWO_TURNS)) == ends


def test_a_turn_that_is_dropped_is_told_from_a_longer_one_that_holds_its_words(chat_tokenizer: Tokenizers) -> None:
    template = "{% for m in messages if m.role != 'system' %}{{ m.role + ': ' + m.content + '<|im_end|>' }}{% endfor %}"
    renderer = ChatRenderer(with_template(chat_tokenizer("chatml"), template))
    with pytest.raises(ValueError, match=r"drops the content of turn 1 \(system\)"):
        renderer.text([Message(role="system", content="Be brief."), *chat("Be brief. Why?", "Yes.")], generation_prompt=False)


@pytest.mark.parametrize("result", ['{"degrees": 20}', 'say "é"\nand more', "Sunny."])
def test_a_result_that_the_template_writes_as_json_is_no_drop(result: str, chat_tokenizer: Tokenizers) -> None:
    """As the templates of Llama 3.1 to 3.3 do with every result of a tool."""
    content = "{% if m.role == 'tool' %}{{ m.content | tojson }}{% else %}{{ m.content }}{% endif %}"
    template = chat_tokenizer("chatml").chat_template.replace("{{ m['content'] }}", content)
    tokenizer = with_template(chat_tokenizer("chatml"), template)
    messages = [*TWO_TURNS[:2], Message(role="tool", content=result), TWO_TURNS[3]]
    assert trained_runs(tokenizer, ChatRenderer(tokenizer).conversation(messages))[-1] == "Green is a colour too.<|im_end|>"
