"""The result of an inspection of scores: plain values for the page, the terminal and JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from ual_ray.stats.score_quality import Correlation, Distribution, Noise, Quality


@dataclass(frozen=True)
class Score:
    """One column of scores: `missing` rows have no value; `parse_rate` is over the rows that got a reply (estimators only).

    The mappings are by source. `length` is the rank correlation with the response's length in characters. `mass`:
    probability of all choices together in the median row; `cut`: share of the sampled replies that were cut.
    """

    missing: int
    null_rate: float
    parse_rate: float | None
    distribution: Distribution | None
    by_source: dict[str, Distribution | None]
    noise: Noise | None
    length: Correlation
    length_by_source: dict[str, Correlation]
    mass: float | None = None
    cut: float | None = None


@dataclass(frozen=True)
class Labelled:
    """The labels file: its number of `labels`, the `rows` they match, and how many of these are `wrong`."""

    path: str
    labels: int
    rows: int
    wrong: int


@dataclass(frozen=True)
class Inspection:
    """All metrics of a folder of scored rows. `score_of`: the estimator that `uncertainty` was copied from, if any."""

    path: str
    rows: int
    sources: dict[str, int]
    shown_sources: list[str]
    statuses: dict[str, int]
    quarantined: int
    quarantined_share: float
    reasons: dict[str, int]
    truncated: int | None
    elicitors: list[str]
    prompt_hashes: list[str]
    estimators: list[str]
    score_of: str | None
    scores: dict[str, Score]
    agreement: list[Agreement]
    most_uncertain: dict[str, list[Shown]]
    least_uncertain: dict[str, list[Shown]]
    cost: Cost
    labelled: Labelled | None
    quality: dict[str, Quality]
    self_check: SelfCheckResult | None = None
    warnings: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """JSON-serializable values."""
        return asdict(self)


@dataclass(frozen=True)
class SelfCheckResult:
    """What the self-check found: of `rows`, `swapped` had another row's response; `estimators` tell them how well."""

    rows: int
    swapped: int
    estimators: dict[str, Quality]
    uncertainty: str
    reason: str


@dataclass(frozen=True)
class Agreement:
    """Spearman correlation of two columns of scores over the `n` rows with both values."""

    first: str
    second: str
    spearman: float | None
    n: int


@dataclass(frozen=True)
class Reply:
    """What the elicitor replied to one request of the estimators `about`: texts, shortened, or a line of numbers.

    hidden: number of texts left out.
    """

    about: str
    texts: list[str]
    hidden: int


@dataclass(frozen=True)
class Shown:
    """A displayed row: its `scores` by column, its last `messages` shortened, and the number of earlier ones left out.

    replies: the elicitor's, where they are kept.
    """

    id: str
    given_id: str | None
    score: float
    scores: dict[str, float | None]
    messages: list[dict[str, str]]
    earlier: int
    replies: list[Reply] = field(default_factory=list)


@dataclass(frozen=True)
class Cost:
    """The cost of the scores; tokens and calls are sums over rows, `money` is in the unit of the prices."""

    prompt_tokens: int | None
    generated_tokens: int | None
    calls: int | None
    tokens_per_row: float | None
    money: float | None
    seconds: float | None
    rows_per_second: float | None
