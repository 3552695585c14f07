"""Prompts: the user's text goes in as it is, templates of one's own are checked, and the hash follows the wording."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ual_ray.columns import Message
from ual_ray.elicit.estimators.p_true import PTrue
from ual_ray.elicit.estimators.verbalized import VerbalizedDiversity, VerbalizedError
from ual_ray.elicit.prompts import Prompts, instruction_of, load_prompts, prompt_hash
from ual_ray.errors import UserError

OWN = load_prompts()
OPENING = "Here is an instruction and a response to it.\n\n[Instruction]\nSay hi.\n\n[Response]\nHi.\n\n"
RATINGS = ("verbalized_error", "verbalized_diversity")
RATING = "{instruction} {response} {lowest} {highest}"


def pair(instruction: str, response: str) -> list[Message]:
    return [Message(role="user", content=instruction), Message(role="assistant", content=response)]


def texts_of(prompts: Prompts, messages: list[Message]) -> list[str]:
    ratings = [prompts.rating(question, messages, "0", "9") for question in RATINGS]
    questions = [*ratings, *(prompts.verdict(messages, yes_first=first) for first in (True, False))]
    assert all(len(turns) == 1 and turns[0][0] == "user" for turns in questions)
    return [turns[0][1] for turns in questions]


def written(folder: Path, text: str, name: str = "mine.yaml") -> str:
    """Write a template file; each under a name of its own, as what was read is remembered."""
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


# --- filling ---------------------------------------------------------------------------------------------------------


@given(instruction=st.text(alphabet="{}%\\$ab0:!\n"), response=st.text())
def test_the_users_text_goes_in_as_it_is(instruction: str, response: str) -> None:
    for template, text in zip(
        (OWN.verbalized_error, OWN.verbalized_diversity, OWN.p_true, OWN.p_true),
        texts_of(OWN, pair(instruction, response)),
        strict=True,
    ):
        before, rest = template.split("{instruction}")
        between, after = rest.split("{response}")
        assert text.startswith(before + instruction + between + response + after.split("{")[0])


@pytest.mark.parametrize(
    "text", ["{", "}", "{}", "{0}", "{instruction}", "{response}", "{instruction.__class__}", "f'{x!r:>{w}}'", "{options}"]
)
def test_braces_in_the_users_text_are_text(text: str) -> None:
    for filled in texts_of(OWN, pair(text, f"<{text}>")):
        assert f"[Instruction]\n{text}\n\n[Response]\n<{text}>\n" in filled


@pytest.mark.parametrize(
    ("question", "lowest", "highest"),
    [("verbalized_error", "1 (certainly right)", "5 (certainly wrong)"), ("verbalized_diversity", "1 (none", "5 (countless)")],
)
def test_a_rating_in_full(question: str, lowest: str, highest: str) -> None:
    """The highest number is the most uncertain."""
    ((_, text),) = OWN.rating(question, pair("Say hi.", "Hi."), "1", "5")
    assert text.startswith(OPENING)
    assert text.endswith("Reply with one number and nothing else.")
    assert f"from {lowest}" in text and f"to {highest}" in text


@pytest.mark.parametrize(("yes_first", "options"), [(True, "A. Yes\nB. No"), (False, "A. No\nB. Yes")])
def test_p_true_asks_in_either_order(yes_first: bool, options: str) -> None:
    ((_, text),) = OWN.verdict(pair("Say hi.", "Hi."), yes_first=yes_first)
    assert text.endswith(f"\n{options}\nReply with A or B and nothing else.")


def test_every_prompt_opens_with_the_pair_so_that_a_prefix_cache_helps() -> None:
    assert all(text.startswith(OPENING) for text in texts_of(OWN, pair("Say hi.", "Hi.")))


def test_one_message_before_the_reply_is_the_instruction() -> None:
    assert instruction_of(pair("Say hi.", "Hi.")) == "Say hi."


def test_more_messages_before_the_reply_are_named() -> None:
    messages = [Message(role="system", content="Be brief."), *pair("One?", "1"), *pair("Two?", "2")]
    assert instruction_of(messages) == "System: Be brief.\n\nUser: One?\n\nAssistant: 1\n\nUser: Two?"
    assert all("[Response]\n2\n" in text for text in texts_of(OWN, messages))


# --- templates of one's own ------------------------------------------------------------------------------------------


def test_what_a_file_leaves_out_is_the_projects(tmp_path: Path) -> None:
    mine = load_prompts(written(tmp_path, f'verbalized_error: "{RATING}"\nno_option: "{{wrong}}"\n'))
    assert mine == replace(OWN, verbalized_error=RATING, no_option="{wrong}")
    rating, _, yes_first, no_first = texts_of(mine, pair("q", "a"))
    assert rating == "q a 0 9"
    assert "A. Yes\nB. {wrong}" in yes_first and "A. {wrong}\nB. Yes" in no_first


def test_braces_of_ones_own_are_doubled(tmp_path: Path) -> None:
    mine = load_prompts(written(tmp_path, f"verbalized_error: '{{{{}}}} {RATING}'\n"))
    assert texts_of(mine, pair("q", "a"))[0] == "{} q a 0 9"


def test_the_projects_own_file_is_one_of_that_form(tmp_path: Path) -> None:
    from importlib import resources

    own = resources.files("ual_ray.elicit").joinpath("prompts.yaml").read_text(encoding="utf-8")
    assert load_prompts(written(tmp_path, own)) == OWN


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("verbalized: x\n", r"(?s)has unknown keys.*\['verbalized'\].*verbalized_error"),
        (
            "verbalised: x\n",
            r"(?s)has unknown keys.*\['verbalised'\].*version, verbalized_error, verbalized_diversity, reference, p_true",
        ),
        ("1: x\nverbalised: y\nfalse: z\n", r"has unknown keys\n.*'1', 'False', 'verbalised'"),
        ("version: new\n", r"(?s)version of .* has another type.*'new'.*int"),
        ("yes_option: 1\n", r"(?s)yes_option of .* has another type.*expected: str"),
        ("yes_option: yes\n", r"(?s)yes_option of .* has another type.*got: True"),  # YAML's idea of yes
        ("p_true: [a]\n", "p_true of .* has another type"),
        (f"verbalized_error: '{RATING} {{'\n", "(?s)verbalized_error of .* is not a template.*{{ and }}"),
        (f"verbalized_error: '{RATING} }}'\n", "(?s)verbalized_error of .* is not a template.*{{ and }}"),
        ("verbalized_error: '{instruction} {response} {lowest}'\n", r"(?s)wrong placeholders.*\{highest\}, \{instruction\}"),
        (f"verbalized_error: '{RATING} {{options}}'\n", "(?s)verbalized_error of .* has the wrong placeholders.*{options}"),
        ("p_true: '{instruction} {response}'\n", "(?s)p_true of .* has the wrong placeholders.*{options}"),
        ("p_true: '{instruction} {response} {options} {}'\n", "wrong placeholders"),
        ("p_true: '{instruction} {response} {options} {0}'\n", "wrong placeholders"),
        ("p_true: '{instruction.__class__} {response} {options}'\n", "(?s)wrong placeholders.*__class__"),
        ("verbalized_error: '{instruction} {response} {lowest:d} {highest}'\n", "(?s)wrong placeholders.*{lowest:d}"),
        ("verbalized_error: '{instruction!r} {response} {lowest} {highest}'\n", "(?s)wrong placeholders.*{instruction!r}"),
        ("just text\n", "not a mapping"),
        ("", "not a mapping"),
        ("- verbalized_error\n", "not a mapping"),
        ("verbalized_error: [\n", "cannot be read"),
        ("\tverbalized_error: x\n", "cannot be read"),
    ],
)
def test_a_file_that_will_not_do_is_refused(text: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=says) as error:
        load_prompts(written(tmp_path, text))
    assert "elicit.templates" in str(error.value)
    assert "mine.yaml" in str(error.value)


def test_a_file_that_is_not_there_or_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes("no_option: né".encode("latin-1"))
    for name in ("none.yaml", "latin.yaml", "."):
        with pytest.raises(UserError, match="elicit.templates cannot be read"):
            load_prompts(str(tmp_path / name))


# --- the hash --------------------------------------------------------------------------------------------------------


def test_the_hash_follows_every_word() -> None:
    texts = (*RATINGS, "p_true", "yes_option", "no_option")
    changed = [replace(OWN, **{name: getattr(OWN, name) + " "}) for name in texts]
    hashes = {prompts.hash for prompts in (OWN, *changed, replace(OWN, version=OWN.version + 1))}
    assert len(hashes) == 7
    assert all(len(value) == 16 and int(value, 16) >= 0 for value in hashes)
    assert replace(OWN).hash == OWN.hash


def test_the_hash_of_a_row_follows_prompts_and_chat_template() -> None:
    other = replace(OWN, no_option="Wrong")
    assert len({prompt_hash(prompts, template) for prompts in (OWN, other) for template in ("t", "u")}) == 4


def test_what_is_hashed_is_what_is_sent() -> None:
    messages = pair("Say hi.", "Hi.")
    mine = replace(OWN, verbalized_error=f"Mine: {RATING}", yes_option="Right")
    ratings = [kind(mine, 0, 9).requests(messages)[0] for kind in (VerbalizedError, VerbalizedDiversity)]
    both = PTrue(mine).requests(messages)
    assert [request.prompt for request in (*ratings, *both)] == [  # type: ignore[union-attr]
        *(mine.rating(question, messages, "0", "9") for question in RATINGS),
        mine.verdict(messages, yes_first=True),
        mine.verdict(messages, yes_first=False),
    ]
