"""Answering with a scripted engine: what is asked, what is written down, what is missing."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pytest

from ual_ray import columns as col
from ual_ray.benchmarks import make_benchmarks
from ual_ray.benchmarks.benchmark import Question, Reading
from ual_ray.columns import Message
from ual_ray.config import BenchmarkConfig, EngineConfig
from ual_ray.config.registry import BENCHMARKS as KINDS
from ual_ray.engines import EngineSpec, make_engine
from ual_ray.engines.requests import Completion, CompletionResult, Failure, Likelihood, LikelihoodResult, Request, Result
from ual_ray.evaluate.answering import AnswerRows
from ual_ray.evaluate.questions import _row
from ual_ray.stats.metrics import METRICS

BENCHMARKS = make_benchmarks(
    {
        "held": BenchmarkConfig(kind="held_out"),
        "gsm": BenchmarkConfig(kind="gsm8k", max_new_tokens=9),
        "arc": BenchmarkConfig(kind="multiple_choice"),
        "chat": BenchmarkConfig(kind="open_ended"),
    }
)
TASK = AnswerRows(BENCHMARKS, "ual", "m0", "e0")


def test_answers_that_reach_the_limit_are_marked() -> None:
    (found,) = TASK([row("gsm", "3 + 4?", answer="7")], Scripted("#### 7", ("length",)))
    assert dict(found["scores"]) == {"exact_match_strict": 1.0, "exact_match_flexible": 1.0, "cut": 1.0}
    (found,) = TASK([row("gsm", "3 + 4?", answer="7")], Scripted(finish=("stop",)))
    assert dict(found["scores"])["cut"] == 0.0
    for unknown in ((), (None,)):
        (found,) = TASK([row("gsm", "3 + 4?", answer="7")], Scripted(finish=unknown))
        assert "cut" not in dict(found["scores"])


class Scripted:
    """Answers every question with one text; a text that holds a failure's reason fails with it."""

    template_hash = "scripted"

    def __init__(self, text: str = "It is 7, so\n#### 7", finish: tuple[str | None, ...] = ()) -> None:
        self._text, self._finish = text, finish
        self.batches: list[list[Request]] = []

    def run(self, requests: Sequence[Request]) -> list[Result]:
        self.batches.append(list(requests))
        return [self._answer(request) for request in requests]

    def _answer(self, request: Request) -> Result:
        said = request.conversation if isinstance(request, Likelihood) else request.prompt
        for reason in ("overlong: 9 tokens", "engine: away"):
            if reason in said[-1][1]:
                return Failure(reason, prompt_tokens=2)
        if isinstance(request, Likelihood):
            return LikelihoodResult(2.0 * len(said[-1][1]), 3, prompt_tokens=5)
        return CompletionResult((self._text,), 4, 2, 1, -1.0, 2, self._finish)


def row(name: str, *texts: str, **more: Any) -> dict[str, Any]:
    roles = ("user",) * len(texts) if name == "chat" else ("user", "assistant")
    messages = [Message(role=role, content=text) for role, text in zip(roles, texts, strict=False)]
    return _row(name, BENCHMARKS[name], Question(messages, "s", **more))


