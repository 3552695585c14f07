"""What an estimator declares, and what it returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

from ual_ray.columns import Messages
from ual_ray.config import ElicitConfig
from ual_ray.engines.requests import Request, Result


@dataclass(frozen=True)
class Estimate:
    """`uncertainty` in [0, 1], higher = more uncertain; `raw` in the estimator's own unit; None where it failed.

    `reason` states why it failed, its kind first ('cut: ...'); None where a Failure among the results states it.
    """

    uncertainty: float | None
    raw: float | None
    reason: str | None = None


MISSING = Estimate(None, None)


def missing(reason: str) -> Estimate:
    """Make the estimate of a pair that could not be measured."""
    return Estimate(None, None, reason)


class Estimator(ABC):
    """One way to measure how uncertain the elicitor is of a pair; subclasses are values (frozen dataclasses) and pure.

    summary: one sentence for the reports. needs_likelihood: it asks for the likelihood of a given text, which a server does
    not return. min_samples: the smallest elicit.samples that it works with. shows_more: its requests show the elicitor the
    reference answer of data.reference and the examples of elicit.examples.
    """

    summary: ClassVar[str]
    needs_likelihood: ClassVar[bool] = False
    min_samples: ClassVar[int] = 1
    shows_more: ClassVar[bool] = False

    @classmethod
    @abstractmethod
    def build(cls, config: ElicitConfig, seed: int) -> Self:
        """Build the estimator from the configuration. Raises UserError for settings that it cannot use."""

    @abstractmethod
    def requests(self, messages: Messages, attempt: int = 0) -> Sequence[Request]:
        """Return the requests about a pair; another attempt differs in its seeds alone."""

    @abstractmethod
    def reduce(self, results: Sequence[Result], messages: Messages) -> Estimate:
        """Turn the results, in the order of the requests, into an estimate; MISSING where a result is a Failure."""


def clip(value: float) -> float:
    """Clip rounding errors to [0, 1]."""
    return min(1.0, max(0.0, value))
