"""Comparisons of models: which pairs there are, what pairs by id, verdicts after Holm, several seeds."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from compared_models import ROLES, SEEDS, N, by_name, results, seeds, tokens

from ual_ray import columns as col
from ual_ray.stats.alignment import COLUMNS
from ual_ray.stats.bootstrap import Estimate, bootstrap, holm, resampled_sums
from ual_ray.stats.comparison import (
    PRIMARY,
    Comparisons,
    compare_models,
    groups_of,
    pairs_of,
    role_of,
)
from ual_ray.stats.metrics import measure
from ual_ray.stats.primary import settle
from ual_ray.stats.results import token_sums


def test_every_pair_once_and_the_reference_is_the_plainer_one() -> None:
    assert pairs_of({name: ROLES[name] for name in ("base", "constant", "sft", "shuffled", "ual")}) == [
        *(("ual", "sft"), ("ual", "constant"), ("ual", "shuffled"), ("constant", "sft"), ("shuffled", "sft")),
        *(("ual", "base"), ("constant", "base"), ("shuffled", "base"), ("sft", "base")),
    ]
    models = {name: {0: results(seed=place)} for place, name in enumerate(("base", "constant", "sft", "shuffled", "ual"))}
    found = compare_models(models, ROLES, resamples=200)
    assert len([entry for entry in found.entries if entry.metric == "nll"]) == 9
    assert [len(group) for group in groups_of(found.entries)] == [5, 4, 5, 4], "those with base have scales of their own"


def test_arms_are_told_apart_by_what_they_do() -> None:
    roles = {
        "mine": role_of("mean_matched"),
        "baseline": role_of("none"),
        "control": role_of("shuffled"),
        "base": ROLES["base"],
    }
    assert pairs_of(roles)[:3] == [("mine", "baseline"), ("mine", "control"), ("control", "baseline")]
    assert role_of("none", loss="dft") == "control"
    assert role_of("none", loss="sft") == "sft"
    assert role_of("none", weight="filter") == role_of("constant", weight="certainty") == "ual"
    assert [role_of(name) for name in ("linear", "constant", "inverted", "gone", None)] == [
        *("ual", "control", "control", "unknown", "unknown")
    ]
    # What they did: one alpha for all rows, or none.
    assert role_of("linear", alphas=(0.1, 0.1)) == "control" and role_of("linear", alphas=(0.0, 0.1)) == "ual"
    assert role_of("mean_matched", alphas=(0.0, 0.0)) == role_of("constant", alphas=(0.0, 0.0)) == "sft"
    assert role_of("linear", "certainty", alphas=(0.1, 0.1)) == "ual" and role_of("shuffled", alphas=(0.1, 0.1)) == "control"
    assert pairs_of({"one": "unknown", "two": "unknown", "base": "base"}) == [("two", "one"), ("one", "base"), ("two", "base")]


def test_the_primary_measure_comes_from_the_tokens_and_raw_nll_is_never_primary() -> None:
    models = {"sft": seeds(0.0), "ual": seeds(0.1)}
    assert not any(entry.primary for entry in compare_models(models, ROLES, resamples=200).entries)
    mine = {seed: tokens(-0.1, seed) for seed in SEEDS}
    theirs = {seed: tokens(0.0, seed + 10) for seed in SEEDS}
    found, _ = settle(compare_models(models, ROLES, {"sft": theirs, "ual": mine}), ROLES)
    assert [(entry.benchmark, entry.metric) for entry in found.entries if entry.primary] == [PRIMARY]
    first = found.entries[0]
    assert (first.metric, first.verdict, first.n, first.seeds) == ("nll_adjusted", "better", N, 3)
    expected = [np.mean(mine[seed]["adjusted_nll"].to_numpy()) - np.mean(theirs[seed]["adjusted_nll"]) for seed in SEEDS]
    assert first.difference == pytest.approx(np.mean(expected))
    entries = by_name(found)
    assert entries["ual", "sft", "nll"].verdict == "worse", "the raw NLL is shown"
    assert entries["ual", "sft", "nll"].n == N
    assert entries["ual", "sft", "token_brier"].difference == entries["ual", "sft", "token_accuracy"].difference == 0


def test_the_report_records_the_measures_with_their_digest() -> None:
    named = Comparisons((), 0.95, 100, 0, ("gsm8k.exact_match_strict", ".".join(PRIMARY))).as_dict()["primary"]
    assert named["measures"] == ["gsm8k.exact_match_strict", "held_out.nll_adjusted"]
    assert named["digest"] == col.digest(named["measures"]) != col.digest(named["measures"][::-1])


def test_tokens_without_an_adjustment_give_no_primary_measure() -> None:
    bare = tokens(0.0, 1).drop_columns(["adjusted_nll"])
    ids, sums = token_sums(bare)
    assert sorted(sums) == ["token_accuracy", "token_brier"]
    assert sums["token_accuracy"][ids.index("h0").as_py()].tolist() == [2, 3]


def test_the_scaled_nll_is_paired_by_question_and_decides_where_it_is_named() -> None:
    counted = {
        name: {seed: tokens(shift, seed + start).rename_columns(renamed) for seed in SEEDS}
        for name, shift, start in (("sft", 0.0, 0), ("ual", -0.1, 9))
        for renamed in [{"adjusted_nll": "scaled_nll", "scaled_nll": "adjusted_nll"}]
    }
    models = {"sft": seeds(0.0), "ual": seeds(0.1)}
    found, _ = settle(compare_models(models, ROLES, counted, primary=("held_out.nll_scaled",)), ROLES)
    (first,) = [entry for entry in found.entries if entry.primary]
    assert (first.metric, first.verdict, first.n, first.seeds) == ("nll_scaled", "better", N, 3)


def test_verdicts_in_words_and_a_null_is_there_like_a_win() -> None:
    models = {"base": {0: results(0.5, 0.2, 1)}, "sft": seeds(0.0, 0.5), "ual": seeds(-0.1, 0.5), "bad": seeds(0.1, 0.1)}
    found = by_name(compare_models(models, ROLES))
    assert found["ual", "sft", "nll"].verdict == "better"
    assert found["bad", "sft", "nll"].verdict == "worse"
    assert found["bad", "sft", "exact_match_strict"].verdict == "worse"
    null = found["ual", "sft", "exact_match_strict"]
    assert (null.verdict, null.difference, null.p_value, null.n) == ("inconclusive", 0.0, 1.0, N)


def test_one_or_two_trainings_say_nothing_about_the_method() -> None:
    for number in (1, 2):
        models = {name: dict(list(seeds(shift).items())[:number]) for name, shift in (("sft", 0.0), ("ual", -0.3))}
        entry = by_name(compare_models(models, ROLES))["ual", "sft", "nll"]
        assert (entry.seeds, entry.verdict) == (number, "inconclusive")


@pytest.mark.slow
def test_those_with_the_untrained_model_and_the_primary_ones_are_families_of_their_own() -> None:
    models = {name: {0: results(shift, seed=place)} for place, (name, shift) in enumerate({"sft": 0.0, "ual": -0.004}.items())}
    counted = {"sft": {0: tokens(0.0, 1)}, "ual": {0: tokens(-0.004, 2)}, "base": {0: tokens(0.5, 3)}}
    alone = by_name(compare_models(models, ROLES, counted))["ual", "sft", PRIMARY[1]]
    more = by_name(compare_models(models | {"base": {0: results(0.5, seed=9)}}, ROLES, counted))["ual", "sft", PRIMARY[1]]
    assert more.p_holm == alone.p_holm == alone.p_value


def plain_bootstrap(columns: list[list[float]]) -> Estimate:
    stacked = np.column_stack(columns)
    return bootstrap(stacked, resampled_sums(stacked, 2000, 5), 0.95)


@pytest.mark.slow
def test_the_numbers_are_those_of_the_plain_functions() -> None:
    mine, theirs = results(-0.01, 0.6, 1), results(0.0, 0.5, 2)
    found = compare_models({"sft": {0: theirs}, "ual": {0: mine}}, ROLES, resamples=2000, seed=5)
    entries = by_name(found)
    nll = entries["ual", "sft", "nll"]
    a, b = ({row["id"]: row for row in table.to_pylist() if row["benchmark"] == "held_out"} for table in (mine, theirs))
    ids = sorted(a)
    columns = [[side[key][name] for key in ids] for side in (a, b) for name in ("nll_sum", "target_tokens")]
    plain = plain_bootstrap(columns)
    assert (nll.difference, nll.ci_low, nll.ci_high) == pytest.approx((plain.difference, plain.ci_low, plain.ci_high))
    assert nll.p_value == plain.p_value
    assert nll.difference == pytest.approx(
        next(f.value for f in measure(mine) if f.metric == "nll") - next(f.value for f in measure(theirs) if f.metric == "nll")
    )
    c, d = (
        {row["id"]: dict(row["scores"]) for row in table.to_pylist() if row["benchmark"] == "gsm8k"} for table in (mine, theirs)
    )
    right = [[side[key]["exact_match_strict"] for key in sorted(c)] for side in (c, d)]
    strict = plain_bootstrap([right[0], [1.0] * N, right[1], [1.0] * N])
    match = entries["ual", "sft", "exact_match_strict"]
    assert (match.difference, match.ci_low) == pytest.approx((strict.difference, strict.ci_low))


def test_a_score_without_a_direction_is_not_judged() -> None:
    table = pa.Table.from_pylist(
        [{"id": str(i), "benchmark": "b", "source": "s", "scores": [("f1_score", i / 9)]} for i in range(9)], schema=col.RESULTS
    )
    assert compare_models({"sft": {0: table}, "ual": {0: table}}).entries == ()


def test_seeds_pair_with_each_other_and_base_with_all_of_them() -> None:
    arms = {seed: results(-0.1, seed=seed) for seed in (1, 2, 3)}
    references = {seed: results(0.0, seed=seed + 10) for seed in (1, 3, 2)}
    found = by_name(compare_models({"base": {0: results(0.4, seed=20)}, "sft": references, "ual": arms}, ROLES))
    assert found["ual", "sft", "nll"].seeds == found["ual", "base", "nll"].seeds == 3
    assert found["ual", "sft", "nll"].n == N
    assert found["ual", "sft", "nll"].verdict == found["ual", "base", "nll"].verdict == "better"


@pytest.mark.slow
def test_a_large_family_gets_resamples_that_can_survive_it() -> None:
    models = {"sft": seeds(0.0)} | {f"arm{i}": seeds(-0.3, start=i + 2) for i in range(20)}
    found = compare_models(models, {"sft": "sft"} | {f"arm{i}": "ual" for i in range(20)}, resamples=100)
    assert len(found.entries) == 40
    assert found.resamples == 3200
    assert all(entry.verdict == "better" for entry in found.entries if entry.metric == "nll")
    np.testing.assert_allclose([entry.p_holm for entry in found.entries], holm([entry.p_value for entry in found.entries]))


def test_it_reads_what_it_wrote() -> None:
    found = compare_models({"sft": {0: results(seed=1)}, "ual": {0: results(seed=2)}}, level=0.9, resamples=200, seed=3)
    content = found.as_dict()
    assert len(content["comparisons"]) == 2
    assert (content["level"], content["resamples"], content["seed"]) == (0.9, 200, 3)
    assert Comparisons.from_dict(content) == found


def test_a_minus_before_zero_changes_nothing() -> None:
    table = results(right=0.0)
    rows = table.to_pylist()
    for row in rows:
        row["scores"] = [(name, -value) for name, value in row["scores"]]
    entry = by_name(compare_models({"sft": {0: table}, "ual": {0: pa.Table.from_pylist(rows, schema=table.schema)}}, ROLES))
    found = entry["ual", "sft", "exact_match_strict"]
    assert (found.difference, found.p_value, str(found.ci_low)) == (0, 1, "0.0")


def test_one_constant_difference_in_a_few_questions_is_not_certain() -> None:
    """No variance at all, neither between seeds nor over questions."""
    for n, verdict in ((5, "inconclusive"), (60, "better")):
        models = {name: {number: results(right=right, n=n) for number in SEEDS} for name, right in (("sft", 0.0), ("ual", 1.0))}
        entry = by_name(compare_models(models, ROLES))["ual", "sft", "exact_match_strict"]
        assert (entry.error, entry.verdict) == (0.0, verdict)
        assert entry.p_value == 2.0 ** (1 - n)


@pytest.mark.parametrize("others", [1.0, -1.0])
def test_a_question_with_almost_all_tokens_decides_nothing_alone(others: float) -> None:
    """Half of the small questions are for each side."""
    tables = {}
    for name, shift in (("sft", 0.0), ("ual", -0.5)):
        rows = [
            {
                **{"id": f"h{place}", "benchmark": "held_out", "target_tokens": 10**6 if place == 0 else 10},
                "nll_sum": 10**6 * (2 + shift) if place == 0 else 10 * (2 + shift * (-1) ** place * others),
            }
            for place in range(N)
        ]
        tables[name] = dict.fromkeys(SEEDS, pa.Table.from_pylist(rows, schema=col.RESULTS).select(COLUMNS))
    entry = by_name(compare_models(tables, ROLES))["ual", "sft", "nll"]
    assert entry.difference == pytest.approx(-0.5, abs=0.01)
    assert entry.verdict == "inconclusive"
