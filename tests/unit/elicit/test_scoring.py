"""Scoring: each different question is asked once, and every row comes back with every column."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ual_ray import columns as col
from ual_ray.columns import Message, digest
from ual_ray.config import ElicitConfig, EngineConfig
from ual_ray.config.elicit import MOST_SAMPLES
from ual_ray.elicit.estimators import ESTIMATORS
from ual_ray.elicit.prompts import load_prompts, prompt_hash
from ual_ray.elicit.scoring import RETEST_ATTEMPT, ScoreRows, position
from ual_ray.engines import EngineSpec, make_engine, run_once
from ual_ray.engines.requests import (
    Choice,
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
from ual_ray.models.truncate import MOST_CUTS, shorten

ALL = tuple(ESTIMATORS)
THREE: tuple[str, ...] = ("verbalized_error", "p_true", "nll")
HALVES = ChoiceResult((math.log(0.5), math.log(0.5)), prompt_tokens=11)
TOO_HOT = Failure("engine: too hot")
Row = dict[str, Any]
Answer = Callable[[Request], Result]


class Counting:
    """Passes requests on and remembers them, run by run."""

    template_hash = "counted"

    def __init__(self, answer: Callable[[Sequence[Request]], list[Result]]) -> None:
        self._answer = answer
        self.runs: list[list[Request]] = []

    @property
    def seen(self) -> list[Request]:
        return [request for run in self.runs for request in run]

    def run(self, requests: Sequence[Request]) -> list[Result]:
        self.runs.append([*requests])
        return self._answer(requests)


def fake(max_model_len: int = 1000) -> Counting:
    config = EngineConfig(kind="fake", max_model_len=max_model_len)
    return Counting(make_engine(EngineSpec(config, "fake-model")).run)


def answering(answer: Answer) -> Counting:
    return Counting(lambda requests: [answer(request) for request in requests])


def by_kind(choice: Result, likelihood: Result, completion: Result = TOO_HOT) -> Counting:
    results = {Choice: choice, Likelihood: likelihood, Completion: completion}
    return answering(lambda request: results[type(request)])


def row(identity: str = "a0", question: str = "Say hi.", answer: str = "Hi.") -> Row:
    messages = [Message(role="user", content=question), Message(role="assistant", content=answer)]
    return {"id": identity, "source": "s", "split": "train", "given_id": None, "messages": messages}


def config(*estimators: str, **options: Any) -> ElicitConfig:
    return ElicitConfig(**{"estimators": estimators, "uncertainty": estimators[0], "retest_share": 0, "model": "big"} | options)


# --- columns ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [ALL, THREE, ("nll",)])
def test_the_columns_are_the_schemas(names: tuple[str, ...]) -> None:
    schema = col.measured_schema(names)
    scored = ScoreRows(config(*names))([row("a0"), row("b0", "Why?")], fake())
    assert all(set(one) == set(schema.names) for one in scored)
    assert pa.Table.from_pylist(scored, schema=schema).num_rows == 2


def test_rows_come_back_in_order_and_as_they_were() -> None:
    rows = [row(digest(number), f"Question {number}?") for number in range(20)]
    scored = ScoreRows(config(*THREE, retest_share=0.5))(rows, fake())
    assert [{key: one[key] for key in before} for one, before in zip(scored, rows, strict=True)] == rows


def test_values_are_those_of_the_engine() -> None:
    engine = by_kind(HALVES, LikelihoodResult(2 * math.log(4), 2, prompt_tokens=5))
    (scored,) = ScoreRows(config("p_true", "nll"))([row(answer="Hi, you.")], engine)
    assert (scored["uncertainty_p_true"], scored["raw_p_true"]) == pytest.approx((0.5, 0))
    assert (scored["uncertainty_nll"], scored["raw_nll"]) == pytest.approx((0.75, math.log(4)))
    assert (scored["retest_p_true"], scored["retest_nll"]) == (None, None)
    assert (scored["status"], scored["error"], scored["elicitor"], scored["truncated"]) == ("ok", None, "big", False)
    assert scored["response_length"] == len("Hi, you.")
    assert scored["prompt_hash"] == prompt_hash(load_prompts(), "counted")


def test_no_rows_no_results() -> None:
    engine = fake()
    assert ScoreRows(config(*ALL))([], engine) == []
    assert engine.runs == []


def test_the_task_travels() -> None:
    import pickle

    task = pickle.loads(pickle.dumps(ScoreRows(config(*ALL), "truncate", 3)))  # noqa: S301
    assert task([row()], fake()) == ScoreRows(config(*ALL), "truncate", 3)([row()], fake())


# --- sharing ---------------------------------------------------------------------------------------------------------


def test_each_different_request_is_sent_once_and_all_in_one_run() -> None:
    engine = fake()
    rows = [row("a0"), row("b0", "Why?"), row("c0"), row("d0", "Why?", "Because.")]
    scored = ScoreRows(config(*ALL))(rows, engine)
    assert len(engine.runs) == 1
    # Two ratings, two verdicts and a likelihood of each of three different pairs; answers to two instructions.
    assert len(engine.seen) == len(set(engine.seen)) == 3 * 5 + 2
    same, other = ({key: value for key, value in scored[at].items() if key != "id"} for at in (0, 2))
    assert same == other


def test_what_is_sent_is_what_the_estimators_ask() -> None:
    engine = fake()
    one = row("a0", "Why {so}?")
    ScoreRows(config(*THREE))([one], engine)
    prompts, messages = load_prompts(), one["messages"]
    assert set(engine.seen) == {
        Choice(prompts.rating("verbalized_error", messages, "0", "9"), tuple("0123456789")),
        Choice(prompts.verdict(messages, yes_first=True), ("A", "B")),
        Choice(prompts.verdict(messages, yes_first=False), ("A", "B")),
        Likelihood((("user", "Why {so}?"), ("assistant", "Hi.")), last_reply_only=True),
    }


def test_the_seed_reaches_the_samples() -> None:
    engine = fake()
    ScoreRows(config("semantic_entropy"), seed=7)([row()], engine)
    assert [request.seed for request in engine.seen if isinstance(request, Completion)] == [7]


def test_what_estimators_share_is_paid_once() -> None:
    likelihood = LikelihoodResult(1.0, 2, prompt_tokens=5, generated_tokens=0, calls=1)
    texts = CompletionResult(("a", "b"), prompt_tokens=7, generated_tokens=30, calls=2)
    engine = by_kind(replace(HALVES, generated_tokens=3, calls=4), likelihood, texts)
    task = ScoreRows(config("p_true", "nll", "nll_sum", "self_consistency", "semantic_entropy"))
    (scored,) = task([row()], engine)
    assert scored["prompt_tokens"] == 2 * 11 + 5 + 7
    assert scored["generated_tokens"] == 2 * 3 + 0 + 30
    assert scored["calls"] == 2 * 4 + 1 + 2


def test_what_a_failure_cost_is_counted() -> None:
    engine = by_kind(Failure("engine: x", prompt_tokens=3, generated_tokens=2, calls=1), LikelihoodResult(1.0, 2, 5))
    (scored,) = ScoreRows(config("nll", "verbalized_error"))([row()], engine)
    assert (scored["prompt_tokens"], scored["generated_tokens"], scored["calls"]) == (8, 2, 2)


def test_an_engine_that_loses_answers_is_found_out() -> None:
    with pytest.raises(AssertionError, match="answered 1 of 2"):
        run_once(Counting(lambda requests: [Failure("x")]), [Likelihood(()), Likelihood((("user", "q"),))])


# --- failures --------------------------------------------------------------------------------------------------------


def test_an_overlong_row_is_quarantined_and_costs_the_others_nothing() -> None:
    task = ScoreRows(config(*THREE))
    rows = [row("a0"), row("10", "word " * 300), row("b0", "Why?")]
    scored = {one["id"]: one for one in task(rows, fake(200))}
    long = scored["10"]
    assert (long["status"], long["truncated"]) == ("quarantined", False)
    assert long["error"].startswith("overlong: ") and "engine.max_model_len is 200" in long["error"]
    assert all(long[column] is None for name in THREE for column in (f"uncertainty_{name}", f"raw_{name}"))
    assert (long["prompt_tokens"], long["generated_tokens"], long["calls"]) == (0, 0, 0)
    assert [scored["a0"], scored["b0"]] == task([rows[0], rows[2]], fake(200))
    assert {scored[name]["status"] for name in ("a0", "b0")} == {"ok"}


def test_a_row_is_ok_when_only_another_estimator_failed() -> None:
    (scored,) = ScoreRows(config("p_true", "nll"))([row()], by_kind(HALVES, TOO_HOT))
    assert (scored["status"], scored["uncertainty_p_true"]) == ("ok", pytest.approx(0.5))
    assert (scored["uncertainty_nll"], scored["raw_nll"], scored["error"]) == (None, None, "engine: too hot")


def test_a_row_is_quarantined_when_the_chosen_estimator_failed() -> None:
    (scored,) = ScoreRows(config("p_true", "nll", uncertainty="nll"))([row()], by_kind(HALVES, TOO_HOT))
    assert (scored["status"], scored["error"]) == ("quarantined", "engine: too hot")
    assert scored["uncertainty_p_true"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("ensemble", "status"),
    [((), "quarantined"), (("p_true", "nll"), "quarantined"), (("nll",), "quarantined"), (("p_true",), "ok")],
)
def test_an_ensemble_needs_all_its_members_and_no_other(ensemble: tuple[str, ...], status: str) -> None:
    task = ScoreRows(config("p_true", "nll", uncertainty="ensemble", ensemble=ensemble))
    (scored,) = task([row()], by_kind(HALVES, TOO_HOT))
    assert scored["status"] == status


def test_an_unparsable_score_is_quarantined_with_a_reason() -> None:
    engine = by_kind(ChoiceResult((-math.inf, -math.inf), 3), LikelihoodResult(1.0, 1, 1))
    (scored,) = ScoreRows(config("p_true", "nll"))([row()], engine)
    assert (scored["status"], scored["uncertainty_p_true"]) == ("quarantined", None)
    assert scored["error"] == "mass: the probability of all choices is 0, less than min_choice_mass = 0.01 (p_true)"
    assert (scored["mass_p_true"], scored["finish_p_true"]) == (0, None)


def test_reasons_are_written_once_and_in_order() -> None:
    (scored,) = ScoreRows(config(*THREE))([row()], by_kind(Failure("engine: y"), Failure("engine: x")))
    assert scored["error"] == "engine: x; engine: y"


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


# --- what is too long ------------------------------------------------------------------------------------------------


def words_of(request: Request) -> int:
    turns = request.conversation if isinstance(request, Likelihood) else request.prompt
    return sum(len(content.split()) for _, content in turns)


@pytest.mark.parametrize("words", [150, 1000, 20_000])
@pytest.mark.parametrize("side", ["question", "answer"])
def test_truncation_makes_a_long_row_fit_and_keeps_most_of_it(side: str, words: int) -> None:
    text = "word " * words
    one = row("a0", text, "Hi.") if side == "question" else row("a0", "Say hi.", text)
    engine = fake(150)
    (scored,) = ScoreRows(config(*ALL), "truncate")([one], engine)
    assert (scored["status"], scored["error"], scored["truncated"]) == ("ok", None, True)
    assert scored["messages"] == one["messages"]
    assert scored["response_length"] == len(one["messages"][-1]["content"])
    answered = [words_of(request) for request in engine.runs[-1]]
    assert max(answered) <= 150
    assert max(answered) > 0.7 * 150
    assert len(engine.runs) <= 1 + MOST_CUTS


def test_truncation_leaves_short_rows_alone() -> None:
    rows = [row("a0"), row("b0", "word " * 500), row("c0", "Why?")]
    scored = ScoreRows(config(*THREE), "truncate")(rows, fake(150))
    assert [one["truncated"] for one in scored] == [False, True, False]
    assert [scored[0], scored[2]] == ScoreRows(config(*THREE), "truncate")([rows[0], rows[2]], fake(140))


def test_all_estimators_see_the_same_shortened_pair() -> None:
    """The likelihood alone would have fitted: an ensemble must not mix a pair with a part of it."""
    engine = fake(140)
    (scored,) = ScoreRows(config(*THREE), "truncate")([row("a0", "Say hi.", "word " * 100)], engine)
    asked = [request.conversation[-1][1] for request in engine.seen if isinstance(request, Likelihood)]
    assert len(asked) > 1
    rating = next(request for request in engine.runs[-1] if isinstance(request, Choice))
    assert f"[Response]\n{asked[-1]}\n" in rating.prompt[0][1]
    assert scored["truncated"]


def test_what_a_shorter_response_does_not_change_is_not_asked_again() -> None:
    engine = fake(140)
    ScoreRows(config(*ALL), "truncate")([row("a0", "Say hi.", "word " * 1000)], engine)
    assert len(engine.runs) > 1
    assert sum(isinstance(request, Completion) for request in engine.seen) == 1
    assert len(set(engine.seen)) == len(engine.seen)


def test_a_limit_that_is_not_known_is_guessed_towards() -> None:
    limit = 600  # characters

    def answer(request: Request) -> Result:
        assert isinstance(request, Likelihood)
        length = sum(len(content) for _, content in request.conversation)
        return overlong(None, None) if length > limit else LikelihoodResult(1.0, 1, 1)

    (scored,) = ScoreRows(config("nll"), "truncate")([row("a0", answer="x" * 1500)], answering(answer))
    assert (scored["status"], scored["truncated"]) == ("ok", True)


def test_what_no_cut_helps_is_quarantined() -> None:
    engine = by_kind(HALVES, overlong(2000, 1000))
    (scored,) = ScoreRows(config("nll"), "truncate")([row()], engine)
    assert (scored["status"], scored["truncated"]) == ("quarantined", True)
    assert scored["error"].startswith("overlong: 2000 tokens")
    assert len(engine.runs) <= 1 + MOST_CUTS


def test_a_retest_sees_the_pair_as_shortened() -> None:
    (scored,) = ScoreRows(config("nll", retest_share=1), "truncate")([row("a0", "word " * 500)], fake(150))
    assert scored["retest_nll"] == scored["uncertainty_nll"] is not None


@given(
    contents=st.lists(st.text(min_size=1, max_size=300), min_size=1, max_size=5),
    limit=st.integers(16, 1000),
    over=st.integers(1, 5000),
    known=st.booleans(),
)
def test_shortening_cuts_the_end_of_the_longest_alone(contents: list[str], limit: int, over: int, known: bool) -> None:
    messages = [Message(role="user", content=content) for content in contents]
    short = shorten(messages, limit + over if known else None, limit if known else None)
    longest = max(range(len(contents)), key=lambda index: len(contents[index]))
    for index, (before, after) in enumerate(zip(contents, short, strict=True)):
        assert after["role"] == "user"
        if index != longest:
            assert after["content"] == before
    cut = short[longest]["content"]
    assert cut and contents[longest].startswith(cut)
    assert len(cut) < len(contents[longest]) or len(cut) == 1
    assert [message["content"] for message in messages] == contents


@given(length=st.integers(100, 5000), limit=st.integers(100, 1000), over=st.integers(1, 4000))
def test_shortening_leaves_about_what_fits(length: int, limit: int, over: int) -> None:
    tokens = limit + over
    messages = [Message(role="user", content="x" * length), Message(role="assistant", content="y")]
    left = sum(len(message["content"]) for message in shorten(messages, tokens, limit))
    wanted = (length + 1) * limit / tokens
    assume(wanted > 20)
    assert left <= wanted  # if every character is as many tokens, it fits now
    assert left >= 0.95 * wanted - 10


def test_an_empty_conversation_cannot_be_shortened() -> None:
    messages = [Message(role="user", content="")]
    assert shorten(messages, 20, 10) == messages
