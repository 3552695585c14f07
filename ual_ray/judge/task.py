"""Judge a batch of pairs with one engine: which of two answers is better, in the order in which they are shown.

Runs inside an actor, or directly in a unit test.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ual_ray import columns as col
from ual_ray.columns import digest
from ual_ray.engines import Engine, run_once
from ual_ray.engines.readings import choice_shares, read_letter
from ual_ray.engines.requests import Choice, ChoiceResult, Completion, CompletionResult, Failure, Request, Result, Turns
from ual_ray.judge.pairs import EARLIER_CANDIDATE, EARLIER_REFERENCE
from ual_ray.judge.prompts import FIRST, LETTERS, load_judge_prompts

Row = dict[str, Any]

# A verdict is one letter; the limit leaves room for a judge that writes a few words first.
VERDICT_TOKENS = 8
# A sampled verdict is greedy at first; an unparsable one is retried at a higher temperature with another seed.
RETRIES = 2
RETRY_TEMPERATURE = 1.0
UNREADABLE = f"unparsable: the reply is neither {' nor '.join(LETTERS)}"


@dataclass
class _Verdict:
    """The probability that the reply shown first is the better one, in [0, 1] (None = unknown), and its cost."""

    first: float | None = None
    results: list[Result] = field(default_factory=list)


@dataclass(frozen=True)
class JudgeRows:
    """Add the verdict's columns of `columns.VERDICTS` to pairs (rows of `pairs.PAIRS`); without one a row is quarantined.

    `model` is the judge's name in the verdicts, `templates` a user's prompt file, `seed` the seed of retried verdicts.
    """

    model: str
    mode: Literal["logprobs", "sampled"] = "logprobs"
    templates: str | None = None
    engine_digest: str | None = None
    seed: int = 0

    def __call__(self, rows: Sequence[Row], engine: Engine) -> list[Row]:
        """Judge the rows, with all requests in one engine call."""
        prompts = load_judge_prompts(self.templates)
        asked = [prompts.compare(row[col.MESSAGES], *_in_order(row)) for row in rows]
        verdicts = [_Verdict() for _ in rows]
        for attempt in range(1 if self.mode == "logprobs" else 1 + RETRIES):
            waiting = [index for index, verdict in enumerate(verdicts) if _deserves(verdict)]
            requests = {index: self._request(asked[index], attempt) for index in waiting}
            results = run_once(engine, requests.values())
            for index, request in requests.items():
                verdicts[index].results.append(results[request])
                verdicts[index].first = probability_of_first(results[request])
        hashed = digest({"prompts": prompts.hash, "chat_template": engine.template_hash})
        return [
            row
            | {col.JUDGE: self.model, col.PROMPT_HASH: hashed, col.ENGINE_DIGEST: self.engine_digest}
            | _columns(row, verdict)
            for row, verdict in zip(rows, verdicts, strict=True)
        ]

    def _request(self, prompt: Turns, attempt: int) -> Request:
        if self.mode == "logprobs":
            return Choice(prompt, LETTERS)
        temperature = RETRY_TEMPERATURE if attempt else 0.0
        return Completion(prompt, VERDICT_TOKENS, temperature, seed=self.seed + attempt)


def probability_of_first(result: Result) -> float | None:
    """Parse a verdict: the probability that the reply shown first is better, in [0, 1]; None if unparsable.

    From log-probabilities P(m) / (P(m) + P(M)), unless both together are improbable; of a sampled verdict 0 or 1.
    """
    if isinstance(result, CompletionResult):
        (text,) = result.whole
        letter = None if text is None else read_letter(text, LETTERS)
        return None if letter is None else float(letter == FIRST)
    if isinstance(result, ChoiceResult):
        shares = choice_shares(result.log_probabilities)
        return None if shares is None else shares[0]
    return None


def preference_of_candidate(first: float, candidate_first: bool) -> float:
    """Preference in [1, 2], higher = the candidate's answer is better: 1 + the probability of the candidate's letter.

    Where the reference is shown first this is AlpacaEval's 2 - P(m) / (P(m) + P(M)).
    """
    return 1 + first if candidate_first else 2 - first


def _deserves(verdict: _Verdict) -> bool:
    """Whether to send a request (again): not after a verdict or an engine failure."""
    return verdict.first is None and not any(isinstance(result, Failure) for result in verdict.results)


def _in_order(row: Row) -> tuple[str, str]:
    candidate = (row.get(EARLIER_CANDIDATE) or "") + row[col.TEXT_CANDIDATE]
    reference = (row.get(EARLIER_REFERENCE) or "") + row[col.TEXT_REFERENCE]
    return (candidate, reference) if row[col.CANDIDATE_FIRST] else (reference, candidate)


def _columns(row: Row, verdict: _Verdict) -> Row:
    preference = None if verdict.first is None else preference_of_candidate(verdict.first, row[col.CANDIDATE_FIRST])
    last = verdict.results[-1]
    reason = last.reason if isinstance(last, Failure) else UNREADABLE
    return {
        col.PREFERENCE: preference,
        col.STATUS: col.STATUS_QUARANTINED if preference is None else col.STATUS_OK,
        col.ERROR: reason if preference is None else None,
        col.PROMPT_TOKENS: sum(result.prompt_tokens for result in verdict.results),
        col.GENERATED_TOKENS: sum(result.generated_tokens for result in verdict.results),
        col.CALLS: sum(result.calls for result in verdict.results),
    }
