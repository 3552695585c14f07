"""Comparisons of models where one lacks values: questions, seeds or scores that are missing, cut or not finite."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pytest
from compared_models import MATCH, ROLES, SEEDS, N, by_name, held_alone, ids, results, seeds, tokens

from ual_ray.stats.alignment import NOBODY
from ual_ray.stats.comparison import PRIMARY, Comparisons, compare_models, cut_reason, cut_shares
from ual_ray.stats.primary import settle


@pytest.mark.parametrize(
    ("mine", "theirs", "verdict"), [((4, 5), (4, 5), "better"), ((4, 5), (), "inconclusive"), ((), (4,), "inconclusive")]
)
def test_a_likelihood_that_one_model_lacks_leaves_no_verdict_on_the_others(
    mine: tuple[int, ...], theirs: tuple[int, ...], verdict: str
) -> None:
    """It may be any number: a model whose loss is not finite where it knows nothing would be judged by what it knows."""
    counted = {
        name: {seed: tokens(shift, seed + start, skip) for seed in SEEDS}
        for name, shift, start, skip in (("sft", 0.0, 10, theirs), ("ual", -0.1, 0, mine))
    }
    found, _ = settle(compare_models({"sft": seeds(0.0), "ual": seeds(0.1)}, ROLES, counted), ROLES)
    (first,) = [entry for entry in found.entries if entry.primary]
    assert (first.verdict, first.n) == (verdict, N - len({*mine, *theirs}))
    questions = N - len({*mine} & {*theirs})
    lacking, missing = ("ual", 2) if mine else ("sft", 1)
    why = f"{lacking} has no value on {missing} of {questions} questions; evaluate both on the same ones"
    assert first.reason == (None if verdict == "better" else why)


def test_rows_pair_by_id_whatever_their_order_and_what_one_lacks_is_left_out() -> None:
    whole, part = results(0.0, seed=2), results(-0.1, seed=3, skip=(0, 2, 4))
    entry = by_name(compare_models({"sft": {0: whole}, "ual": {0: part}}))["ual", "sft", "nll"]
    assert entry.n == N - 3
    only = results(-0.1, seed=3)
    none = only.set_column(only.schema.get_field_index("id"), "id", pa.array([f"other {i}" for i in range(len(only))]))
    assert compare_models({"sft": {0: whole}, "ual": {0: none}}).entries == ()


@pytest.mark.parametrize(
    ("theirs", "reason"),
    [
        (
            {seed: ids(results(seed=seed + 10), "x") for seed in SEEDS},
            "no question has values of every training of both, with 120 of ual and 120 of sft; evaluate both on the same ones",
        ),
        (
            {seed: ids(results(seed=seed + 10), "" if seed else "x") for seed in SEEDS},
            "no question has values of every training of both, with 120 of ual and 240 of sft; evaluate both on the same ones",
        ),
        ({seed: held_alone(results(seed=seed + 10)) for seed in SEEDS}, "sft has no values of it"),
        ({5: results(seed=15), 7: results(seed=17)}, "no training seed is there for both: 0, 1, 2 of ual, 5, 7 of sft"),
    ],
)
def test_a_primary_measure_that_cannot_be_computed_is_inconclusive_and_closes_the_next(theirs: Any, reason: str) -> None:
    counted = {
        name: {seed: tokens(shift, seed + start) for seed in (*SEEDS, *range(3, 9))}
        for name, shift, start in (("sft", 0.0, 20), ("ual", -0.1, 0))
    }
    models = {"sft": theirs, "ual": seeds(-0.1)}
    found, _ = settle(compare_models(models, ROLES, counted, primary=(MATCH, ".".join(PRIMARY))), ROLES)
    assert [(one.arm, one.reference, one.measure, one.reason) for one in found.absent] == [("ual", "sft", MATCH, reason)]
    (second,) = [entry for entry in found.entries if entry.primary]
    assert (second.metric, second.exploratory, second.verdict) == ("nll_adjusted", True, "inconclusive")
    assert Comparisons.from_dict(found.as_dict()) == found


def test_a_primary_measure_that_no_model_has_is_stated_and_closes_nothing() -> None:
    counted = {
        name: {seed: tokens(shift, seed + start) for seed in SEEDS}
        for name, shift, start in (("sft", 0.0, 20), ("ual", -0.1, 0))
    }
    models = {name: {seed: held_alone(own) for seed, own in seeds(0.0).items()} for name in ("sft", "ual")}
    found, _ = settle(compare_models(models, ROLES, counted, primary=(MATCH, ".".join(PRIMARY))), ROLES)
    assert [(one.measure, one.reason) for one in found.absent] == [(MATCH, NOBODY)]
    assert [entry.verdict for entry in found.entries if entry.primary] == ["better"]


def test_what_is_missing_of_one_reference_does_not_touch_the_family_of_another() -> None:
    """The untrained model was asked other questions: the arm's chain against plain SFT goes on."""
    models = {"base": {0: ids(results(0.4, seed=40), "x")}, "sft": seeds(0.0, 0.1, start=10), "ual": seeds(-0.1, 0.9)}
    found, _ = settle(compare_models(models, ROLES, primary=(MATCH,)), ROLES)
    assert {(one.arm, one.reference) for one in found.absent} == {("ual", "base"), ("sft", "base")}
    assert [(entry.reference, entry.verdict) for entry in found.entries if entry.primary] == [("sft", "better")]


def test_questions_that_are_not_paired_are_counted() -> None:
    whole, part = results(0.0, seed=2), results(-0.1, seed=3, skip=(0, 2, 4))
    entries = by_name(compare_models({"sft": {0: whole}, "ual": {0: part}}))
    assert (entries["ual", "sft", "nll"].n, entries["ual", "sft", "nll"].questions) == (N - 3, N)
    assert (entries["ual", "sft", "exact_match_strict"].n, entries["ual", "sft", "exact_match_strict"].questions) == (N, N)


