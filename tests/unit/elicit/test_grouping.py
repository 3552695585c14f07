"""When two answers are the same: marked answers, words, and how groups are formed."""

from __future__ import annotations

import unicodedata
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ual_ray.columns import Message
from ual_ray.elicit.estimators.samples import grouping_for
from ual_ray.elicit.grouping import AnswerGrouping, Grouping, LexicalGrouping, group, word_overlap

words = st.builds(Counter, st.lists(st.sampled_from(["a", "b", "c", "d"]), max_size=8))


def agree(grouping: Grouping, first: str, second: str) -> bool:
    return grouping.same(*grouping.keys([first, second]))


# --- answers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("#### 72", "The answer is: 72.0", True),
        ("#### 72", "that makes 72", True),  # the last number where none is marked
        ("#### 72", "72 of 80", False),
        ("#### 72", "no idea", False),
        ("no idea", "no idea", False),
        ("", "", False),
        (r"\boxed{}", r"\boxed{}", False),
        ("The answer is: Blue.", "the answer is: blue", True),
    ],
)
def test_texts_agree_in_their_answers(first: str, second: str, expected: bool) -> None:
    assert agree(AnswerGrouping(), first, second) is agree(AnswerGrouping(), second, first) is expected


# --- words -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("a b c d", "a b c d", 1.0),
        ("a b c d", "d c b a", 1.0),
        ("a b", "a c", 0.5),
        ("a a b", "a b b", 2 / 3),  # one a and one b in common: 2 * 2 / 6
        ("a", "a b c", 0.5),
        ("a", "b", 0.0),
        ("a", "", 0.0),
        ("", "", 1.0),
    ],
)
def test_word_overlap_by_hand(first: str, second: str, expected: float) -> None:
    assert word_overlap(*LexicalGrouping(1.0).keys([first, second])) == pytest.approx(expected)


@given(first=words, second=words)
def test_word_overlap_is_symmetric_and_in_range(first: Counter[str], second: Counter[str]) -> None:
    overlap = word_overlap(first, second)
    assert 0 <= overlap <= 1
    assert overlap == word_overlap(second, first)
    assert word_overlap(first, first) == 1
    assert (overlap == 1) == (first == second)


def test_case_and_stops_do_not_count() -> None:
    assert agree(LexicalGrouping(1.0), "Hello, World!", "hello world")
    assert not agree(LexicalGrouping(1.0), "hello world", "hello worlds")


def test_similar_enough_is_the_same() -> None:
    assert agree(LexicalGrouping(0.5), "a b", "a c")
    assert not agree(LexicalGrouping(0.51), "a b", "a c")


# --- groups ----------------------------------------------------------------------------------------------------------


def test_each_joins_the_first_group_whose_first_member_is_the_same() -> None:
    def near(first: int, second: int) -> bool:
        return abs(first - second) <= 1

    # 2 is like 1, but not like 0, who founded the group; 1 is like 0 and like 2, and 0 was there first.
    assert group([0, 1, 2, 1, 3, 9], near) == [0, 0, 1, 0, 1, 2]
    assert group([], near) == []


def test_answers_without_a_number_are_groups_of_their_own() -> None:
    grouping = AnswerGrouping()
    assert group(grouping.keys(["no idea", "#### 1", "no idea", "1"]), grouping.same) == [0, 1, 2, 1]


@given(keys=st.lists(st.integers(0, 4)))
def test_groups_of_equal_keys_are_the_keys(keys: list[int]) -> None:
    numbers = group(keys, lambda first, second: first == second)
    order = [*dict.fromkeys(keys)]
    assert numbers == [order.index(key) for key in keys]


# --- automatic -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("2 + 2 = 4\n#### 4", AnswerGrouping()),
        (r"\boxed{4}", AnswerGrouping()),
        ("The answer is: 4", AnswerGrouping()),
        ("There are 4 seasons.", LexicalGrouping(0.3)),
        (r"\boxed{}", LexicalGrouping(0.3)),
    ],
)
def test_a_marked_answer_in_the_response_chooses_the_grouping(response: str, expected: Grouping) -> None:
    messages = [Message(role="user", content="#### 1"), Message(role="assistant", content=response)]
    assert grouping_for(messages, 0.3) == expected


# --- scripts without spaces ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("我喜欢苹果。", ["我", "喜", "欢", "苹", "果"]),
        ("東京タワーです", ["東", "京", "タ", "ワ", "ー", "で", "す"]),
        ("使用GPT-4模型2次", ["使", "用", "gpt", "4", "模", "型", "2", "次"]),
        ("ﾃｽﾄ Ｔｅｓｔ", ["テ", "ス", "ト", "test"]),
        ("저는 사과를 좋아해요", ["저는", "사과를", "좋아해요"]),
        ("กา", ["ก", "า"]),
        ("naïve Straße x_1", ["naïve", "strasse", "x_1"]),
        ("नमस्ते दुनिया।", ["नमस्ते", "दुनिया"]),
        ("வணக்கம் مَرْحَبًا", ["வணக்கம்", "مَرْحَبًا"]),
        ("-5, 1.5 to 5th (2-3)", ["-5", "1.5", "to", "5th", "2", "3"]),
        ("≠ 😀", ["≠", "😀"]),
    ],
)
def test_scripts_without_spaces_are_compared_by_characters(text: str, expected: list[str]) -> None:
    (words,) = LexicalGrouping(0.7).keys([text])
    assert words == Counter(expected)


@pytest.mark.parametrize(
    ("first", "second", "equal"),
    [
        ("北京是中国的首都。", "中国的首都是北京", True),
        ("北京是中国的首都。", "我不知道这个问题的答案", False),
        ("答えは東京です。", "東京です", False),  # 4 of 7 characters: F1 = 8 / 11
        ("答えは東京です。", "答えは東京だ。", True),  # 5 of 7 and of 6: F1 = 10 / 13
    ],
)
def test_sentences_without_spaces(first: str, second: str, equal: bool) -> None:
    assert agree(LexicalGrouping(0.75), first, second) is equal


@pytest.mark.parametrize(
    ("first", "second"), [("कि", "की"), ("வணக்கம்", "வணக்கம"), ("😀", "😡"), ("<", ">"), ("-5", "5"), ("1.5", "5.1"), ("!", "")]
)
def test_texts_that_differ_in_marks_or_signs_alone_differ(first: str, second: str) -> None:
    assert not agree(LexicalGrouping(0.7), first, second)


@given(text=st.text(), more=st.text(alphabet=st.characters(categories=["L", "N"])))
def test_every_letter_is_in_a_word(text: str, more: str) -> None:
    (words,) = LexicalGrouping(0.7).keys([f"{text} {more}"])
    folded = unicodedata.normalize("NFKC", f"{text} {more}").casefold()
    counted = Counter(character for word in words.elements() for character in word)
    assert all(counted[letter] == folded.count(letter) for letter in set(folded) if letter.isalnum())
