"""Verdicts on win rates: several references in their order, seeds, and cut answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from bench_scripts import script
from scipy import stats

from ual_ray import columns as col
from ual_ray.config.files import write_json
from ual_ray.parquet import content_digest, write_rows
from ual_ray.report.caveats import absent_lines
from ual_ray.report.comparable import is_current
from ual_ray.report.findings import Findings
from ual_ray.report.judged import judged_verdicts, settled
from ual_ray.run.stage_cache import STARTED_FILE
from ual_ray.stats.comparison import Comparisons, Role
from ual_ray.stats.metrics import CUT, MetricValue

null = script("null_table")
ROLES: dict[str, Role] = {"base": "base", "sft": "sft", "shuffled": "control", "ual": "ual"}


def judged(candidate: str, reference: str, low: float | None, high: float | None) -> dict[str, Any]:
    rate = {"length_controlled_win_rate": None if low is None or high is None else (low + high) / 2, "n": 120, "n_valid": 120}
    rate |= {"longer": 0.5}
    rates = {"overall": rate | {"length_controlled_low": low, "length_controlled_high": high, "win_rate": 90.0}}
    return {"candidate": candidate, "reference": reference, "win_rates": rates, "benchmarks": ["chat"], "judge": "big"}


def findings(*contents: dict[str, Any], seeds: int = 3) -> Findings:
    by_pair = {f"{content['candidate']}-vs-{content['reference']}": content for content in contents}
    # Three seeds answered, and so many of them were judged.
    folders = {"judged": {pair: [f"seed-{seed}" for seed in range(seeds)] for pair in by_pair}}
    answered = dict.fromkeys(ROLES, 3)
    return Findings({}, Comparisons((), 0.95, 1, 0), ROLES, seeds=answered, win_rates=by_pair, folders=folders)


def verdicts(found: Findings) -> list[tuple[str, str]]:
    return [(verdict.rate.reference, verdict.verdict) for verdict in judged_verdicts(found)]


@pytest.mark.parametrize(
    ("shuffled", "sft", "expected"),
    [
        ((51, 59), (52, 60), ["better", "better"]),
        ((51, 59), (40, 49), ["better", "worse"]),
        ((49, 59), (52, 60), ["inconclusive", "inconclusive"]),
        ((50, 59), (52, 60), ["inconclusive", "inconclusive"]),
    ],
)
def test_controls_come_first_and_a_later_reference_needs_a_conclusive_earlier_one(
    shuffled: tuple[float, float], sft: tuple[float, float], expected: list[str]
) -> None:
    found = findings(judged("ual", "sft", *sft), judged("ual", "shuffled", *shuffled))
    assert verdicts(found) == [*zip(["shuffled", "sft"], expected, strict=True)]


def test_the_reason_of_a_test_that_was_not_made_is_given() -> None:
    first, second = judged_verdicts(findings(judged("ual", "sft", 52, 60), judged("ual", "shuffled", 49, 59)))
    assert first.sentence() == "ual is inconclusive against shuffled: 54.0% [49.0, 59.0], 120 of 120 pairs, 3 training seeds"
    assert second.sentence().endswith("3 training seeds; not tested, as shuffled comes first")


def test_pairs_that_were_not_judged_are_named_where_win_rates_decide() -> None:
    rates = findings(judged("ual", "sft", 52, 60))
    assert settled(rates).absent == (), "win rates are not among the measures that decide"
    primary = replace(rates.comparisons, primary=("win_rate",))
    assert absent_lines(settled(replace(rates, comparisons=primary))) == [
        "win_rate is inconclusive for ual - shuffled: their answers were not judged against each other; judge.against names "
        "what all are judged against."
    ]
    none = absent_lines(settled(replace(rates, comparisons=primary, win_rates={})))
    assert none == ["win_rate is inconclusive for ual - sft, ual - shuffled: no model has it."]


def test_fewer_than_three_seeds_and_a_missing_rate_give_no_verdict() -> None:
    (few,) = judged_verdicts(findings(judged("ual", "sft", 80, 90), seeds=2))
    assert (few.verdict, few.reason) == ("inconclusive", "a verdict needs 3 seeds")
    five = replace(findings(judged("ual", "sft", 80, 90), seeds=4), seeds={"sft": 4, "ual": 5})
    assert judged_verdicts(five)[0].reason == "a verdict needs 5 seeds", "one of the arm was not judged"
    (missing,) = judged_verdicts(findings(judged("ual", "sft", None, None)))
    assert missing.verdict == "inconclusive" and "no win rate at equal lengths" in missing.sentence()


@pytest.mark.parametrize(
    ("shares", "verdict"), [((0.9, 0.9), "inconclusive"), ((0.1, 0.2), "inconclusive"), ((0.1, 0.14), "better")]
)
def test_different_shares_of_cut_answers_give_no_verdict(shares: tuple[float, float], verdict: str) -> None:
    metrics = {
        model: [MetricValue("chat", CUT, "overall", share, None, 9)]
        for model, share in zip(("ual", "sft"), shares, strict=True)
    }
    (found,) = judged_verdicts(replace(findings(judged("ual", "sft", 80, 90)), metrics=metrics))
    assert found.verdict == verdict


def test_only_arms_by_uncertainty_and_the_deciding_judge_are_tested() -> None:
    others = {"others": {"small": judged("ual", "sft", 10, 20)}}
    found = findings(judged("ual", "sft", 80, 90) | others, judged("shuffled", "sft", 80, 90), judged("base", "sft", 1, 2))
    assert [(x.rate.arm, x.rate.judge, x.verdict) for x in judged_verdicts(found)] == [("ual", "big", "better")]


def test_a_pair_that_was_judged_with_the_ual_arm_as_the_reference_counts_the_other_way_round() -> None:
    (found,) = judged_verdicts(findings(judged("sft", "ual", 68, 72)))
    assert (found.rate.arm, found.rate.reference, found.verdict) == ("ual", "sft", "worse")
    assert (found.rate.controlled.low, found.rate.controlled.value, found.rate.controlled.high) == (28, 30, 32)


@pytest.mark.parametrize("lacking", ["benchmarks", "longer"])
def test_a_judging_by_an_older_version_gives_no_verdict(lacking: str) -> None:
    content = judged("ual", "sft", 80, 90)
    (content if lacking == "benchmarks" else content["win_rates"]["overall"]).pop(lacking)
    (found,) = judged_verdicts(findings(content))
    assert found.verdict == "inconclusive" and "did not record benchmarks or lengths" in (found.reason or "")


@pytest.mark.parametrize(("longer", "reason"), [(0.84, None), (0.16, None), (0.86, "answers of ual"), (0.14, "answers of sft")])
def test_answers_that_are_almost_always_the_longer_ones_give_no_verdict(longer: float, reason: str | None) -> None:
    for pair in (("ual", "sft"), ("sft", "ual")):
        content = judged(*pair, 80, 90)
        content["win_rates"]["overall"]["longer"] = longer if pair[0] == "ual" else 1 - longer
        (found,) = judged_verdicts(findings(content))
        assert (found.verdict == "inconclusive") == bool(reason)
        assert (reason is None) == (found.reason is None) and (reason or "") in (found.reason or "")


def test_a_judging_of_answers_that_were_given_again_does_not_count(tmp_path: Path) -> None:
    def answer(model: str, text: str) -> Path:
        row = {col.ID: "q", col.BENCHMARK: "chat", col.PREDICTION: text, col.EXTRACTED: [], col.REFERENCE: None}
        (folder := tmp_path / model / col.RESULTS_FOLDER).mkdir(parents=True, exist_ok=True)
        write_rows([row], pa.schema([col.RESULTS.field(name) for name in row]), folder / "0.parquet")
        return folder

    judging = tmp_path / "judging"
    judging.mkdir()
    digests = {
        side: content_digest(answer(model, "Blue."), [*col.JUDGED])
        for side, model in (("candidate", "ual"), ("reference", "sft"))
    }
    write_json(judging / STARTED_FILE, {"inputs": digests})
    content, evaluated = {"candidate": "ual", "reference": "sft"}, {"ual": tmp_path / "ual", "sft": tmp_path / "sft"}
    assert is_current(judging, content, evaluated)
    for model in ("ual", "sft"):
        answer(model, "Green.")
        assert not is_current(judging, content, evaluated)
        assert is_current(judging, content, evaluated | {model: None}), "whose answers are elsewhere"
        answer(model, "Blue.")
    (judging / STARTED_FILE).unlink()
    assert is_current(judging, content, evaluated), "nothing is known of it"


TWO: dict[str, Role] = {**ROLES, "other": "ual", "constant": "control"}


@pytest.mark.parametrize(("arms", "verdict"), [(["ual"], "better"), (["ual", "other"], "inconclusive")])
def test_several_arms_are_corrected_for_one_another(arms: list[str], verdict: str) -> None:
    """An interval that just excludes 50%: enough for one arm, not for one of two of which the other is even."""
    contents = [judged(arm, "sft", *((50.5, 60) if arm == "ual" else (45, 55))) for arm in arms]
    found = {one.rate.arm: one.verdict for one in judged_verdicts(replace(findings(*contents), roles=TWO))}
    assert found["ual"] == verdict


def test_an_arm_that_beats_all_its_references_leaves_its_share_to_the_others() -> None:
    contents = [judged("ual", "sft", 50.5, 60), judged("other", "sft", 79, 81)]
    found = {one.rate.arm: one.verdict for one in judged_verdicts(replace(findings(*contents), roles=TWO))}
    assert found == {"ual": "better", "other": "better"}


def test_several_controls_are_corrected_for_one_another() -> None:
    contents = [judged("ual", "shuffled", 50.5, 60), judged("ual", "constant", 45, 55), judged("ual", "sft", 79, 81)]
    found = judged_verdicts(replace(findings(*contents), roles=TWO))
    assert [one.verdict for one in found] == ["inconclusive"] * 3
    assert found[2].reason == "not tested, as shuffled comes first"


def test_the_p_value_is_that_of_the_t_test_over_seeds() -> None:
    rates = [58.0, 61.0, 66.0]
    expected = stats.ttest_1samp(rates, 50)
    low, high = expected.confidence_interval(0.95)
    (found,) = judged_verdicts(findings(judged("ual", "sft", low, high)))
    assert found.p_value == pytest.approx(expected.pvalue)


def test_a_few_pairs_cannot_be_certain() -> None:
    content = judged("ual", "sft", 100, 100)
    for valid, verdict in ((5, "inconclusive"), (6, "better")):
        content["win_rates"]["overall"] |= {"n": valid, "n_valid": valid}
        (found,) = judged_verdicts(findings(content))
        assert (found.verdict, found.p_value) == (verdict, 2.0 ** (1 - valid))


def test_a_judging_the_other_way_round_does_not_lend_its_seeds() -> None:
    """Three seeds were judged against sft, and one with sft as the candidate: its interval is that of one training."""
    found = findings(judged("ual", "sft", 45, 55), judged("sft", "ual", 10, 20))
    found.folders["judged"]["sft-vs-ual"] = ["seed-0"]
    both = {(one.seeds, one.verdict) for one in judged_verdicts(found)}
    assert both == {(3, "inconclusive"), (1, "inconclusive")}


@pytest.mark.parametrize(("valid", "verdict"), [(190, "better"), (189, "inconclusive")])
def test_pairs_without_a_verdict_are_not_left_out_in_silence(valid: int, verdict: str) -> None:
    content = judged("ual", "sft", 60, 70)
    content["win_rates"]["overall"] |= {"n": 200, "n_valid": valid}
    (found,) = judged_verdicts(findings(content))
    assert found.verdict == verdict
    assert ("11 of 200 pairs have no verdict" in (found.reason or "")) == (verdict == "inconclusive")


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["without a verdict", "cut"])
def test_pairs_that_are_lost_without_a_verdict_or_cut_make_no_false_one(lost: str) -> None:
    """A twentieth of the pairs, all of them the other model's: the rates of the rest are 2.6 or 5 points above 50%."""
    random, decided = np.random.default_rng(4), []
    for _ in range(300):
        even = 50 + random.normal(0, null.RATE_ERROR / 2) + random.normal(0, null.RATE_ERROR / 2, 5)
        content = null._judged("ual", "sft", even / 0.95 if lost == "without a verdict" else even + 5)
        if lost == "without a verdict":
            content["win_rates"]["overall"]["n_valid"] = int(0.95 * null.N)
        shares = {"sft": 0.05, "ual": 0.0} if lost == "cut" else {}
        metrics = {model: [MetricValue("chat", CUT, "overall", share, None, 9)] for model, share in shares.items()}
        (found,) = judged_verdicts(replace(findings(content, seeds=5), metrics=metrics))
        low = found.rate.controlled.low
        decided.append((found.verdict == "better", low is not None and low > 50))
    false, before = np.mean(decided, axis=0)
    assert false <= null.MOST_FALSE < 0.9 < before