def test_models_measured_on_other_benchmarks_are_no_pair() -> None:
    whole = results()
    held = whole.filter(pa.compute.equal(whole["benchmark"], "held_out"))
    found = compare_models({"sft": {0: whole}, "ual": {0: held}})
    assert {entry.benchmark for entry in found.entries} == {"held_out"}
    assert compare_models({"ual": {0: whole}}).entries == ()


@pytest.mark.parametrize("lacking", ["sft", "ual"])
def test_seeds_that_one_model_lacks_leave_no_verdict_on_the_others(lacking: str) -> None:
    """Those that diverged are the worst: with 3 of 8 seeds gone, 0.11 of comparisons without an effect gave a verdict."""
    models = {"base": {0: results(0.4, seed=20)}}
    for model, shift in (("sft", 0.0), ("ual", -0.1)):
        own = (0, 1, 2) if model == lacking else (0, 1, 2, 3)
        models[model] = {seed: results(shift, seed=seed + 10 * (model == "sft")) for seed in own}
    found = by_name(compare_models(models, ROLES))
    entry = found["ual", "sft", "nll"]
    assert (entry.verdict, entry.seeds, entry.allows_a_verdict) == ("inconclusive", 3, False)
    assert entry.reason == "the training seeds 3 are there for one of the two only"
    assert found["ual", "base", "nll"].verdict == "better", "the model before training is the same under every seed"


def cut(table: pa.Table, every: int) -> pa.Table:
    """Mark every so many answers as cut."""
    rows = table.to_pylist()
    for place, row in enumerate(row for row in rows if row["benchmark"] == "gsm8k"):
        row["scores"] = [*row["scores"], ("cut", float(place % every == 0))]
    return pa.Table.from_pylist(rows, schema=table.schema)


@pytest.mark.parametrize(("mine", "verdict"), [(10, "better"), (2, "inconclusive"), (1, "inconclusive")])
@pytest.mark.parametrize("alike", [False, True])
def test_scores_give_no_verdict_where_many_answers_are_cut_or_one_models_more_often(
    mine: int, verdict: str, alike: bool
) -> None:
    often = {"sft": mine if alike else 10, "ual": mine}
    models = {"sft": seeds(0.0, 0.2), "ual": seeds(0.0, 0.9, start=3)}
    marked = {model: {at: cut(table, often[model]) for at, table in by_seed.items()} for model, by_seed in models.items()}
    found = by_name(compare_models(marked, ROLES, resamples=500))
    assert ("ual", "sft", "cut") not in found, "neither way is better"
    entry = found["ual", "sft", "exact_match_strict"]
    # Half of the answers are not most of them.
    assert entry.verdict == ("better" if alike and mine == 2 else verdict)
    assert (entry.reason or "").endswith("of the answers were cut; raise max_new_tokens") == (entry.verdict != "better")


@pytest.mark.parametrize("seeds", [1, 3, 5, 8])
@pytest.mark.parametrize("less", [0, 1, 10, 15])
def test_shares_of_cut_answers_that_differ_by_5_points_differ_by_no_more(seeds: int, less: int) -> None:
    """The mean of three times 0.05 is 0.05000000000000001."""
    means = [float(np.mean([count / 100] * seeds)) for count in (less + 5, less)]
    assert cut_reason(*means) is cut_reason(*reversed(means)) is None
    assert cut_reason(means[0] + 0.001, means[1]) is not None


def test_the_share_of_cut_answers_is_over_seeds() -> None:
    shares = cut_shares({"ual": {0: cut(results(), 1), 1: cut(results(), N * 4)}, "sft": {0: results()}})
    assert shares.keys() == {("gsm8k", "ual")}
    assert shares["gsm8k", "ual"] == pytest.approx(0.5, abs=0.01)


def without_values(table: pa.Table, questions: int) -> pa.Table:
    """Let the answers to the first questions fail: there are rows, and no scores."""
    rows = table.to_pylist()
    for row in rows:
        if row["benchmark"] == "gsm8k" and int(row["id"][1:]) < questions:
            row["scores"] = []
    return pa.Table.from_pylist(rows, schema=table.schema)


@pytest.mark.parametrize(("failed", "verdict"), [(6, "better"), (7, "inconclusive"), (60, "inconclusive")])
def test_an_arm_without_values_on_many_questions_is_not_judged_by_the_others(failed: int, verdict: str) -> None:
    models = {"sft": seeds(0.0, 0.2), "ual": seeds(0.0, 0.9, start=3)}
    models["ual"][1] = without_values(models["ual"][1], failed)
    entry = by_name(compare_models(models, ROLES, resamples=500))["ual", "sft", "exact_match_strict"]
    assert entry.verdict == verdict
    if verdict != "better":
        assert entry.reason == f"ual has no value on {failed} of {N} questions; evaluate both on the same ones"


def test_infinite_and_missing_losses_are_missing_and_not_left_out_in_silence() -> None:
    """An arm that is better wherever its loss is finite."""
    models = {"sft": seeds(0.0), "ual": seeds(-0.3, start=3)}
    rows = models["ual"][0].to_pylist()
    for place, row in enumerate(rows):
        if row["benchmark"] == "held_out" and place % 3 == 0:
            row["nll_sum"] = [float("inf"), float("nan")][place % 2]
    models["ual"][0] = pa.Table.from_pylist(rows, schema=models["ual"][0].schema)
    entry = by_name(compare_models(models, ROLES, resamples=500))["ual", "sft", "nll"]
    assert entry.verdict == "inconclusive"
    assert "ual has no value on" in (entry.reason or "")
