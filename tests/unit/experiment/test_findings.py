"""Comparisons over seeds, and the tables."""

from __future__ import annotations

import numpy as np
import pytest

from ual_ray.experiment.findings import METRICS, Case, Finding, compare, tables

TEST = 400


def case(arm: str, seed: int, level: float, spread: float = 0.1, corruption: float = 0.0) -> Case:
    noise = np.random.default_rng([seed, len(arm)]).normal(size=TEST) * spread
    values = {name: level + 0.01 * seed + noise - noise.mean() for name in METRICS}
    return Case(arm, seed, corruption, values, np.arange(TEST) % 5, 1.5, 2.0)


def cases(ual: float, seeds: int = 3, corruption: float = 0.0) -> list[Case]:
    levels = {"sft": 1.5, "shuffled": 1.4, "ual": ual}
    return [case(arm, seed, level, corruption=corruption) for seed in range(seeds) for arm, level in levels.items()]


@pytest.mark.slow
@pytest.mark.parametrize(("ual", "expected"), [(1.2, ["better", "better"]), (1.7, ["worse", "worse"])])
def test_a_difference_that_all_seeds_share_has_a_verdict(ual: float, expected: list[str]) -> None:
    found = [finding for finding in compare(cases(ual), 0.0, "ual") if finding.metric == "kl"]
    assert [finding.reference for finding in found] == ["sft", "shuffled"]
    assert [finding.difference for finding in found] == pytest.approx([ual - 1.5, ual - 1.4])
    assert [finding.verdict for finding in found] == expected
    assert all(finding.ci_low < finding.difference < finding.ci_high and finding.p_holm >= finding.p_value for finding in found)


@pytest.mark.slow
def test_two_seeds_are_inconclusive() -> None:
    assert {finding.verdict for finding in compare(cases(1.2, seeds=2), 0.0, "ual")} == {"inconclusive"}


def test_a_difference_of_which_the_seeds_disagree_is_inconclusive() -> None:
    levels = zip(range(3), (1.2, 1.6, 1.4), strict=True)
    mixed = [case("shuffled", seed, 1.4) for seed in range(3)] + [case("ual", seed, level) for seed, level in levels]
    assert {finding.verdict for finding in compare(mixed, 0.0, "ual")} == {"inconclusive"}


@pytest.mark.slow
def test_each_corruption_is_compared_on_its_own() -> None:
    both = cases(1.2) + cases(1.7, corruption=1.0)
    assert {finding.verdict for finding in compare(both, 0.0, "ual")} == {"better"}
    assert {finding.verdict for finding in compare(both, 1.0, "ual")} == {"worse"}


@pytest.mark.slow
def test_the_tables_show_means_spreads_and_verdicts() -> None:
    both = cases(1.2) + cases(1.7, corruption=1.0)
    text = tables(both, [finding for share in (0.0, 1.0) for finding in compare(both, share, "ual")])
    assert "## Corruption 0\n" in text and "## Corruption 1\n" in text
    # Means 1.2, 1.21, 1.22 of the seeds.
    assert "| ual | 1.2100 (0.0100) | 1.2100 (0.0100) |" in text
    (line,) = [line for line in text.split("## Corruption 1")[0].splitlines() if line.startswith("| KL raw | ual - sft |")]
    assert line.startswith("| KL raw | ual - sft | -0.3000 [") and line.endswith("| better |")


def test_an_interval_without_0_is_not_written_with_it() -> None:
    found = Finding(0.0, "kl", "ual", "sft", -0.001, -0.00198, -0.00002, 0.03, 0.04, 3, "better")
    assert "| -0.00100 [-0.00198, -0.00002] | 0.0400 | better |" in tables(cases(1.2), [found])


def test_a_summary_has_the_means_by_stratum() -> None:
    found = case("ual", 0, 1.2).summary()
    assert found["kl"] == pytest.approx(1.2)
    assert np.mean([means["kl"] for means in found["by_stratum"].values()]) == pytest.approx(1.2)
    assert [*found["by_stratum"]][0] == "deterministic"
