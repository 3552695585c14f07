"""The primary measures in their order: what decides, what is exploratory, which arms are corrected for one another."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ual_ray.stats.alignment import LEFT_OUT, NOBODY, Absent
from ual_ray.stats.comparison import Comparison, Comparisons, Role
from ual_ray.stats.primary import CHOSEN_AFTER, settle

MATCH, RATE, NLL = "gsm8k.exact_match_strict", "win_rate", "held_out.nll_adjusted"
ROLES: dict[str, Role] = {"base": "base", "plain": "sft", "mixed": "control", "mine": "ual", "other": "ual"}


def entry(measure: str, p: float, arm: str = "mine", reference: str = "plain", **others: Any) -> Comparison:
    benchmark, metric = measure.split(".")
    better = -0.1 if metric.startswith("nll") else 0.1
    numbers: dict[str, Any] = {"difference": better, "ci_low": better, "ci_high": better, "p_value": p, "p_holm": p, "n": 200}
    known = {"verdict": "inconclusive", "seeds": 3, "primary": True, **numbers}
    return Comparison(arm, reference, benchmark, metric, **known | others)


def found(*entries: Comparison, primary: tuple[str, ...] = (MATCH, RATE, NLL)) -> Comparisons:
    return Comparisons(entries, 0.95, 2000, 0, primary)


def verdicts(comparisons: Comparisons, judged: dict[str, list[list[float]]] | None = None) -> list[tuple[str, bool]]:
    return [(one.verdict, one.exploratory) for one in settle(comparisons, ROLES, judged)[0].entries]


BETTER, UNSURE, EXPLORATORY = ("better", False), ("inconclusive", False), ("inconclusive", True)


@pytest.mark.parametrize(
    ("match", "rate", "expected"),
    [(0.04, 0.04, [BETTER, BETTER]), (0.06, 0.001, [UNSURE, EXPLORATORY]), (0.001, 0.06, [BETTER, EXPLORATORY])],
)
def test_a_later_measure_decides_only_where_all_before_it_were_significant(
    match: float, rate: float, expected: list[tuple[str, bool]]
) -> None:
    comparisons, judged = found(entry(MATCH, match), entry(NLL, 0.001)), {"mine": [[rate]]}
    assert verdicts(comparisons, judged) == expected
    closed = settle(comparisons, ROLES, judged)[1]["mine"][0].closed
    assert (closed is None) == (match < 0.05)


def test_what_allows_no_verdict_keeps_its_reason_and_is_not_exploratory() -> None:
    cut = entry(NLL, 0.001, reason="answers were cut")
    _, found_cut = settle(found(entry(MATCH, 0.2), cut), ROLES)[0].entries
    assert (found_cut.verdict, found_cut.exploratory, found_cut.reason) == ("inconclusive", False, "answers were cut")


def test_the_order_is_that_of_the_measures_not_of_the_entries() -> None:
    assert verdicts(found(entry(NLL, 0.001), entry(MATCH, 0.2), primary=(MATCH, NLL))) == [EXPLORATORY, UNSURE]
    assert verdicts(found(entry(NLL, 0.001), entry(MATCH, 0.2), primary=(NLL, MATCH))) == [BETTER, UNSURE]


def test_all_references_of_a_measure_are_corrected_together_and_all_open_the_next() -> None:
    both = [entry(MATCH, 0.02, reference="plain"), entry(MATCH, 0.03, reference="mixed"), entry(NLL, 0.001)]
    assert verdicts(found(*both)) == [BETTER, BETTER, BETTER]
    one = [entry(MATCH, 0.02, reference="plain"), entry(MATCH, 0.3, reference="mixed"), entry(NLL, 0.001)]
    assert verdicts(found(*one)) == [BETTER, UNSURE, EXPLORATORY]


def test_several_arms_are_one_family_and_controls_and_base_are_others() -> None:
    alone = [entry(MATCH, 0.03), entry(MATCH, 0.03, "mixed"), entry(MATCH, 0.03, "plain", "base")]
    assert verdicts(found(*alone)) == [BETTER] * 3
    assert verdicts(found(*alone, entry(MATCH, 0.5, "other"))) == [UNSURE, BETTER, BETTER, UNSURE]


def test_an_arm_that_lacks_a_measure_that_others_have_passes_no_gate_and_one_that_nobody_has_is_left_out() -> None:
    assert verdicts(found(entry(NLL, 0.001), entry(MATCH, 0.001, "other"))) == [EXPLORATORY, BETTER]
    assert verdicts(found(entry(NLL, 0.001))) == [BETTER]


def test_a_measure_that_one_reference_lacks_passes_no_gate() -> None:
    absent = Absent("mine", "mixed", MATCH, "no question has values of both")
    alone = found(entry(MATCH, 0.001), entry(NLL, 0.001), entry(NLL, 0.001, reference="mixed"))
    assert verdicts(alone) == [BETTER] * 3
    assert verdicts(replace(alone, absent=(absent,))) == [BETTER, EXPLORATORY, EXPLORATORY]
    assert verdicts(replace(alone, absent=(replace(absent, reference="base"),))) == [BETTER] * 3, "a family of its own"
    assert verdicts(replace(alone, absent=(replace(absent, reason=NOBODY),))) == [BETTER] * 3


def test_arms_without_win_rates_count_where_others_have_them() -> None:
    """Each is one hypothesis more, whatever its references."""
    lacking = [Absent(arm, reference, RATE, "dropped") for arm in ("other", "gone") for reference in ("plain", "mixed")]
    for count, arms in ((0, 1), (1, 2), (2, 2), (4, 3)):
        comparisons = replace(found(primary=(RATE,)), absent=tuple(lacking[:count]))
        (step,) = settle(comparisons, ROLES, {"mine": [[0.02]]})[1]["mine"]
        assert step.p_values == (pytest.approx(arms * 0.02),)
    comparisons = replace(found(entry(NLL, 0.01), primary=(RATE, NLL)), absent=tuple(lacking))
    assert verdicts(comparisons, {}) == [BETTER], "a measure that nobody has is left out"


@pytest.mark.parametrize(
    ("dropped", "judged", "expected"),
    [
        ("mixed", [[0.01]], [(1.0,)]),  # the control came first: without an effect, 7.5% where it is dropped if inconclusive
        ("plain", [[0.01]], [(0.02,)]),
        ("more", [[0.01], [0.001]], [(0.02,), (1.0,)]),  # one of two controls
    ],
)
def test_win_rates_against_what_was_dropped_after_its_results_count_in_their_place(
    dropped: str, judged: list[list[float]], expected: list[tuple[float, ...]]
) -> None:
    roles: dict[str, Role] = ROLES | ({"more": "control"} if dropped == "more" else {})
    comparisons = replace(found(entry(NLL, 0.001), primary=(RATE, NLL)), absent=(Absent("mine", dropped, RATE, LEFT_OUT),))
    settled, tested = settle(comparisons, roles, {"mine": judged})
    assert [one.p_values for one in tested["mine"]] == [pytest.approx(p_values) for p_values in expected]
    assert settled.entries[0].exploratory


@pytest.mark.parametrize("others", [{"seeds": 2}, {"reason": "answers were cut"}])
def test_what_allows_no_verdict_passes_no_gate(others: dict[str, Any]) -> None:
    assert verdicts(found(entry(MATCH, 0.001, **others), entry(NLL, 0.001))) == [UNSURE, EXPLORATORY]


def test_measures_that_were_chosen_after_the_results_decide_nothing() -> None:
    comparisons, tested = settle(replace(found(entry(NLL, 0.001)), chosen_after=True), ROLES, {"mine": [[0.001]]})
    assert [(one.verdict, one.exploratory, one.reason) for one in comparisons.entries] == [("inconclusive", True, CHOSEN_AFTER)]
    assert tested["mine"][0].closed == CHOSEN_AFTER


def test_it_survives_being_written_and_read() -> None:
    comparisons, _ = settle(replace(found(entry(NLL, 0.001)), chosen_after=True), ROLES)
    assert Comparisons.from_dict(comparisons.as_dict()) == comparisons
