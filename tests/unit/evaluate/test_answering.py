"""Evaluating rows with the fake engine: what is asked, what is correct, what is missing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ual_ray.elicit.requests import Completion, CompletionResult, Failure, Likelihood, LikelihoodResult, Request, Result
from ual_ray.evaluate.answering import AnswerRows
from ual_ray.records import EVALUATED


class Scripted:
    """Answers every question with one text."""

    template_hash = "scripted"

    def __init__(self, text: str) -> None:
        self._text = text
        self.seen: list[Request] = []

    def run(self, requests: Sequence[Request]) -> list[Result]:
        self.seen += requests
        return [self._answer(request) for request in requests]

    def _answer(self, request: Request) -> Result:
        if isinstance(request, Likelihood):
            if request.conversation[0][1] == "too long":
                return Failure("overlong: 9 tokens")
            return LikelihoodResult(6.0, 3, prompt_tokens=5)
        return CompletionResult((self._text,), prompt_tokens=4, generated_tokens=2)


def row(question: str, answer: str) -> dict[str, Any]:
    chat = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"id": question, "source": "s", "split": "test", "messages": chat}


def test_only_rows_with_a_gold_number_are_asked() -> None:
    engine = Scripted("It is 7, so\n#### 7")
    rows = AnswerRows("ual", 9)([row("3 + 4?", "3 + 4 = 7\n#### 7"), row("Why?", "Because.")], engine)
    assert [request for request in engine.seen if isinstance(request, Completion)] == [Completion((("user", "3 + 4?"),), 9)]
    assert [line["correct_strict"] for line in map(complete, rows)] == [True, None]
    assert rows[0]["answer"] == "7"
    assert rows[0]["model"] == "ual"


def test_strict_and_flexible_may_disagree_and_no_number_is_wrong() -> None:
    (said,) = AnswerRows("m", 9)([row("q", "#### 7")], Scripted("I think 7."))
    assert (said["correct_strict"], said["correct_flexible"]) == (False, True)
    (silent,) = AnswerRows("m", 9)([row("q", "#### 7")], Scripted("no idea"))
    assert (silent["correct_strict"], silent["correct_flexible"]) == (False, False)


def test_a_failed_request_is_quarantined_with_its_reason() -> None:
    (failed,) = AnswerRows("m", 9)([row("too long", "x")], Scripted(""))
    assert (failed["status"], failed["error"]) == ("quarantined", "overlong: 9 tokens")
    assert complete(failed)["nll_sum"] is None


def complete(columns: dict[str, Any]) -> dict[str, Any]:
    return {name: columns.get(name) for name in EVALUATED.names}
