"""Results to hand to estimators, estimators on the built-in prompts, and what they make of the results."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from ual_ray.columns import Message
from ual_ray.elicit.estimators import ESTIMATORS
from ual_ray.elicit.estimators.contract import Sampling
from ual_ray.elicit.estimators.p_true import PTrue
from ual_ray.elicit.estimators.samples import SelfConsistency, SemanticEntropy
from ual_ray.elicit.estimators.verbalized import VerbalizedError
from ual_ray.elicit.grouping import Grouping
from ual_ray.elicit.prompts import load_prompts
from ual_ray.engines.requests import (
    ChoiceResult,
    CompletionResult,
    Failure,
    Result,
    overlong,
)

INF = math.inf
MIN_CHOICE_MASS = 0.01
PAIR = [Message(role="user", content="Say hi."), Message(role="assistant", content="Hi.")]
SUM = [Message(role="user", content="2 + 2?"), Message(role="assistant", content="2 + 2 = 4\n#### 4")]
ALL = tuple(ESTIMATORS)
NO_NUMBERS: list[Result] = [Failure("engine: fell over"), overlong(9, 8)]

SAMPLING = Sampling(count=8, temperature=1.0)

log_probability = st.one_of(st.floats(-1e4, 0), st.just(-INF))


def choice(*probabilities: float) -> ChoiceResult:
    return ChoiceResult(tuple(math.log(value) if value else -INF for value in probabilities), prompt_tokens=7)


def digits(**probabilities: float) -> ChoiceResult:
    """Build the result of ten digits: d3=0.5 gives the digit 3 the probability 0.5; the rest are impossible."""
    return choice(*(probabilities.get(f"d{digit}", 0.0) for digit in range(10)))


def said(*texts: str) -> CompletionResult:
    return CompletionResult(texts, prompt_tokens=7, generated_tokens=len(texts))


def reduce(estimator: Any, *results: Result, messages: Sequence[Message] = PAIR) -> tuple[float | None, float | None]:
    estimate = estimator.reduce(list(results), messages)
    return estimate.uncertainty, estimate.raw


def verbalized(lowest: int = 0, highest: int = 9, sampling: Sampling | None = None) -> VerbalizedError:
    return VerbalizedError(load_prompts(), lowest, highest, sampling)


def p_true(sampling: Sampling | None = None) -> PTrue:
    return PTrue(load_prompts(), sampling)


def self_consistency(grouping: Grouping | None = None, similarity: float = 0.7) -> SelfConsistency:
    return SelfConsistency(SAMPLING, grouping, similarity)


def semantic_entropy(grouping: Grouping | None = None) -> SemanticEntropy:
    return SemanticEntropy(SAMPLING, grouping, 0.7)


def number_of_results(estimator: Any) -> int:
    return 2 if isinstance(estimator, PTrue) else 1
