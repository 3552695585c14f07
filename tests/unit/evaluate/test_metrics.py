"""Figures by hand: NLL per token as a ratio, exact match, paired differences."""

from __future__ import annotations

import math
from typing import Any

import pytest

from ual_ray.evaluate.metrics import (
    EXACT_MATCH_FLEXIBLE,
    EXACT_MATCH_STRICT,
    NLL,
    OVERALL,
    figures,
    negative_log_likelihood,
    nll_difference,
)


def row(identity: str, nll: float | None, tokens: int | None, source: str = "s", correct: bool | None = None) -> dict[str, Any]:
    return {
        "id": identity,
        "source": source,
        "nll_sum": nll,
        "target_tokens": tokens,
        "correct_strict": correct,
        "correct_flexible": None if correct is None else True,
    }


def test_nll_is_per_token_and_not_per_row() -> None:
    figure = negative_log_likelihood([row("a", 10.0, 10), row("b", 10.0, 2)], OVERALL)
    assert figure.value == 20 / 12
    residuals = [10 - 10 * 20 / 12, 10 - 2 * 20 / 12]
    assert figure.standard_error == pytest.approx(math.sqrt(2 * sum(r * r for r in residuals)) / 12)
    assert (figure.n, figure.direction) == (2, "lower")


def test_figures_overall_and_by_source_and_a_failed_row_counts_nowhere() -> None:
    rows = [row("a", 4.0, 2, "x"), row("b", 6.0, 2, "y", True), row("c", 8.0, 2, "y", False), row("d", None, None, "y", None)]
    measured = {(figure.metric, figure.source): figure for figure in figures(rows)}
    assert measured[NLL, OVERALL].value == 3.0
    assert measured[NLL, "x"].value == 2.0
    assert measured[NLL, "x"].standard_error is None, "one row has no spread"
    assert measured[NLL, "y"].n == 2
    assert measured[EXACT_MATCH_STRICT, OVERALL].value == 0.5
    assert measured[EXACT_MATCH_STRICT, OVERALL].standard_error == pytest.approx(0.5)
    assert measured[EXACT_MATCH_FLEXIBLE, OVERALL].standard_error == 0.0


def test_no_rows_no_figures() -> None:
    assert figures([row("a", None, None)]) == []


def test_the_difference_is_paired_by_row() -> None:
    mine = [row("a", 11.0, 10), row("b", 102.0, 20), row("only mine", 5.0, 1)]
    reference = [row("b", 100.0, 20), row("a", 10.0, 10), row("failed", None, None)]
    difference = nll_difference(mine, reference, "sft")
    assert difference is not None
    assert difference.value == pytest.approx(3 / 30)
    assert difference.standard_error == pytest.approx(0.0, abs=1e-9), "both rows lose 0.1 nats per token"
    assert difference.n == 2
    assert difference.source == "sft"
    assert nll_difference(mine, [], "sft") is None
