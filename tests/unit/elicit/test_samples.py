"""Estimators from sampled answers: hand-computed values, the range, and who votes."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from estimator_results import (
    PAIR,
    SUM,
    reduce,
    said,
    self_consistency,
    semantic_entropy,
)
from hypothesis import given
from hypothesis import strategies as st

from ual_ray.columns import Message
from ual_ray.elicit.estimators.samples import grouping_for
from ual_ray.elicit.grouping import AnswerGrouping, LexicalGrouping
from ual_ray.engines.requests import (
    CompletionResult,
)


@pytest.mark.parametrize(
    ("texts", "agreeing"),
    [
        (["#### 4", "so it is 4.0", "The answer is: 4", "\\boxed{4}"], 4),
        (["#### 5", "#### 4", "four", "#### 40"], 2),
        (["five", "no idea", "", "#### 5"], 0),
    ],
)
def test_self_consistency_counts_the_answers_that_agree(texts: list[str], agreeing: int) -> None:
    assert reduce(self_consistency(), said(*texts), messages=SUM) == (1 - agreeing / 4, agreeing)


def test_self_consistency_compares_words_where_the_response_marks_no_answer() -> None:
    # "hi" alone: F1 with "hi you" is 2/3, with "hi" 1.
    assert reduce(self_consistency(similarity=0.6), said("hi", "HI!", "hi you", "bye"))[1] == 3
    assert reduce(self_consistency(similarity=0.7), said("hi", "HI!", "hi you", "bye"))[1] == 2


def test_a_given_grouping_beats_the_automatic_one() -> None:
    texts = said("2 + 2 = 4\n#### 4", "it is 4")
    assert reduce(self_consistency(), texts, messages=SUM)[1] == 2
    assert reduce(self_consistency(grouping=LexicalGrouping(0.9)), texts, messages=SUM)[1] == 1
    assert reduce(semantic_entropy(), texts, messages=SUM)[0] == 0
    assert reduce(semantic_entropy(grouping=LexicalGrouping(0.9)), texts, messages=SUM)[0] == pytest.approx(1)


@pytest.mark.parametrize(
    ("texts", "entropy"),
    [
        (["#### 4"] * 4, 0.0),
        (["#### 4", "#### 4", "#### 5", "#### 5"], math.log(2)),
        (["#### 4", "#### 5", "#### 6", "#### 7"], math.log(4)),
        (["#### 4", "#### 4", "#### 4", "#### 5"], 2 * math.log(2) - 0.75 * math.log(3)),
    ],
)
def test_semantic_entropy_by_hand(texts: list[str], entropy: float) -> None:
    uncertainty, raw = reduce(semantic_entropy(), said(*texts), messages=SUM)
    assert raw == pytest.approx(entropy)
    assert uncertainty == pytest.approx(entropy / math.log(4))


def test_semantic_entropy_does_not_see_the_response() -> None:
    other = [SUM[0], Message(role="assistant", content="#### 77")]
    texts = said("#### 4", "#### 4", "#### 5")
    assert reduce(semantic_entropy(), texts, messages=SUM) == reduce(semantic_entropy(), texts, messages=other)
    assert reduce(self_consistency(), texts, messages=SUM) != reduce(self_consistency(), texts, messages=other)


def test_answers_that_were_cut_do_not_vote() -> None:
    texts = ("#### 4", "4 or 5, so 5", "<think>so #### 5</think>#### 4", "<think>so #### 5", "#### 4")
    result = CompletionResult(texts, 7, 9, finish_reasons=("stop", "length", "stop", "stop", "stop"))
    assert reduce(self_consistency(), result, messages=SUM) == (0, 3)
    assert reduce(semantic_entropy(), result, messages=SUM) == (0, 0)
    cut = replace(result, finish_reasons=("length", "length", "stop", "stop", "length"))
    for estimator in (self_consistency(), semantic_entropy()):
        estimate = estimator.reduce([cut], SUM)
        assert estimate.uncertainty is None and estimate.reason is not None
        assert estimate.reason.startswith("cut: ") and estimate.reason.endswith("1 of 5 answers ended")


@pytest.mark.parametrize("text", ["", "  ", "The response was filtered.", "#### 5"])
@pytest.mark.parametrize("finish", ["content_filter", "SAFETY", "abort", "refusal"])
def test_what_a_server_ended_does_not_vote(text: str, finish: str) -> None:
    texts = ("#### 4", text, "#### 4")
    result = CompletionResult(texts, 7, 9, finish_reasons=("stop", finish, "stop"))
    assert reduce(self_consistency(), result, messages=SUM) == (0, 2)
    assert reduce(semantic_entropy(), result, messages=SUM) == (0, 0)
    for estimator in (self_consistency(), semantic_entropy()):
        estimate = estimator.reduce([replace(result, finish_reasons=(finish, finish, "stop"))], SUM)
        assert estimate.uncertainty is None and estimate.reason is not None
        assert finish in estimate.reason and estimate.reason.endswith("1 of 3 answers ended")


def test_an_empty_answer_does_not_vote() -> None:
    assert reduce(self_consistency(), said("#### 4", "", "<think>5</think>"), messages=SUM) == (None, None)
    assert reduce(self_consistency(), said("#### 4", "", "#### 5", "#### 4"), messages=SUM) == (pytest.approx(1 / 3), 2)


@pytest.mark.parametrize(
    "text", ["The answer is 18 dollars.", "The answer is **18**.", "The answer is $18 per day.", "So she makes $18."]
)
def test_the_same_number_agrees_however_it_is_written(text: str) -> None:
    given = [SUM[0], Message(role="assistant", content="9 * 2 = 18\n#### 18")]
    assert reduce(self_consistency(), said(text, "#### 18"), messages=given)[0] == 0
    assert reduce(semantic_entropy(), said(text, "#### 18"), messages=given)[0] == 0


def test_it_depends_is_not_an_exact_answer() -> None:
    open_ended = [SUM[0], Message(role="assistant", content="Honestly, the answer is that it depends.")]
    assert grouping_for(open_ended, 0.7) == LexicalGrouping(0.7)
    assert grouping_for(SUM, 0.7) == AnswerGrouping()


def test_one_answer_has_no_entropy() -> None:
    assert reduce(semantic_entropy(), said("#### 4"), messages=SUM) == (None, None)


@pytest.mark.slow
@given(answers=st.lists(st.sampled_from(["#### 4", "#### 5", "#### 6", "none"]), min_size=2, max_size=9))
def test_sampled_answers_stay_in_range(answers: list[str]) -> None:
    for estimator in (self_consistency(), semantic_entropy()):
        for messages in (PAIR, SUM):
            uncertainty, raw = reduce(estimator, said(*answers), messages=messages)
            assert uncertainty is not None and 0 <= uncertainty <= 1
            assert raw is not None and math.isfinite(raw)
