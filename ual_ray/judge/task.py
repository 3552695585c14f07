"""Judge a batch of pairs with one engine: which of two answers is better, in the order in which they are shown.

Runs inside an actor, or directly in a unit test.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ual_ray import columns as col
from ual_ray.engines import Engine, run_once
from ual_ray.engines.reading import choice_probabilities
from ual_ray.engines.reply_text import CUT, Unread
from ual_ray.engines.requests import Choice, ChoiceResult, Completion, CompletionResult, Failure, Request, Result, Turns
from ual_ray.judge.pairs import EARLIER_CANDIDATE, EARLIER_REFERENCE, LETTERS, load_judge_prompts

Row = dict[str, Any]

# A sampled verdict is greedy at first; an unparsable one is retried at a higher temperature with another seed.
RETRIES = 2
RETRY_TEMPERATURE = 1.0


@dataclass
class _Verdict:
    """The probability that the reply shown first is the better one, in [0, 1], or why it is not known; and its cost."""

    first: float | Unread = Unread("unparsable: not judged")
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
    reply_tokens: int = 32
    thinking_tokens: int = 0
    min_choice_mass: float = 0.01

    def __call__(self, rows: Sequence[Row], engine: Engine) -> list[Row]:
        """Judge the rows, with all requests in one engine call."""
        prompts, asked = load_judge_prompts(self.templates), self.prompts(rows)
        verdicts = [_Verdict() for _ in rows]
        for attempt in range(1 if self.mode == "logprobs" else 1 + RETRIES):
            waiting = [index for index, verdict in enumerate(verdicts) if _deserves(verdict)]
            requests = {index: self._request(asked[index], attempt) for index in waiting}
            results = run_once(engine, requests.values())
            for index, request in requests.items():
                verdicts[index].results.append(results[request])
                shares = choice_probabilities(results[request], LETTERS, self.min_choice_mass)
                verdicts[index].first = shares if isinstance(shares, Unread) else shares[0]
        hashed = col.digest({"prompts": prompts.hash, "chat_template": engine.template_hash})
        return [
            row
            | {col.JUDGE: self.model, col.PROMPT_HASH: hashed, col.ENGINE_DIGEST: self.engine_digest}
            | _columns(row, verdict)
            for row, verdict in zip(rows, verdicts, strict=True)
        ]

    def prompts(self, rows: Sequence[Row]) -> list[Turns]:
        """Return the prompt about every pair."""
        prompts = load_judge_prompts(self.templates)
        return [prompts.compare(row[col.MESSAGES], *_in_order(row)) for row in rows]

    @property
    def longest_reply(self) -> int:
        """The most tokens that a verdict may take, with its thought."""
        return self.thinking_tokens + (1 if self.mode == "logprobs" and not self.thinking_tokens else self.reply_tokens)

    def _request(self, prompt: Turns, attempt: int) -> Request:
        if self.mode == "logprobs":
            return Choice(prompt, LETTERS, self.thinking_tokens)
        temperature, seed = RETRY_TEMPERATURE if attempt else 0.0, self.seed + attempt
        return Completion(prompt, self.reply_tokens, temperature, seed=seed, thinking=self.thinking_tokens, choices=LETTERS)


def preference_of_candidate(first: float, candidate_first: bool) -> float:
    """Preference in [1, 2], higher = the candidate's answer is better: 1 + the probability of the candidate's letter.

    Where the reference is shown first this is AlpacaEval's 2 - P(m) / (P(m) + P(M)).
    """
    return 1 + first if candidate_first else 2 - first


def _deserves(verdict: _Verdict) -> bool:
    """Whether to send a request (again): not after a verdict, a cut one, or an engine failure."""
    failed = any(isinstance(result, Failure) for result in verdict.results)
    return isinstance(verdict.first, Unread) and verdict.first != CUT and not failed


def _in_order(row: Row) -> tuple[str, str]:
    candidate = (row.get(EARLIER_CANDIDATE) or "") + row[col.TEXT_CANDIDATE]
    reference = (row.get(EARLIER_REFERENCE) or "") + row[col.TEXT_REFERENCE]
    return (candidate, reference) if row[col.CANDIDATE_FIRST] else (reference, candidate)


def _columns(row: Row, verdict: _Verdict) -> Row:
    unread = verdict.first if isinstance(verdict.first, Unread) else None
    preference = None
    if not isinstance(verdict.first, Unread):
        preference = preference_of_candidate(verdict.first, row[col.CANDIDATE_FIRST])
    last = verdict.results[-1]
    return {
        col.PREFERENCE: preference,
        col.MASS: last.mass if isinstance(last, ChoiceResult) else None,
        col.FINISH: last.replies[0][1] if isinstance(last, CompletionResult) else None,
        col.STATUS: col.STATUS_QUARANTINED if preference is None else col.STATUS_OK,
        col.ERROR: unread.reason if unread else None,
        col.PROMPT_TOKENS: sum(result.prompt_tokens for result in verdict.results),
        col.GENERATED_TOKENS: sum(result.generated_tokens for result in verdict.results),
        col.CALLS: sum(result.calls for result in verdict.results),
    }
