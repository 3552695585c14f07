"""Answer a batch of questions with one engine: rows of `columns.QUESTIONS` become rows of `columns.RESULTS`.

Pure glue: it runs inside an actor, and inside a unit test as it is.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from ual_ray import columns as col
from ual_ray.benchmarks.benchmark import Benchmark, Question, Reading
from ual_ray.engines import Engine, run_once
from ual_ray.engines.requests import CompletionResult, Failure, Request, Result, is_cut
from ual_ray.stats.metrics import CUT, METRICS

# Of a share that is a sum of probabilities.
ROUNDING = 1e-6

Row = dict[str, Any]


@dataclass(frozen=True)
class AnswerRows:
    """Answer questions as one model; a row with a failed request is quarantined with its reason, never scored as wrong."""

    benchmarks: Mapping[str, Benchmark]
    model: str
    model_digest: str
    engine_digest: str

    def __call__(self, rows: Sequence[Row], engine: Engine) -> list[Row]:
        """Answer the rows: all their requests go to the engine together, then all their follow-ups."""
        asked = [(self.benchmarks[row[col.BENCHMARK]], Question.of_row(row)) for row in rows]
        results = ask(asked, engine)
        hashes = {
            name: col.digest([engine.template_hash, benchmark.provenance()]) for name, benchmark in self.benchmarks.items()
        }
        return [
            row | self._columns(benchmark, question, found) | {col.PROMPT_HASH: hashes[row[col.BENCHMARK]]}
            for row, (benchmark, question), found in zip(rows, asked, results, strict=True)
        ]

    def _columns(self, benchmark: Benchmark, question: Question, results: Sequence[Result]) -> Row:
        failures = sorted({result.reason for result in results if isinstance(result, Failure)})
        reading = Reading() if failures else benchmark.read(question, results)
        if problem := _unusable(reading):
            failures, reading = [problem], Reading()
        scores = {name: value for name, value in reading.scores.items() if value is not None}
        assert scores.keys() <= set(benchmark.metrics), f"{benchmark.kind} does not declare {scores.keys()}"
        if not failures and (cut := _cut(results)) is not None:
            scores[CUT] = float(cut)
        return {
            col.MODEL: self.model,
            col.MODEL_DIGEST: self.model_digest,
            col.ENGINE_DIGEST: self.engine_digest,
            col.PREDICTION: reading.prediction,
            col.EXTRACTED: list(reading.extracted.items()),
            col.SCORES: list(scores.items()),
            col.CONFIDENCE: reading.confidence,
            col.NLL_SUM: reading.nll_sum,
            col.TARGET_TOKENS: reading.target_tokens,
            col.STATUS: col.STATUS_QUARANTINED if failures else col.STATUS_OK,
            col.ERROR: "; ".join(failures) or None,
            col.PROMPT_TOKENS: sum(result.prompt_tokens for result in results),
            col.GENERATED_TOKENS: sum(result.generated_tokens for result in results),
        }


def _unusable(reading: Reading) -> str | None:
    """Name a number that no mean may have in it: one that is not finite, or a share, as the confidence is, outside [0, 1]."""
    shares = {"confidence", *(name for name in reading.scores if name in METRICS and METRICS[name].unit == "share")}
    for name, value in {**reading.scores, "confidence": reading.confidence, "nll_sum": reading.nll_sum}.items():
        if value is not None and not (isinstance(value, Real) and math.isfinite(value)):
            return f"benchmark: {name} is {value!r:.50}, not a finite number"
        if value is not None and name in shares and not -ROUNDING <= value <= 1 + ROUNDING:
            return f"benchmark: {name} is {value:g}, which is not in [0, 1]"
    return None


def _cut(results: Sequence[Result]) -> bool | None:
    """Tell whether the last answer reached max_new_tokens; None where the engine does not tell, or nothing was generated."""
    last = results[-1] if results else None
    reasons = last.finish_reasons if isinstance(last, CompletionResult) else ()
    return None if not reasons or reasons[0] is None else is_cut(reasons[0])


def ask(asked: Sequence[tuple[Benchmark, Question]], engine: Engine) -> list[list[Result]]:
    """Ask all questions, and what follows from the answers, until nothing does; a failure ends its question."""
    results: list[list[Result]] = [[] for _ in asked]
    requests = [list(benchmark.requests(question)) for benchmark, question in asked]
    while any(requests):
        found = run_once(engine, [request for own in requests for request in own])
        following: list[list[Request]] = []
        for (benchmark, question), own, known in zip(asked, requests, results, strict=True):
            known += [found[request] for request in own]
            failed = any(isinstance(result, Failure) for result in known)
            following.append([] if failed or not own else list(benchmark.follow_up(question, known)))
        requests = following
    return results
