"""The stated power is that of the test that decides, after its correction; where nothing was judged it says so."""

from __future__ import annotations

import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ual_ray.config import Config
from ual_ray.config.files import write_record
from ual_ray.experiment.forecast import _power
from ual_ray.report.compare import average
from ual_ray.report.findings import Findings
from ual_ray.report.judged import judged_verdicts
from ual_ray.report.power import power_grid, power_lines, unknown_rate
from ual_ray.stats.bootstrap import BETTER, detectable_difference, estimate_over_seeds
from ual_ray.stats.comparison import Comparison, Comparisons, Role, pairs_of
from ual_ray.stats.primary import settle
from ual_ray.stats.results import win_rates_of

SIMULATIONS = 1500
PAIRS = 800
# Of the normal interval of one seed's rate.
WIDTH = 1.959964


def judged(rates: list[float], error: float, arm: str = "ual", reference: str = "sft") -> Findings:
    """Make the findings of an arm whose win rates by training seed, in percent, have a standard error over the questions."""
    by_seed = [
        {"length_controlled_win_rate": rate, "length_controlled_low": rate - WIDTH * error, "win_rate": rate}
        | {"length_controlled_high": rate + WIDTH * error, "n": PAIRS, "n_valid": PAIRS, "longer": 0.5}
        for rate in rates
    ]
    content: dict[str, Any] = {"overall": average(by_seed, 0.95) if len(rates) > 1 else by_seed[0]}
    pair = f"{arm}-vs-{reference}"
    return Findings(
        {},
        Comparisons((), 0.95, 1, 0, ("win_rate",)),
        {"sft": "sft", "ual": "ual"},
        win_rates={pair: {"candidate": arm, "reference": reference, "win_rates": content, "benchmarks": ["chat"]}},
        folders={"judged": {pair: [f"seed-{number}" for number in range(len(rates))]}},
    )


@pytest.mark.parametrize(
    ("seeds", "deviation", "questions"), [(3, 1.5, 0.5), (3, 0.5, 1.7), (5, 2.0, 1.0), (8, 3.0, 0.1), (12, 0.0, 1.0)]
)
@pytest.mark.slow
def test_the_win_rate_is_found_as_often_as_promised(seeds: int, deviation: float, questions: float) -> None:
    random = np.random.default_rng(0)
    lead = detectable_difference(deviation, questions, seeds)
    shared = random.normal(0, questions, SIMULATIONS)
    rates = 50 + lead + shared[:, None] + random.normal(0, deviation, (SIMULATIONS, seeds))
    found = np.mean([judged_verdicts(judged(one.tolist(), questions))[0].verdict == BETTER for one in rates])
    assert found == pytest.approx(0.8, abs=4 * np.sqrt(0.8 * 0.2 / SIMULATIONS))


def test_the_parts_of_the_error_are_those_of_the_seeds() -> None:
    found = judged([51.0, 54.0, 57.0], 1.5)
    (rate,) = win_rates_of(found.win_rates)
    assert (rate.controlled.seed_deviation, rate.controlled.question_error) == (pytest.approx(3.0), pytest.approx(1.5))
    (line,) = power_lines(found, [4])
    expected = ", ".join(f"{number} seeds {detectable_difference(3.0, 1.5, number):.1f}" for number in (3, 4, 5, 8, 12))
    start = (
        f"win rate at equal lengths, points from 50%, ual against sft: {expected} (deviation between seeds 3.0, from 3 seeds: "
    )
    assert line.startswith(start)
    assert line.endswith("; n = 800 pairs)")
    (row,) = power_grid(found, [4]).rows
    assert row.cells[:4] == ("ual - sft", *(f"{detectable_difference(3.0, 1.5, number):.1f}" for number in (3, 4, 5)))
    assert (row.section, row.cells[-2:]) == ("win rate at equal lengths: points from 50%", ("3", "800"))
    (turned,) = power_lines(judged([49.0, 46.0, 43.0], 1.5, "sft", "ual"))
    assert "ual against sft" in turned and turned.split(": ")[1].startswith(expected.split(",")[0]), (
        "judged the other way round"
    )
    (wide,) = power_lines(judged([10.0, 50.0, 95.0], 1.5))
    assert "3 seeds none, " in wide, "a rate has 50 points"


def test_the_words_of_a_dry_run(tmp_path: Path) -> None:
    """A pilot without a judge tells nothing of win rates."""
    config = Config(
        judge={"model": "big"},  # type: ignore[arg-type]
        evaluate={"benchmarks": {"chat": {"kind": "open_ended"}}},  # type: ignore[arg-type]
        experiment={"scenarios": {"all": []}},  # type: ignore[arg-type]
    )
    numbers = (0.0, -1, 1, 1, 1, "inconclusive", 10, 3, True, 0.3, 0.3)
    pilot = Findings({}, Comparisons((Comparison("ual", "sft", "held_out", "nll_adjusted", *numbers),), 0.95, 1, 0))
    ran = judged([51.0, 54.0, 57.0], 1.5)
    for name, found in (("ran", ran), ("pilot", pilot)):
        (folder := tmp_path / name / "all" / "report").mkdir(parents=True)
        write_record(folder / "findings.json", found.as_dict())
    lines = [*_power(config, [(tmp_path / "ran", "what ran here"), (tmp_path / "pilot", "the pilot")])]
    assert [line.split(",")[0].strip() for line in lines] == [
        "Smallest true difference in 'all'",
        "win rate at equal lengths",
        "Smallest true difference in 'all'",
        "held_out",
        "win rate at equal lengths: not known",
    ]
    assert unknown_rate(ran, ["win_rate"]) is None and unknown_rate(pilot, ["held_out.nll_adjusted"]) is None
    assert unknown_rate(judged([51.0], 1.5), ["win_rate"]) is not None, "one seed has no deviation"
    assert power_lines(replace(ran, comparisons=Comparisons((), 0.95, 1, 0))) == [], "win rates do not decide there"


