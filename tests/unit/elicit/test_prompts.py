"""Prompts: the user's text goes in as it is, and the hash follows everything the elicitor reads."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ual_ray.elicit import prompts
from ual_ray.elicit.estimators import REGISTRY
from ual_ray.elicit.requests import Choice
from ual_ray.records import Message

ALL = ("verbalized", "p_true", "nll")
OPENING = "Here is an instruction and a response to it.\n\n[Instruction]\nSay hi.\n\n[Response]\nHi.\n\n"


def pair(instruction: str, response: str) -> list[Message]:
    return [Message(role="user", content=instruction), Message(role="assistant", content=response)]


@pytest.mark.parametrize("template", prompts.TEMPLATES.values(), ids=prompts.TEMPLATES.keys())
@given(instruction=st.text(alphabet="{}%\\$ab0:!\n"), response=st.text())
def test_the_users_text_goes_in_as_it_is(template: str, instruction: str, response: str) -> None:
    before, rest = template.split("{instruction}")
    between, after = rest.split("{response}")
    ((role, text),) = prompts.fill(template, pair(instruction, response))
    assert role == "user"
    assert text == before + instruction + between + response + after


@pytest.mark.parametrize(
    "text", ["{", "}", "{}", "{0}", "{instruction}", "{response}", "{instruction.__class__}", "f'{x!r:>{w}}'"]
)
def test_braces_in_the_users_text_are_text(text: str) -> None:
    ((_, filled),) = prompts.fill(prompts.VERBALIZED, pair(text, f"<{text}>"))
    assert f"[Instruction]\n{text}\n\n[Response]\n<{text}>\n" in filled


def test_verbalized_in_full() -> None:
    ((_, text),) = prompts.fill(prompts.VERBALIZED, pair("Say hi.", "Hi."))
    assert text.startswith(OPENING)
    assert text.endswith("Reply with one digit and nothing else.")
    assert "0 (surely right" in text
    assert "9 (likely wrong" in text


def test_p_true_asks_for_a_yes_or_b_no() -> None:
    ((_, text),) = prompts.fill(prompts.P_TRUE, pair("Say hi.", "Hi."))
    assert text.endswith("\nA. Yes\nB. No\nReply with A or B and nothing else.")


def test_both_prompts_open_with_the_pair_so_that_a_prefix_cache_helps() -> None:
    texts = [prompts.fill(template, pair("Say hi.", "Hi."))[0][1] for template in prompts.TEMPLATES.values()]
    assert all(text.startswith(OPENING) for text in texts)


def test_one_message_before_the_reply_is_the_instruction() -> None:
    assert prompts.instruction_of(pair("Say hi.", "Hi.")) == "Say hi."


def test_more_messages_before_the_reply_are_named() -> None:
    messages = [Message(role="system", content="Be brief."), *pair("One?", "1"), *pair("Two?", "2")]
    assert prompts.instruction_of(messages) == "System: Be brief.\n\nUser: One?\n\nAssistant: 1\n\nUser: Two?"
    ((_, text),) = prompts.fill(prompts.VERBALIZED, messages)
    assert "[Response]\n2\n" in text


# --- the hash --------------------------------------------------------------------------------------------------------


def test_the_hash_does_not_depend_on_the_order_of_estimators() -> None:
    assert prompts.prompt_hash(ALL, "t") == prompts.prompt_hash(ALL[::-1], "t")


def test_the_hash_tells_estimators_and_chat_templates_apart() -> None:
    sets = [ALL, ("verbalized",), ("p_true",), ("nll",), ("verbalized", "nll")]
    hashes = {prompts.prompt_hash(names, template) for names in sets for template in ("t", "u")}
    assert len(hashes) == 2 * len(sets)


def test_the_hash_follows_the_wording_and_the_version(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {name: prompts.prompt_hash((name,), "t") for name in ALL}
    with monkeypatch.context() as patched:
        patched.setitem(prompts.TEMPLATES, "p_true", prompts.P_TRUE + " ")
        after = {name: prompts.prompt_hash((name,), "t") for name in ALL}
    assert {name for name in ALL if before[name] != after[name]} == {"p_true"}
    monkeypatch.setattr(prompts, "PROMPT_VERSION", prompts.PROMPT_VERSION + 1)
    assert all(prompts.prompt_hash((name,), "t") != before[name] for name in ALL)


@pytest.mark.parametrize("name", prompts.TEMPLATES)
def test_what_is_hashed_is_what_is_sent(name: str) -> None:
    (request,) = REGISTRY[name].requests(pair("Say hi.", "Hi."))
    assert isinstance(request, Choice)
    assert request.prompt == prompts.fill(prompts.TEMPLATES[name], pair("Say hi.", "Hi."))