def table(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Write the rows as the pool does, and read them again."""
    return pa.Table.from_pylist([{key: one.get(key) for key in col.RESULTS.names} for one in rows], col.RESULTS).to_pylist()


def test_all_benchmarks_go_to_the_engine_together_and_each_is_read_its_own_way() -> None:
    engine = Scripted()
    rows = [row("held", "q", "a"), row("gsm", "3 + 4?", answer="7"), row("arc", "q", answer="0", choices=("a", "bb"))]
    held, gsm, arc = table(TASK(rows, engine))
    assert [[type(request) for request in batch] for batch in engine.batches] == [
        [Likelihood, Completion, Likelihood, Likelihood]
    ]
    assert (held["nll_sum"], held["target_tokens"], held["scores"], held["prediction"]) == (2.0, 3, [], None)
    assert dict(gsm["scores"]) == {"exact_match_strict": 1.0, "exact_match_flexible": 1.0}
    assert dict(gsm["extracted"]) == {"strict": "7", "flexible": "7"}
    assert gsm["confidence"] == pytest.approx(0.6065, abs=1e-4)
    assert dict(arc["scores"]) == {"accuracy": 1.0, "accuracy_normalised": 1.0}
    assert all(one["status"] == "ok" and one["error"] is None for one in (held, gsm, arc))
    assert (arc["prompt_tokens"], gsm["generated_tokens"]) == (10, 2)
    assert [one["id"] for one in (held, gsm, arc)] == [one["id"] for one in rows]


def test_provenance_stands_in_every_row() -> None:
    first, second, third = TASK([row("gsm", "q", answer="1"), row("gsm", "r", answer="1"), row("held", "q", "a")], Scripted())
    assert (first["model"], first["model_digest"], first["engine_digest"]) == ("ual", "m0", "e0")
    assert first["benchmark_version"] == BENCHMARKS["gsm"].version
    assert first["prompt_hash"] == second["prompt_hash"] != third["prompt_hash"]
    other = AnswerRows(make_benchmarks({"gsm": BenchmarkConfig(kind="gsm8k", shots=5)}), "ual", "m0", "e0")
    assert other([row("gsm", "q", answer="1")], Scripted())[0]["prompt_hash"] != first["prompt_hash"]


def test_the_second_turn_is_asked_when_the_first_is_answered() -> None:
    engine = Scripted("ok")
    two, one = TASK([row("chat", "first", "second"), row("chat", "only")], engine)
    assert [[request.prompt[-1][1] for request in batch] for batch in engine.batches] == [["first", "only"], ["second"]]  # type: ignore[union-attr]
    assert engine.batches[1][0].prompt == (("user", "first"), ("assistant", "ok"), ("user", "second"))  # type: ignore[union-attr]
    assert (two["generated_tokens"], one["generated_tokens"]) == (4, 2)


@pytest.mark.parametrize("reason", ["overlong: 9 tokens", "engine: away"])
def test_a_failed_request_is_quarantined_with_its_reason_and_never_wrong(reason: str) -> None:
    rows = [row("gsm", reason, answer="7"), row("arc", "q", answer="0", choices=("a", reason)), row("chat", reason, "second")]
    engine = Scripted()
    for failed in table(TASK(rows, engine)):
        assert (failed["status"], failed["error"]) == ("quarantined", reason)
        assert (failed["prediction"], failed["scores"], failed["confidence"], failed["nll_sum"]) == (None, [], None, None)
    assert len(engine.batches) == 1, "nothing follows a failure"


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"scores": {"exact_match_strict": float("nan")}}, "exact_match_strict is nan, not a finite number"),
        ({"scores": {"exact_match_strict": "yes"}}, "exact_match_strict is 'yes', not a finite number"),
        ({"scores": {"exact_match_strict": 7.0}}, "exact_match_strict is 7, which is not in [0, 1]"),
        ({"scores": {"exact_match_strict": -0.5}}, "exact_match_strict is -0.5, which is not in [0, 1]"),
        ({"confidence": 1.5}, "confidence is 1.5, which is not in [0, 1]"),
        ({"nll_sum": float("inf")}, "nll_sum is inf, not a finite number"),
    ],
)
def test_a_number_that_no_mean_may_have_in_it_is_quarantined(
    values: dict[str, Any], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BENCHMARKS["gsm"], "read", lambda *_: Reading("7", **values))
    (found,) = table(TASK([row("gsm", "3 + 4?", answer="7")], Scripted()))
    assert (found["status"], found["error"]) == ("quarantined", f"benchmark: {problem}")
    assert (found["prediction"], found["scores"], found["confidence"], found["nll_sum"]) == (None, [], None, None)


def test_numbers_at_their_bounds_and_other_metrics_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = {"exact_match_strict": 1, "exact_match_flexible": None}
    monkeypatch.setattr(BENCHMARKS["gsm"], "read", lambda *_: Reading(scores=scores, confidence=1 + 1e-9, nll_sum=70.0))
    (found,) = table(TASK([row("gsm", "3 + 4?", answer="7")], Scripted()))
    assert (found["status"], dict(found["scores"])["exact_match_strict"], found["nll_sum"]) == ("ok", 1.0, 70.0)


def test_the_same_question_is_sent_once() -> None:
    engine = Scripted()
    benchmarks = make_benchmarks({name: BenchmarkConfig(kind="gsm8k", max_new_tokens=9) for name in ("one", "two")})
    question = Question([Message(role="user", content="q")], "s", "7")
    rows = [_row(name, benchmark, question) for name, benchmark in benchmarks.items()]
    assert rows[0]["id"] != rows[1]["id"]
    AnswerRows(benchmarks, "m", "", "")(rows, engine)
    assert [len(batch) for batch in engine.batches] == [1]


def test_the_fake_engine_can_be_asked_everything() -> None:
    engine = make_engine(EngineSpec(EngineConfig(kind="fake"), "m"))
    rows = [
        row("held", "q", "a"),
        row("gsm", "q", answer="7"),
        row("arc", "q", answer="0", choices=("a", "b")),
        row("chat", "q", "r"),
    ]
    answered = TASK(rows, engine)
    assert table(answered) == table(TASK(rows[::-1], engine))[::-1]
    assert all(one["status"] == "ok" for one in answered)


def test_the_task_travels() -> None:
    assert pickle.loads(pickle.dumps(TASK)).benchmarks.keys() == BENCHMARKS.keys()  # noqa: S301


@pytest.mark.parametrize("kind", KINDS)
def test_every_metric_has_a_direction(kind: str) -> None:
    assert all(METRICS[name].direction for name in KINDS[kind].metrics)
