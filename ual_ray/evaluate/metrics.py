"""From evaluated rows to figures: every figure with its n, its standard error and its direction. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from ual_ray.records import CORRECT_FLEXIBLE, CORRECT_STRICT, ID, NLL_SUM, SOURCE, TARGET_TOKENS

OVERALL = "overall"
NLL = "nll"
NLL_DIFFERENCE = "nll_difference"
EXACT_MATCH_STRICT = "exact_match_strict"
EXACT_MATCH_FLEXIBLE = "exact_match_flexible"

Direction = Literal["lower", "higher"]
DIRECTIONS: dict[str, Direction] = {
    NLL: "lower",
    NLL_DIFFERENCE: "lower",
    EXACT_MATCH_STRICT: "higher",
    EXACT_MATCH_FLEXIBLE: "higher",
}

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Figure:
    """One measured value: `metric` over the `n` rows of `source`; `standard_error` is None where n < 2.

    Of a difference, `source` names the model that is compared with.
    """

    metric: str
    source: str
    value: float
    standard_error: float | None
    n: int

    @property
    def direction(self) -> Direction:
        """Which way is better."""
        return DIRECTIONS[self.metric]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def figures(rows: Sequence[Row]) -> list[Figure]:
    """Measure NLL overall and by source, and exact match over the rows with a gold answer."""
    measured = [row for row in rows if row[NLL_SUM] is not None]
    by_source = {source: [row for row in measured if row[SOURCE] == source] for source in _sources(measured)}
    result = [negative_log_likelihood(measured, OVERALL)] if measured else []
    if len(by_source) > 1:
        result += [negative_log_likelihood(group, source) for source, group in by_source.items()]
    for metric, column in ((EXACT_MATCH_STRICT, CORRECT_STRICT), (EXACT_MATCH_FLEXIBLE, CORRECT_FLEXIBLE)):
        verdicts = [bool(row[column]) for row in rows if row[column] is not None]
        if verdicts:
            result.append(exact_match(verdicts, metric))
    return result


def negative_log_likelihood(rows: Sequence[Row], source: str) -> Figure:
    """Unsmoothed NLL in nats per token: sum over rows / number of tokens (lower is better).

    The standard error is that of a ratio estimator over rows, since the tokens of a row are not independent.
    """
    sums = [row[NLL_SUM] for row in rows]
    tokens = [row[TARGET_TOKENS] for row in rows]
    ratio = sum(sums) / sum(tokens)
    n = len(rows)
    residuals = [total - ratio * count for total, count in zip(sums, tokens, strict=True)]
    error = math.sqrt(n / (n - 1) * sum(r * r for r in residuals)) / sum(tokens) if n > 1 else None
    return Figure(NLL, source, ratio, error, n)


def nll_difference(rows: Sequence[Row], reference: Sequence[Row], name: str) -> Figure | None:
    """NLL per token minus that of the model `name` on the same rows, in nats (below 0 = better than that model).

    Paired by row, so that what makes a row hard for both drops out of the standard error. None without common rows.
    """
    known = {row[ID]: row[NLL_SUM] for row in reference if row[NLL_SUM] is not None}
    both = [row for row in rows if row[NLL_SUM] is not None and row[ID] in known]
    if not both:
        return None
    figure = negative_log_likelihood([{**row, NLL_SUM: row[NLL_SUM] - known[row[ID]]} for row in both], name)
    return replace(figure, metric=NLL_DIFFERENCE)


def exact_match(verdicts: Sequence[bool], metric: str) -> Figure:
    """Share of correct answers in [0, 1] (higher is better) with the standard error of a proportion."""
    n = len(verdicts)
    share = sum(verdicts) / n
    return Figure(metric, OVERALL, share, math.sqrt(share * (1 - share) / (n - 1)) if n > 1 else None, n)


def _sources(rows: Iterable[Row]) -> list[str]:
    return sorted({row[SOURCE] for row in rows})
