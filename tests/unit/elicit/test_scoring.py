"""Scoring: each different question is asked once, and every row comes back with every column."""

from __future__ import annotations

import math
from dataclasses import replace

import pyarrow as pa
import pytest
from scoring_engines import ALL, HALVES, THREE, TOO_HOT, Counting, by_kind, config, fake, row

from ual_ray import columns as col
from ual_ray.columns import digest
from ual_ray.elicit.prompts import load_prompts, prompt_hash
from ual_ray.elicit.scoring import ScoreRows
from ual_ray.engines import run_once
from ual_ray.engines.requests import (
    Choice,
    ChoiceResult,
    Completion,
    CompletionResult,
    Failure,
    Likelihood,
    LikelihoodResult,
)

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
