"""Caveats: what limits the conclusions of a report."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ual_ray.report.caveats import at_floor, caveats_of
from ual_ray.report.findings import Findings
from ual_ray.stats.comparison import Comparison, Comparisons, Role
from ual_ray.stats.metrics import MetricValue


def test_arms_that_differ_in_more_than_their_smoothing_are_a_caveat() -> None:
    same = {"epochs": 3, "learning_rate": 1e-4, "train_rows": 90}
    found = Findings({}, Comparisons((), 0.95, 100, 0), trainings={"sft": same, "ual": same})
    assert not any("differ in" in text for text in caveats_of(found, 0))
    other = same | {"learning_rate": 2e-4, "train_rows": 80}
    (text,) = [text for text in caveats_of(replace(found, trainings={"sft": same, "ual": other}), 0) if "differ in" in text]
    assert "learning rate (sft 0.0001, ual 0.0002); train rows (sft 90, ual 80). A difference" in text
    trials = [{"arm": "sft", "learning_rate": 1e-4, "chosen": True}]
    tried = replace(found, trainings={"sft": same, "ual": other | {"train_rows": 90}}, trials=trials)
    assert not any("differ in" in text for text in caveats_of(tried, 0)), "each arm has the best of its rates"


def test_seeds_that_were_added_after_a_look_are_a_caveat() -> None:
    found = Findings({}, Comparisons((), 0.95, 100, 0), added_seeds=[7, 12], planned_seeds=3)
    assert any("training seeds 7, 12 do not count: " in text and "new output" in text for text in caveats_of(found, 0))
    assert not any("do not count" in text for text in caveats_of(replace(found, added_seeds=[]), 0))


@pytest.mark.parametrize(("seeds", "planned", "told"), [(3, 0, True), (3, 3, False), (2, 0, False)])
def test_runs_that_nobody_planned_have_a_caveat(seeds: int, planned: int, told: bool) -> None:
    found = Findings({"ual": []}, Comparisons((), 0.95, 100, 0), seeds={"ual": seeds}, planned_seeds=planned)
    assert any("was not recorded before the results" in text for text in caveats_of(found, 0)) == told


def test_controls_that_smooth_by_another_amount_are_named() -> None:
    """Of an arm by rank, a constant at the default mean is no control of its strength."""
    roles: dict[str, Role] = {"sft": "sft", "ual": "ual", "constant": "control", "shuffled": "control", "dft": "control"}
    alphas = {"sft": 0.0, "ual": 0.127, "constant": 0.1, "shuffled": 0.1269, "dft": 0.0}
    found = Findings({name: [] for name in roles}, Comparisons((), 0.95, 100, 0), roles, token_alphas=alphas)
    told = [text for text in caveats_of(found, 0) if "per token, and other amounts" in text]
    assert len(told) == 1 and told[0].startswith("ual smooths by 0.127 per token, and other amounts: constant 0.100. ")
    alike = replace(found, token_alphas=alphas | {"constant": 0.127})
    assert not [text for text in caveats_of(alike, 0) if "other amounts" in text]


@pytest.mark.parametrize(("correlation", "told"), [(0.95, True), (0.4, False), (-1.0, False), (None, False)])
def test_a_control_that_follows_the_uncertainty_is_a_caveat(correlation: float | None, told: bool) -> None:
    roles: dict[str, Role] = {"ual": "ual", "shuffled_within": "control"}
    follows = {"ual": 1.0} | ({} if correlation is None else {"shuffled_within": correlation})
    found = Findings(dict.fromkeys(roles, []), Comparisons((), 0.95, 1, 0), roles=roles, follows=follows)
    assert any("The control shuffled_within still follows" in text for text in caveats_of(found, 0)) is told


def test_no_results_have_one_caveat() -> None:
    assert len(caveats_of(None, 0)) == 1


def test_a_judge_that_prefers_a_position_is_a_caveat() -> None:
    def caveats(difference: float | None, error: float | None) -> str:
        bias = {"position_bias": {"difference": difference, "standard_error": error}}
        return "\n".join(caveats_of(Findings({}, Comparisons((), 0.95, 1, 0), win_rates={"ual": bias}), 0))

    assert "prefers the answer that it reads second" in caveats(-0.97, 0.003) and "0.97 of at most 1" in caveats(-0.97, 0.003)
    assert "reads first" in caveats(0.5, 0.1)
    for harmless in ((0.09, 0.001), (0.5, 0.3), (0.5, None), (None, None)):
        assert "judge" not in caveats(*harmless), harmless


def test_seeds_without_a_measure_are_named() -> None:
    """Of three trainings two have right and wrong answers, as where all requests of one failed; all have likelihoods."""
    right = Comparison("ual", "sft", "gsm8k", "exact_match_strict", 0.1, 0.0, 0.2, 1.0, 1.0, "inconclusive", 50, 2, False)
    known = replace(right, benchmark="held_out", metric="nll", seeds=3)
    of_base = replace(right, reference="base", seeds=2)
    seeds = {"base": 1, "sft": 3, "ual": 3}
    found = Findings({}, Comparisons((right, known, of_base), 0.95, 100, 0), seeds=seeds)
    (text,) = [text for text in caveats_of(found, 0) if "lack values" in text]
    assert "under some training seeds: gsm8k.exact_match_strict (sft, ual). Metrics are means over the others." in text
    complete = replace(found, comparisons=Comparisons((known,), 0.95, 100, 0))
    assert not [text for text in caveats_of(complete, 0) if "lack values" in text]


def test_the_floor() -> None:
    assert at_floor(MetricValue("b", "accuracy", "overall", 0.02, 0.01, 300))
    assert at_floor(MetricValue("b", "accuracy", "overall", 0.2, 0.1, 10)), "two standard errors"
    assert not at_floor(MetricValue("b", "accuracy", "overall", 0.2, 0.02, 300))
