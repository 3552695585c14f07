"""Figures by hand: NLL per token as a ratio, means of scores, what is missing, several seeds."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ual_ray import columns as col
from ual_ray.config.names import OVERALL
from ual_ray.stats.metrics import (
    CUT,
    EXACT_MATCH_STRICT,
    METRICS,
    NLL,
    MetricValue,
    measure,
    metric_of,
    negative_log_likelihood,
    over_seeds,
    scores,
)


def row(
    identity: str, nll: float | None, tokens: int | None, source: str | None = "s", **values: float | None
) -> dict[str, Any]:
    return {
        "id": identity,
        "benchmark": "held_out",
        "source": source,
        "nll_sum": nll,
        "target_tokens": tokens,
        "scores": list(values.items()),
    }


def table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=col.RESULTS)


def measured(rows: list[dict[str, Any]]) -> dict[tuple[str, str, str], MetricValue]:
    return {(figure.benchmark, figure.metric, figure.source): figure for figure in measure(table(rows))}


def test_nll_is_per_token_and_not_per_row() -> None:
    figure = negative_log_likelihood(np.array([10.0, 10.0]), np.array([10.0, 2.0]), "held_out")
    assert figure.value == 20 / 12
    residuals = [10 - 10 * 20 / 12, 10 - 2 * 20 / 12]
    assert figure.standard_error == pytest.approx(math.sqrt(2 * sum(r * r for r in residuals)) / 12)
    assert (figure.n, metric_of(figure.metric).direction, figure.source) == (2, "lower", OVERALL)


def test_figures_overall_and_by_source_and_a_failed_row_counts_nowhere() -> None:
    rows = [
        row("a", 4.0, 2, "x"),
        row("b", 6.0, 2, "y", exact_match_strict=1.0),
        row("c", 8.0, 2, "y", exact_match_strict=0.0),
        row("d", None, None, "y", exact_match_strict=None),
        row("e", 5.0, 0, "y"),
        row("f", math.nan, 3, "y", exact_match_strict=math.nan),
    ]
    found = measured(rows)
    assert found["held_out", NLL, OVERALL].value == 3.0
    assert found["held_out", NLL, "x"].value == 2.0
    assert found["held_out", NLL, "x"].standard_error is None, "one row has no spread"
    assert found["held_out", NLL, "y"].n == 2
    strict = found["held_out", EXACT_MATCH_STRICT, OVERALL]
    assert (strict.value, strict.n) == (0.5, 2)
    assert strict.standard_error == pytest.approx(0.5), "sqrt(p (1 - p) / (n - 1))"


def test_one_source_is_not_told_twice() -> None:
    assert list(measured([row("a", 4.0, 2), row("b", 4.0, 2)])) == [("held_out", NLL, OVERALL)]


def test_a_source_may_be_missing() -> None:
    found = measured([row("a", 4.0, 2, None), row("b", 8.0, 2, "x")])
    assert {key[2] for key in found} == {OVERALL, "None", "x"}


@pytest.mark.parametrize("source", [OVERALL, "None"])
def test_a_source_that_is_called_as_the_whole_or_as_a_missing_one_does_not_take_its_place(source: str) -> None:
    rows = [row("a", 1.0, 1, source), row("b", 5.0, 1, "t"), row("c", 9.0, 1, None)]
    found = measure(table(rows))
    assert len({figure.source for figure in found}) == len(found) == 4
    (overall,) = (figure for figure in over_seeds([found, found]) if figure.source == OVERALL)
    assert (overall.value, overall.n) == (5.0, 3)


def test_benchmarks_are_apart() -> None:
    rows = [row("a", 4.0, 2), {**row("b", None, None, accuracy=1.0), "benchmark": "arc"}]
    found = measured(rows)
    assert set(found) == {("held_out", NLL, OVERALL), ("arc", "accuracy", OVERALL)}
    assert found["arc", "accuracy", OVERALL].standard_error is None


def test_no_rows_no_figures() -> None:
    assert measure(table([])) == []
    assert measure(table([row("a", None, None)])) == []


SCORE = st.dictionaries(st.sampled_from(["p", "q", "r"]), st.none() | st.floats(-1, 1) | st.just(math.nan))


@pytest.mark.slow
@given(st.lists(st.none() | SCORE, max_size=12), st.integers(0, 5), st.integers(1, 4))
def test_the_map_column_reads_as_its_rows_say(maps: list[dict[str, float | None] | None], cut: int, chunk: int) -> None:
    whole = pa.table(
        {"scores": pa.array([None if m is None else list(m.items()) for m in maps], col.RESULTS.field("scores").type)}
    )
    parts = [whole.slice(start, chunk) for start in range(0, len(whole), chunk)] or [whole]
    found = scores(pa.concat_tables(parts).slice(cut))
    rows = [m or {} for m in maps[cut:]]
    for name in "pqr":
        expected = [math.nan if row.get(name) is None else row[name] for row in rows]
        if name in found:
            np.testing.assert_array_equal(found[name], np.array(expected, dtype=float))
        else:
            assert all(math.isnan(value or 0.0) if value is not None else True for value in expected)


def test_a_null_map_hides_what_lies_below_it() -> None:
    kind = col.RESULTS.field("scores").type
    entries = pa.array([[("p", 1.0)], [("p", 2.0)]], kind)
    hidden = pa.MapArray.from_arrays(entries.offsets, entries.keys, entries.items, mask=pa.array([True, False]))
    np.testing.assert_array_equal(scores(pa.table({"scores": hidden}))["p"], [math.nan, 2.0])


def test_every_metric_has_a_label_and_unknown_ones_no_direction() -> None:
    assert {name for name, metric in METRICS.items() if metric.direction is None} == {CUT}
    assert {metric_of(name).direction for name in ("nll", "ece_width", "brier", "aurc", "nc1")} == {"lower"}
    assert {metric_of(name).direction for name in ("accuracy", "win_rate", "auroc", "silhouette")} == {"higher"}
    assert metric_of("f1_score").direction is None and metric_of("f1_score").label == "f1 score"


def test_several_seeds_by_hand() -> None:
    first, second = MetricValue("b", "accuracy", OVERALL, 0.4, 0.1, 20), MetricValue("b", "accuracy", OVERALL, 0.6, 0.1, 18)
    (both,) = over_seeds([[first], [second]])
    assert both.value == 0.5 and both.n == 18
    assert both.standard_error == pytest.approx(math.sqrt(0.1**2 + 0.02 / 2)), "the questions' own error does not shrink"
    assert over_seeds([[first]]) == [first]
