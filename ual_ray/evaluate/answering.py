"""Evaluate a batch of rows with one engine: the NLL of the reference, and a greedy answer where there is a gold number.

Runs inside an actor, and inside a unit test as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ual_ray.elicit.engines import Engine
from ual_ray.elicit.requests import Completion, CompletionResult, Failure, Likelihood, LikelihoodResult, Result, turns
from ual_ray.evaluate.benchmarks.gsm8k import extract_flexible, extract_strict
from ual_ray.records import (
    ANSWER,
    CORRECT_FLEXIBLE,
    CORRECT_STRICT,
    ERROR,
    GENERATED_TOKENS,
    ID,
    MESSAGES,
    MODEL,
    NLL_SUM,
    PREDICTION,
    PROMPT_TOKENS,
    SOURCE,
    STATUS,
    STATUS_OK,
    STATUS_QUARANTINED,
    TARGET_TOKENS,
)

Row = dict[str, Any]


@dataclass(frozen=True)
class AnswerRows:
    """Turn rows into the columns of `records.EVALUATED`; a row with a failed request is quarantined with its reason."""

    model: str
    max_new_tokens: int

    def __call__(self, rows: Sequence[Row], engine: Engine) -> list[Row]:
        """Evaluate the rows: all their requests go to the engine together."""
        likelihoods = [Likelihood(turns(row[MESSAGES])) for row in rows]
        gold = [extract_strict(row[MESSAGES][-1]["content"]) for row in rows]
        asked = [index for index, answer in enumerate(gold) if answer is not None]
        questions = [Completion(turns(rows[index][MESSAGES][:-1]), self.max_new_tokens) for index in asked]
        results = engine.run([*likelihoods, *questions])
        answers = dict(zip(asked, results[len(rows) :], strict=True))
        return [self._columns(row, results[index], gold[index], answers.get(index)) for index, row in enumerate(rows)]

    def _columns(self, row: Row, likelihood: Result, gold: str | None, answer: Result | None) -> Row:
        done = [result for result in (likelihood, answer) if result is not None]
        failures = [result.reason for result in done if isinstance(result, Failure)]
        columns: Row = {
            ID: row[ID],
            SOURCE: row[SOURCE],
            MODEL: self.model,
            ANSWER: gold,
            STATUS: STATUS_QUARANTINED if failures else STATUS_OK,
            ERROR: "; ".join(failures) or None,
            PROMPT_TOKENS: sum(result.prompt_tokens for result in done),
            GENERATED_TOKENS: sum(result.generated_tokens for result in done),
        }
        if isinstance(likelihood, LikelihoodResult):
            columns |= {NLL_SUM: likelihood.nll_sum, TARGET_TOKENS: likelihood.target_tokens}
        if isinstance(answer, CompletionResult):
            (text,) = answer.texts
            columns |= {
                PREDICTION: text,
                CORRECT_STRICT: extract_strict(text) == gold,
                CORRECT_FLEXIBLE: extract_flexible(text) == gold,
            }
        return columns
