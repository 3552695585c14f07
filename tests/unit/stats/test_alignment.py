"""Questions that are there twice, and training seeds that are copies of one training."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ual_ray import columns as col
from ual_ray.errors import UserError
from ual_ray.stats.alignment import COLUMNS, align, copied_seeds

N = 40


def results(seed: int, right: float = 0.5, likelihoods: bool = True) -> pa.Table:
    random = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for place in range(N):
        rows.append(
            {"id": f"g{place}", "benchmark": "gsm8k", "scores": [("exact_match_strict", float(random.random() < right))]}
        )
        if likelihoods:
            held = {"id": f"h{place}", "benchmark": "held_out", "target_tokens": 5, "scores": []}
            rows.append({**held, "nll_sum": float(random.gamma(4))})
    return pa.Table.from_pylist(rows, schema=col.RESULTS).select(COLUMNS)


def tokens(seed: int) -> pa.Table:
    random = np.random.default_rng(seed)
    rows = [{"id": f"h{place // 2}", "adjusted_nll": float(random.gamma(4)), "brier": 0.5} for place in range(2 * N)]
    return pa.Table.from_pylist(rows, schema=col.TOKEN_STATISTICS)


def shuffled(table: pa.Table) -> pa.Table:
    return table.take(np.random.default_rng(1).permutation(len(table)))


def test_a_question_that_is_there_twice_is_an_error() -> None:
    twice = pa.concat_tables([results(0), results(0).slice(0, 3)])
    with pytest.raises(UserError, match="2 repeated ids among 42 rows") as error:
        align({"sft": {0: results(1)}, "ual": {7: twice}}, {})
    assert "the results of 'ual' on gsm8k have questions twice, with the training seed 7" in str(error.value)


def test_one_id_in_two_benchmarks_is_two_questions() -> None:
    rows = [{"id": "a", "benchmark": name, "scores": [("accuracy", 1.0)]} for name in ("one", "two")]
    table = pa.Table.from_pylist(rows, schema=col.RESULTS).select(COLUMNS)
    assert align({"sft": {0: table}}, {}).keys() == {"one", "two"}


def test_seeds_with_the_results_of_another_are_copies_whatever_the_order_of_their_rows() -> None:
    models = {"ual": {0: results(0), 1: shuffled(results(0)), 2: results(2), 3: results(2)}, "sft": {0: results(0)}}
    assert copied_seeds(models, {}) == {"ual": {1: 0, 3: 2}}


@pytest.mark.parametrize("part", ["answers", "tokens"])
def test_one_likelihood_that_is_equal_makes_no_copy_while_another_differs(part: str) -> None:
    rows = {"ual": {0: results(0), 1: results(0 if part == "answers" else 1)}}
    counted = {"ual": {0: tokens(0), 1: tokens(0 if part == "tokens" else 1)}}
    assert copied_seeds(rows, counted) == {}


def test_what_one_of_two_seeds_lacks_hides_no_copy() -> None:
    rows = {"ual": {0: results(0), 1: results(0), 2: results(2)}}
    assert copied_seeds(rows, {"ual": {0: tokens(0), 2: tokens(0)}}) == {"ual": {1: 0}}


def test_equal_scores_alone_may_be_chance() -> None:
    """Of 40 questions with two right answers, two trainings easily have the same two right."""
    same = {number: results(4, right=0.05, likelihoods=False) for number in range(3)}
    assert copied_seeds({"ual": same}, {}) == {}


def test_one_model_that_answered_under_several_seeds_is_one_training_whatever_was_measured() -> None:
    """As by `ual evaluate MODEL --name ual seed=1`, without likelihoods; sampled answers even differ."""
    answers = {seed: results(seed, likelihoods=False) for seed in range(4)}
    digests = {"ual": {0: "a", 1: "b", 2: "a"}, "base": {0: "c", 1: "c"}}
    assert copied_seeds({"ual": answers, "base": {0: results(0), 1: results(0)}}, {}, digests) == {"ual": {2: 0}}


def test_equal_scores_beside_other_likelihoods_are_no_copies() -> None:
    assert (
        copied_seeds({"ual": {0: results(0, right=0.0), 1: results(1, right=0.0)}}, {"ual": {0: tokens(0), 1: tokens(1)}}) == {}
    )


def test_the_model_before_training_is_the_same_under_every_seed() -> None:
    assert copied_seeds({"base": {0: results(0), 1: results(0)}}, {}) == {}


def test_kinds_of_missing_values_do_not_hide_a_copy() -> None:
    rows = results(0).to_pylist()
    next(row for row in rows if row["nll_sum"] is not None)["nll_sum"] = None
    other = [row | {"nll_sum": math.nan if row["nll_sum"] is None and row["target_tokens"] else row["nll_sum"]} for row in rows]
    first, second = (pa.Table.from_pylist(found, schema=results(0).schema) for found in (rows, other))
    assert copied_seeds({"ual": {0: first, 1: second}}, {}) == {"ual": {1: 0}}
