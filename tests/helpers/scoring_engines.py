"""Engines that count what they are asked, rows to score with them, and settings."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from ual_ray.columns import Message
from ual_ray.config import ElicitConfig, EngineConfig
from ual_ray.elicit.estimators import ESTIMATORS
from ual_ray.engines import EngineSpec, make_engine
from ual_ray.engines.requests import (
    Choice,
    ChoiceResult,
    Completion,
    Failure,
    Likelihood,
    Request,
    Result,
)

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
