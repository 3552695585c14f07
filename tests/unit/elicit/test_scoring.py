"""Scoring: each different question is asked once, and every row comes back with every column."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pytest

from ual_ray.config import EngineConfig
from ual_ray.elicit.engines import FakeEngine
from ual_ray.elicit.prompts import TEMPLATES, fill, prompt_hash
from ual_ray.elicit.requests import Choice, ChoiceResult, Failure, Likelihood, LikelihoodResult, Request, Result
from ual_ray.elicit.scoring import ScoreRows, run_once
from ual_ray.records import Message, scored_schema

ALL = ("verbalized", "p_true", "nll")
Row = dict[str, Any]


class Counting:
    """Passes requests on and remembers them."""

    template_hash = "counted"

    def __init__(self, answer: Callable[[Sequence[Request]], list[Result]]) -> None:
        self._answer = answer
        self.seen: list[Request] = []

    def run(self, requests: Sequence[Request]) -> list[Result]:
        self.seen += requests
        return self._answer(requests)


def fake(max_model_len: int = 1000) -> Counting:
    return Counting(FakeEngine(EngineConfig(kind="fake", max_model_len=max_model_len), "fake-model").run)


def answering(choice: ChoiceResult | Failure, likelihood: LikelihoodResult | Failure) -> Counting:
    return Counting(lambda requests: [choice if isinstance(request, Choice) else likelihood for request in requests])


def row(identity: str, question: str = "Say hi.", answer: str = "Hi.") -> Row:
    messages = [Message(role="user", content=question), Message(role="assistant", content=answer)]
    return {"id": identity, "source": "s", "split": "train", "messages": messages}


def test_the_columns_are_the_schemas() -> None:
    scored = ScoreRows(ALL, "verbalized", "big")([row("a"), row("b", "Why?")], fake())
    schema = scored_schema(ALL)
    assert all(list(one) and set(one) == set(schema.names) for one in scored)
    assert pa.Table.from_pylist(scored, schema=schema).num_rows == 2
    assert [one["id"] for one in scored] == ["a", "b"]


def test_an_estimator_that_was_not_asked_for_leaves_no_column() -> None:
    (scored,) = ScoreRows(("nll",), "nll", "big")([row("a")], fake())
    assert set(scored) == set(scored_schema(["nll"]).names)


@pytest.mark.parametrize("uncertainty", ALL)
def test_the_uncertainty_is_the_chosen_estimators(uncertainty: str) -> None:
    (scored,) = ScoreRows(ALL, uncertainty, "big")([row("a")], fake())
    assert scored["uncertainty"] == scored[f"uncertainty_{uncertainty}"]
    assert len({scored[f"uncertainty_{name}"] for name in ALL}) == 3


def test_values_are_those_of_the_engine() -> None:
    halves = ChoiceResult((math.log(0.5), math.log(0.5)), prompt_tokens=11)
    engine = answering(halves, LikelihoodResult(2 * math.log(4), 2, prompt_tokens=5))
    (scored,) = ScoreRows(("p_true", "nll"), "nll", "big")([row("a")], engine)
    assert scored["uncertainty_p_true"] == pytest.approx(0.5)
    assert scored["raw_nll"] == pytest.approx(math.log(4))
    assert scored["uncertainty"] == pytest.approx(0.75)
    assert (scored["prompt_tokens"], scored["generated_tokens"]) == (11 + 5, 1)
    assert (scored["status"], scored["error"], scored["elicitor"]) == ("ok", None, "big")
    assert scored["prompt_hash"] == prompt_hash(("p_true", "nll"), "counted")


def test_each_different_request_is_sent_once() -> None:
    engine = fake()
    rows = [row("a"), row("b", "Why?"), row("c"), row("d", "Why?", "Because.")]
    scored = ScoreRows(ALL, "nll", "big")(rows, engine)
    assert len(engine.seen) == len(set(engine.seen)) == 3 * 3  # a and c ask the same
    same, other = ({key: value for key, value in scored[at].items() if key != "id"} for at in (0, 2))
    assert same == other


def test_what_is_sent_is_what_the_estimators_ask() -> None:
    engine = fake()
    one = row("a", "Why {so}?")
    ScoreRows(ALL, "nll", "big")([one], engine)
    assert set(engine.seen) == {
        Choice(fill(TEMPLATES["verbalized"], one["messages"]), tuple("0123456789")),
        Choice(fill(TEMPLATES["p_true"], one["messages"]), ("A", "B")),
        Likelihood((("user", "Why {so}?"), ("assistant", "Hi.")), last_reply_only=True),
    }


def test_an_overlong_row_is_quarantined_and_costs_the_others_nothing() -> None:
    task = ScoreRows(ALL, "verbalized", "big")
    rows = [row("a"), row("long", "word " * 300), row("b", "Why?")]
    scored = {one["id"]: one for one in task(rows, fake(200))}
    long = scored["long"]
    assert long["status"] == "quarantined"
    assert long["error"].startswith("overlong: ") and "engine.max_model_len is 200" in long["error"]
    assert all(long[column] is None for name in ALL for column in ("uncertainty", f"uncertainty_{name}", f"raw_{name}"))
    assert (long["prompt_tokens"], long["generated_tokens"]) == (0, 0)
    assert [scored["a"], scored["b"]] == task([rows[0], rows[2]], fake(200))
    assert {scored[name]["status"] for name in "ab"} == {"ok"}


def test_a_row_is_ok_when_only_another_estimator_failed() -> None:
    engine = answering(ChoiceResult((-1.0, -1.0), 3), Failure("engine: too hot"))
    (scored,) = ScoreRows(("p_true", "nll"), "p_true", "big")([row("a")], engine)
    assert (scored["status"], scored["uncertainty"]) == ("ok", pytest.approx(0.5))
    assert (scored["uncertainty_nll"], scored["raw_nll"], scored["error"]) == (None, None, "engine: too hot")


def test_a_row_is_quarantined_when_the_chosen_estimator_failed() -> None:
    engine = answering(ChoiceResult((-1.0, -1.0), 3), Failure("engine: too hot"))
    (scored,) = ScoreRows(("p_true", "nll"), "nll", "big")([row("a")], engine)
    assert (scored["status"], scored["uncertainty"], scored["error"]) == ("quarantined", None, "engine: too hot")
    assert scored["uncertainty_p_true"] == pytest.approx(0.5)


def test_an_unparsable_score_is_quarantined_with_a_reason() -> None:
    engine = answering(ChoiceResult((-math.inf, -math.inf), 3), LikelihoodResult(1.0, 1, 1))
    (scored,) = ScoreRows(("p_true",), "p_true", "big")([row("a")], engine)
    assert (scored["status"], scored["uncertainty"]) == ("quarantined", None)
    assert scored["error"].startswith("unparsable")


def test_the_same_reason_twice_is_written_once() -> None:
    engine = answering(Failure("engine: x"), Failure("engine: y"))
    (scored,) = ScoreRows(ALL, "nll", "big")([row("a")], engine)
    assert scored["error"] == "engine: x; engine: y"


def test_no_rows_no_results() -> None:
    assert ScoreRows(ALL, "nll", "big")([], fake()) == []


def test_an_engine_that_loses_answers_is_found_out() -> None:
    with pytest.raises(AssertionError, match="answered 1 of 2"):
        run_once(Counting(lambda requests: [Failure("x")]), [Likelihood(()), Likelihood((("user", "q"),))])
