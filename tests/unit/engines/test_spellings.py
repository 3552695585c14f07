"""The tokens that spell a choice, in vocabularies of SentencePiece and byte-level BPE."""

from __future__ import annotations

import math
from typing import Any

import pytest

from ual_ray.engines.reading import answer_place
from ual_ray.engines.spellings import MOST_TOKENS, Spellings, combined, visible, visible_entry


class Renderer:
    def __init__(self, vocabulary: list[str | None], encode: dict[str, list[int]]) -> None:
        self.vocabulary, self._encode = vocabulary, encode

    def encode(self, text: str) -> list[int]:
        return self._encode[text]


def spellings(vocabulary: list[str | None], encode: dict[str, list[int]]) -> Spellings:
    renderer: Any = Renderer(vocabulary, encode)
    return Spellings(renderer)


@pytest.mark.parametrize("token", ["7", " 7", "\n7", "▁7", "▁▁7", "Ġ7", "Ċ7", "<0x37>", "7\n", "ĠĠ7", "７"])
def test_a_digit_is_seen_however_it_is_written(token: str) -> None:
    assert visible(token) == "7" and visible_entry({"token": token}) == "7"


def test_bytes_count_before_the_token() -> None:
    assert visible_entry({"token": "token_id:3", "bytes": [32, 55]}) == "7"
    assert visible_entry({"token": "7", "bytes": [255]}) == "7"
    assert visible_entry({"token": "7", "bytes": None}) == "7"


def test_all_tokens_of_a_choice_are_its_spellings() -> None:
    found = spellings(["7", "Ġ7", "Ċ7", "77", "8", None], {"7": [0], "8": [4]})
    assert found.own("7") == [(0,)]
    tree, owners = found.tree(["7", "8"])
    assert (tree.choices, owners) == (((0,), (1,), (2,), (4,)), [0, 0, 0, 1])


def test_a_blank_of_sentencepiece_is_one_spelling_and_its_lack_another() -> None:
    found = spellings(["▁", "1", "0", "▁1", "▁0"], {"1": [0, 1], "10": [0, 1, 2]})
    assert found.own("10") == [(0, 1, 2), (1, 2)]
    tree, owners = found.tree(["1", "10"])
    assert (tree.choices, owners) == (((0, 1), (1,), (0, 1, 2), (1, 2)), [0, 0, 1, 1])


def test_more_tokens_than_vllm_returns_leave_the_tokenizers_own_spelling() -> None:
    numbers = [str(number) for number in range(101)]
    found = spellings([*numbers, *(f"▁{number}" for number in numbers)], {number: [at] for at, number in enumerate(numbers)})
    tree, owners = found.tree(numbers)
    assert len(tree.questions[()]) == 101 <= MOST_TOKENS and owners == list(range(101))


def test_spellings_are_added_up() -> None:
    values = [math.log(0.2), math.log(0.3), -math.inf, -math.inf, math.log(0.5)]
    assert combined(values, [0, 0, 1, 1, 2]) == pytest.approx((math.log(0.5), -math.inf, math.log(0.5)))


@pytest.mark.parametrize(("texts", "value", "place"), [
    (["Rating", ":", "7", "/", "9"], "7", 2), (["9", "/", "9"], "9", 0), (["8", "5"], "85", 0), (["85"], "85", 0),
    (["8", "5", ".", "5"], "5", None), (["</think>", "", "A"], "A", 2), (["A", "nswer", ": ", "A"], "A", 3),
    (["1", "\n\n", "It has", " 1", " flaw"], "1", 0), (["I see", " 1", " flaw.", "\n", "Rating:", " 1"], "1", 5),
    (["I'd say", " 7", "</think>", "Rating", ":", " 7", ". It has", " 7", " flaws"], "7", 5),
    (["Answer:", " A", "\n\n", "A", " response"], "A", 1), (["analysisI say ", "7", "assistantfinal", "7"], "7", 3),
    (['{"', "rating", '":', " ", "7", ', "of": ', "7", "}"], "7", 4), (["70"], "7", None), (["seven"], "7", None),
    (["1", ".", " It is vague", ".\n", "Rating: ", "1"], "1", 5), (["1", " flaw. ", "Rating: ", "1"], "1", 3),
    (['{"', 'reason": "', "7", ' flaws", "', 'rating": ', "7", "}"], "7", 5), (["```\n", "7", "\n```"], "7", 1),
    (["```json\n", '{"rating": "', "7", '"}', "\n```"], "7", 2), (["\\boxed{", "7", "}"], "7", 1),
    (["Rating (", "0", "-", "9", "): ", "9", "/", "9"], "9", 5), (["7", " flaws. "] * 3 + ["\nRating: ", "7"], "7", 7),
])  # fmt: skip
def test_where_an_answer_stands(texts: list[str], value: str, place: int | None) -> None:
    choices = ("A", "B") if value == "A" else tuple(map(str, range(101 if value == "85" else 10)))
    assert answer_place(texts, value, choices) == place
