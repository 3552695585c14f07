"""What verbalized estimators show besides the pair: a reference answer of the row, and rated examples of the user's file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from ual_ray.columns import content_id, reference_of, with_extra
from ual_ray.config.load import load
from ual_ray.data.formats import BadRow, convert
from ual_ray.data.peek import peek
from ual_ray.elicit.estimators import make_estimators
from ual_ray.elicit.forecast import forecast
from ual_ray.elicit.prompts import load_prompts
from ual_ray.elicit.self_check import make_self_check
from ual_ray.elicit.step import measuring
from ual_ray.engines.requests import Choice, turns
from ual_ray.errors import UserError
from ual_ray.preflight import check_elicitor

PAIR = [{"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "5"}]
WITH = [with_extra(PAIR[0], reference="4"), PAIR[1]]  # type: ignore[arg-type]
EXAMPLES = [
    {"instruction": "What is 1 + 1?", "response": "2", "verbalized_error": 0, "verbalized_diversity": 0},
    {"instruction": "Name {a} colour.", "response": "Seven.", "reference": "Blue.", "verbalized_error": 9},
]
ROW = {"instruction": "q", "output": "a"}


def written(folder: Path, content: Any, name: str = "examples.yaml") -> str:
    (folder / name).write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return str(folder / name)


def config_of(folder: Path, content: Any, *overrides: str) -> Any:
    return load(None, [f"elicit.examples={written(folder, content)}", *overrides])


# --- a reference answer ----------------------------------------------------------------------------------------------


def test_the_reference_stands_behind_the_response() -> None:
    prompts = load_prompts()
    ((_, text),) = prompts.rating("verbalized_error", WITH, "0", "9")
    assert "[Response]\n5\n\n[Reference answer, which is right]\n4\n\nHow likely is it" in text
    ((_, without),) = prompts.rating("verbalized_error", PAIR, "0", "9")  # type: ignore[arg-type]
    assert "Reference" not in without
    assert prompts.verdict(WITH, yes_first=True) == prompts.verdict(PAIR, yes_first=True)  # type: ignore[arg-type]


def test_the_reference_is_no_part_of_the_conversation() -> None:
    assert turns(WITH) == turns(PAIR), "neither samples nor likelihoods see it"  # type: ignore[arg-type]
    both = [with_extra(WITH[0], tools=[{"name": "f"}]), PAIR[1]]
    assert turns(both) == turns([with_extra(PAIR[0], tools=[{"name": "f"}]), PAIR[1]])  # type: ignore[arg-type, list-item]
    assert content_id(WITH) != content_id(PAIR), "a row with another reference is another row"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "found"), [("4", "4"), (" x\n", " x\n"), (4, "4"), (0.5, "0.5"), (None, None), ("", None), ("  ", None)]
)
def test_a_column_is_read_as_it_is(value: Any, found: str | None) -> None:
    ((_, messages),) = convert([ROW | {"gold": value}], "alpaca", {}, reference="gold")
    assert not isinstance(messages, BadRow)
    assert reference_of(messages) == found
    assert [message["content"] for message in messages] == ["q", "a"]


@pytest.mark.parametrize("value", [True, ["4"], {"a": 1}])
def test_what_is_no_text_makes_a_bad_row(value: Any) -> None:
    ((_, reason),) = convert([ROW | {"gold": value}], "alpaca", {}, reference="gold")
    assert isinstance(reason, BadRow) and str(reason).startswith("gold is not text")


def test_the_column_may_be_one_that_is_renamed() -> None:
    ((_, messages),) = convert([{"q": "q", "output": "a"}], "alpaca", {"instruction": "q"}, reference="q")
    assert not isinstance(messages, BadRow) and reference_of(messages) == "q"


def test_a_missing_column_is_refused_and_a_used_one_is_not_listed_as_unused(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROW | {"gold": "g"}) + "\n")
    data = load(None, [f"data.path={tmp_path}/rows.jsonl", "data.reference=gold"]).data
    assert peek(data).unused == ()
    with pytest.raises(UserError, match=r"data\.reference: .* has no column 'silver'"):
        peek(data.model_copy(update={"reference": "silver"}))


def test_a_swapped_row_of_the_self_check_keeps_its_own_reference() -> None:
    rows = [
        {"id": f"{at:016x}", "source": "s", "split": "train", "given_id": None, "messages": [
            with_extra({"role": "user", "content": f"q{at}"}, reference=f"r{at}"), {"role": "assistant", "content": f"a{at}"}
        ]} for at in range(40)
    ]  # fmt: skip
    for row in make_self_check(rows, 40, 0).rows:
        assert reference_of(row["messages"]) == row["messages"][0]["content"].replace("q", "r")


# --- examples --------------------------------------------------------------------------------------------------------


def test_examples_are_earlier_turns_with_their_rating(tmp_path: Path) -> None:
    prompts = load_prompts(None, written(tmp_path, EXAMPLES))
    asked = prompts.rating("verbalized_error", WITH, "0", "9")
    assert [role for role, _ in asked] == ["user", "assistant", "user", "assistant", "user"]
    assert (asked[1][1], asked[3][1], asked[-1:]) == ("0", "9", load_prompts().rating("verbalized_error", WITH, "0", "9"))
    assert "Name {a} colour." in asked[2][1] and "right]\nBlue.\n" in asked[2][1]
    assert len(prompts.rating("verbalized_diversity", WITH, "0", "9")) == 3, "an example without this rating is left out"
    assert prompts.verdict(WITH, yes_first=True) == load_prompts().verdict(WITH, yes_first=True)


def test_examples_are_in_the_key_and_in_the_forecast(tmp_path: Path) -> None:
    config = config_of(tmp_path, EXAMPLES)
    check_elicitor(config)
    plain = load(None, [])
    assert measuring(config)["prompts"] != measuring(plain)["prompts"]
    seen = peek(config.data)
    assert forecast(config, seen, 10).prompt_tokens > forecast(plain, seen, 10).prompt_tokens + 10 * 2 * 60
    (choice,) = make_estimators(config.elicit)["verbalized_error"].requests(PAIR)  # type: ignore[arg-type]
    assert isinstance(choice, Choice) and len(choice.prompt) == 5


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("a: [", "elicit.examples cannot be read"),
        ("", "is not a list of examples"),
        ([], "is not a list of examples"),
        ({"instruction": "q"}, "is not a list of examples"),
        (["q"], "example 1 is not a mapping"),
        ([EXAMPLES[0], {"instruction": "q", "response": "a", "rating": 3}], r"(?s)example 2 has unknown keys.*'rating'"),
        ([{"response": "a", "verbalized_error": 3}], "example 1: instruction is not a text"),
        ([{"instruction": "q", "response": " ", "verbalized_error": 3}], "example 1: response is not a text"),
        ([EXAMPLES[0] | {"reference": 3}], "example 1: reference is not a text"),
        ([{"instruction": "q", "response": "a"}], "example 1 has no rating"),
        ([EXAMPLES[0] | {"verbalized_error": 2.5}], "verbalized_error is not a whole number"),
        ([EXAMPLES[0] | {"verbalized_error": True}], "verbalized_error is not a whole number"),
        ([EXAMPLES[0] | {"verbalized_error": 10}], r"(?s)verbalized_error is not on elicit.scale.*10.*0-9"),
        ([{"instruction": "q", "response": "a", "verbalized_diversity": 1}], "no example has a rating for verbalized_error"),
    ],
)
def test_a_malformed_file_is_refused_before_anything_runs(content: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=says):
        check_elicitor(config_of(tmp_path, content))


def test_a_missing_file_is_refused() -> None:
    with pytest.raises(UserError, match=r"(?s)elicit.examples cannot be read.*nowhere\.yaml"):
        check_elicitor(load(None, ["elicit.examples=nowhere.yaml"]))


def test_the_scale_decides_which_ratings_are_legal(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"(?s)not on elicit.scale.*0.*1-5"):
        check_elicitor(config_of(tmp_path, EXAMPLES, "elicit.scale=1-5"))


@pytest.mark.parametrize("key", ["data.reference=answer", "elicit.examples=x.yaml"])
def test_what_no_estimator_shows_is_refused(key: str) -> None:
    with pytest.raises(UserError, match=f"{key.split('=', maxsplit=1)[0]} is read by verbalized estimators alone"):
        check_elicitor(load(None, [key, "elicit.estimators=[nll]", "elicit.uncertainty=nll"]))
