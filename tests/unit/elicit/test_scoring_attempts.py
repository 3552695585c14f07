"""Scoring again: retries of what could not be read, and retests."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scoring_engines import ALL, THREE, TOO_HOT, Counting, answering, by_kind, config, fake, row

from ual_ray.columns import digest
from ual_ray.config.elicit import MOST_SAMPLES
from ual_ray.elicit.scoring import RETEST_ATTEMPT, ScoreRows, position
from ual_ray.engines.requests import (
    ChoiceResult,
    Completion,
    CompletionResult,
    Failure,
    Likelihood,
    LikelihoodResult,
    Request,
    Result,
    overlong,
)

# --- retries ---------------------------------------------------------------------------------------------------------


def readable_from(attempt: int) -> Counting:
    """Answer with prose until an attempt, and with a 3 from then on."""

    def answer(request: Request) -> Result:
        assert isinstance(request, Completion)
        text = "3" if request.seed >= attempt * MOST_SAMPLES else "no idea"
        return CompletionResult((text,) * request.n, prompt_tokens=10, generated_tokens=5)

    return answering(answer)


@pytest.mark.parametrize(
    ("readable", "retries", "runs", "status"),
    [(0, 2, 1, "ok"), (1, 2, 2, "ok"), (2, 2, 3, "ok"), (3, 2, 3, "quarantined"), (1, 0, 1, "quarantined")],
)
def test_a_reply_that_cannot_be_parsed_is_asked_for_again(readable: int, retries: int, runs: int, status: str) -> None:
    engine = readable_from(readable)
    (scored,) = ScoreRows(config("verbalized_error", mode="sampled", retries=retries))([row()], engine)
    assert (scored["status"], len(engine.runs)) == (status, runs)
    assert scored["raw_verbalized_error"] == (3 if status == "ok" else None)
    assert (scored["prompt_tokens"], scored["generated_tokens"], scored["calls"]) == (10 * runs, 5 * runs, runs)
    seeds = [request.seed + sample for request in engine.seen for sample in range(request.n)]  # type: ignore[union-attr]
    assert len(set(seeds)) == len(seeds)


def test_only_the_rows_and_estimators_that_could_not_be_read_are_asked_again() -> None:
    def answer(request: Request) -> Result:
        if isinstance(request, Likelihood):
            return LikelihoodResult(1.0, 1, 1)
        hard = "Why?" in request.prompt[0][1] and request.seed == 0 and "Rate" in request.prompt[0][1]  # type: ignore[union-attr]
        said = "?" if hard else "3" if "Rate" in request.prompt[0][1] else "A"  # type: ignore[union-attr]
        return CompletionResult((said,) * request.n, 1, 1)  # type: ignore[union-attr]

    engine = answering(answer)
    task = ScoreRows(config(*THREE, mode="sampled"))
    scored = task([row("a0"), row("b0", "Why?")], engine)
    assert [one["status"] for one in scored] == ["ok", "ok"]
    assert [len(run) for run in engine.runs] == [8, 1]
    assert "Why?" in engine.runs[1][0].prompt[0][1]  # type: ignore[union-attr]


@pytest.mark.parametrize("failure", [TOO_HOT, overlong(2000, 1000)])
def test_a_failure_is_not_asked_for_again(failure: Failure) -> None:
    engine = by_kind(failure, failure, failure)
    ScoreRows(config(*ALL, mode="sampled", uncertainty="nll"))([row()], engine)
    assert len(engine.runs) == 1


def test_a_question_without_a_seed_is_not_asked_again() -> None:
    engine = by_kind(ChoiceResult((-math.inf,) * 10, 3), LikelihoodResult(math.nan, 1, 1))
    ScoreRows(config("verbalized_error", "nll"))([row()], engine)
    assert len(engine.runs) == 1


# --- retests ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_share_of_the_rows_is_scored_twice() -> None:
    rows = [row(digest(number), f"Question {number}?") for number in range(2000)]
    scored = ScoreRows(config("nll", "p_true", retest_share=0.1))(rows, fake())
    again = [one for one in scored if one["retest_nll"] is not None]
    assert len(again) == pytest.approx(200, abs=4 * math.sqrt(2000 * 0.1 * 0.9))
    assert all((one["retest_nll"] is None) == (one["retest_p_true"] is None) for one in scored)
    assert all(one["retest_nll"] == one["uncertainty_nll"] for one in again)  # the fake has no noise
    assert all(position(one["id"]) < 0.1 for one in again)


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0), (1.0, 5)])
def test_none_or_all_of_the_rows_are_scored_twice(share: float, expected: int) -> None:
    engine = fake()
    scored = ScoreRows(config("nll", retest_share=share))([row(digest(n), str(n)) for n in range(5)], engine)
    assert sum(one["retest_nll"] is not None for one in scored) == expected
    assert len(engine.runs) == 1 + (expected > 0)


def test_a_retest_is_asked_apart_in_another_order_with_other_seeds_and_paid() -> None:
    engine = fake()
    rows = [row(digest(number), f"Question {number}?") for number in range(4)]
    scored = ScoreRows(config("semantic_entropy", "nll", retest_share=1))(rows, engine)
    once = ScoreRows(config("semantic_entropy", "nll"))(rows, fake())
    first, second = engine.runs
    likelihoods = [[request for request in run if isinstance(request, Likelihood)] for run in (first, second)]
    assert likelihoods[0] == likelihoods[1][::-1]
    assert {request.seed for request in first if isinstance(request, Completion)} == {0}
    assert {request.seed for request in second if isinstance(request, Completion)} == {RETEST_ATTEMPT * MOST_SAMPLES}
    for one, before in zip(scored, once, strict=True):
        assert one["uncertainty_semantic_entropy"] == before["uncertainty_semantic_entropy"]
        assert one["prompt_tokens"] == 2 * before["prompt_tokens"]
        assert (one["calls"], one["generated_tokens"]) == (2 * before["calls"], 2 * before["generated_tokens"])
    assert any(one["retest_semantic_entropy"] != one["uncertainty_semantic_entropy"] for one in scored)


def test_a_retest_that_fails_leaves_the_row_as_it_is() -> None:
    runs: list[int] = []

    def answer(requests: Sequence[Request]) -> list[Result]:
        runs.append(1)
        return [LikelihoodResult(1.0, 1, 1) if len(runs) == 1 else TOO_HOT for _ in requests]

    (scored,) = ScoreRows(config("nll", retest_share=1))([row()], Counting(answer))
    assert (scored["status"], scored["error"], scored["retest_nll"]) == ("ok", None, None)


@given(number=st.integers(0, 16**16 - 1))
def test_the_place_of_a_row_goes_by_the_end_of_its_id(number: int) -> None:
    identity = f"{number:016x}"
    assert 0 <= position(identity) < 1
    assert position("0" * 15 + "8") == 0.5
    assert position(f"{0:015x}{identity[-1]}") == pytest.approx(position(identity), abs=1 / 16)