def several(arms: int, references: int) -> dict[str, Role]:
    """Name so many arms by uncertainty, SFT and controls, with their roles."""
    controls: dict[str, Role] = {f"control{place}": "control" for place in range(references - 1)}
    return {"base": "base", "sft": "sft", **controls, **{f"ual{place}": "ual" for place in range(arms)}}


def compared(roles: dict[str, Role], seeds: int, truth: dict[tuple[str, str], float], random: Any) -> Comparisons:
    """Draw an experiment whose true differences are `truth`: primary comparisons, before their verdicts."""
    drawn = QUESTIONS_ERROR / np.sqrt(2) * np.array([-1, 1])
    entries = []
    for pair, difference in truth.items():
        by_seed = difference + random.normal(0, QUESTIONS_ERROR) + random.normal(0, DEVIATION, seeds)
        found = asdict(estimate_over_seeds(by_seed, by_seed.mean() + drawn, informative=10_000, n=10_000))
        found |= {"p_holm": 1.0, "verdict": "inconclusive", "seeds": seeds, "primary": True}
        entries.append(Comparison(*pair, "held_out", "nll_adjusted", **found))
    return Comparisons(tuple(entries), 0.95, 1, 0)


DEVIATION, QUESTIONS_ERROR = 0.03, 0.01


@pytest.mark.slow
@pytest.mark.parametrize(("arms", "references", "seeds"), [(1, 1, 3), (1, 3, 5), (2, 3, 5)])
def test_a_difference_is_found_as_often_as_promised_among_several_arms_and_references(
    arms: int, references: int, seeds: int
) -> None:
    """Where it is the only one, as from a control that is as good as the arm, or one of all."""
    roles, random, runs = several(arms, references), np.random.default_rng(0), 400
    pairs = [pair for pair in pairs_of(roles) if roles[pair[0]] == "ual" and "base" not in pair]
    known = Comparison(
        *pairs[0], "held_out", "nll_adjusted", 0.0, -1, 1, 1, 1, "inconclusive", 10_000, seeds, True, DEVIATION,
        float(np.hypot(DEVIATION / np.sqrt(seeds), QUESTIONS_ERROR)),
    )  # fmt: skip
    (line,) = power_lines(Findings({}, Comparisons((known,), 0.95, 1, 0), roles))
    smallest = float(line.partition(f"{seeds} seeds ")[2].split()[0].strip(","))
    for alone in (True, False):
        truth = {pair: -smallest * (not alone or pair == pairs[0]) for pair in pairs}
        settled = (settle(compared(roles, seeds, truth, random), roles)[0].entries for _ in range(runs))
        found = np.mean([entries[0].verdict == BETTER for entries in settled])
        error = 4 * np.sqrt(0.8 * 0.2 / runs)
        assert 0.8 - error < found < (0.8 + error if alone else 1.01), alone


def test_the_dry_run_counts_the_arms_that_the_experiment_has_and_the_pilot_has_not(tmp_path: Path) -> None:
    def config_of(arms: dict[str, dict[str, str]], *against: str) -> Config:
        settings: dict[str, Any] = {
            "judge": {"model": "big", "against": against},
            "evaluate": {"benchmarks": {"chat": {"kind": "open_ended"}}},
            "experiment": {"scenarios": {"all": []}},
            "report": {"primary": ["win_rate", "held_out.nll_adjusted"]},
        }
        return Config(arms=arms, **settings)

    numbers = (0.0, -1, 1, 1, 1, "inconclusive", 10, 3, True, 0.3, 0.3)
    pilot = judged([51.0, 54.0, 57.0], 1.5, reference="shuffled")
    entry = Comparison("ual", "shuffled", "held_out", "nll_adjusted", *numbers)  # type: ignore[arg-type]
    pilot = replace(
        pilot,
        roles={"base": "base", "shuffled": "control", "ual": "ual"},
        comparisons=replace(pilot.comparisons, entries=(entry,)),
    )
    (folder := tmp_path / "all" / "report").mkdir(parents=True)
    write_record(folder / "findings.json", pilot.as_dict())
    few = {"ual": {"map": "rank"}, "shuffled": {"map": "shuffled"}}
    more = few | {"sft": {"map": "none"}, "constant": {"map": "constant"}, "other": {"map": "minmax"}}
    configs = config_of(few, "shuffled"), config_of(more, "shuffled", "constant", "sft")
    lines = [[*_power(config, [(tmp_path, "the pilot")])] for config in configs]
    assert [re.findall(r"corrected for (\d+) tests", line) for line in lines[0]] == [[], [], []]
    assert [re.findall(r"corrected for (\d+) tests", line) for line in lines[1]] == [[], ["6"], ["4"]]
    assert f"3 seeds {detectable_difference(3.0, 1.5, 3, 1 - 0.05 / 4):.1f}, " in lines[1][2], "two controls are tested at once"


def test_a_share_differs_by_100_points_at_most() -> None:
    entry = Comparison("ual", "sft", "gsm8k", "exact_match_strict", 0, -1, 1, 1, 1, "inconclusive", 9, 3, True, 0.2, 0.2)
    (line,) = power_lines(Findings({}, Comparisons((entry,), 0.95, 1, 0), several(3, 3) | {"ual": "ual"}))
    assert ": 3 seeds none, 5 seeds " in line
