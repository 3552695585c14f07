"""The power of win rates: the stated one is that of the test that decides, and where nothing was judged it says so."""

from __future__ import annotations

from dataclasses import replace
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
from ual_ray.stats.bootstrap import BETTER, detectable_difference
from ual_ray.stats.comparison import Comparison, Comparisons
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
