"""How often there is a verdict where there is no effect, by number of training seeds and by how much they differ.

.venv/bin/python bench/null_table.py

Simulated through all that a verdict goes through: two arms by uncertainty, each against SFT and a control, in two primary
measures, and their win rates. The seeds' noise is each model's own, so that the differences from one reference are correlated.
spread: standard deviation of a difference between training seeds, in its standard errors over questions.
tests/unit/stats/test_bootstrap.py and tests/unit/report/test_null.py assert the same of fewer runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ual_ray.report.compare import average
from ual_ray.report.findings import Findings
from ual_ray.report.judged import judged_verdicts, settled
from ual_ray.stats.bootstrap import INCONCLUSIVE, LEVEL, estimate_over_seeds
from ual_ray.stats.comparison import Comparison, Comparisons, Role

Array = NDArray[np.float64]

SEEDS, SPREADS = (2, 3, 5, 8), (0.0, 1.0, 3.0, 10.0)
ROLES: dict[str, Role] = {"sft": "sft", "shuffled": "control", "one": "ual", "two": "ual"}
PAIRS = [(arm, reference) for arm in ("one", "two") for reference in ("sft", "shuffled")]
MEASURES = ("gsm8k.exact_match_strict", "held_out.nll_adjusted")
N = 200
ERROR = 1 / np.sqrt(N)
# Differences under resampled questions: two values with their variance.
DRAWN = ERROR / np.sqrt(2) * np.array([-1, 1])
# Of a win rate over questions, in percentage points.
RATE_ERROR = 0.5
# The level, and what a simulation is off by chance: 0.004 of 0.05 in 3000 runs.
MOST_FALSE = 0.06


def p_values(seeds: int, spread: float, looks: Sequence[int], runs: int) -> Array:
    """Draw p-values [runs, looks] of one comparison without an effect, after so many of the seeds each."""
    random = np.random.default_rng([seeds, int(spread)])
    noise = np.sqrt(0.5 / N)
    questions = random.normal(0, ERROR, (runs, 1))
    by_seed = questions + random.normal(0, np.hypot(noise, spread * np.sqrt((1 + 0.5 / seeds) / N)), (runs, seeds))

    def p_value(one: Array, look: int) -> float:
        drawn = np.sqrt(1 + 0.5 / look) * DRAWN
        return estimate_over_seeds(one[:look], drawn, informative=N, n=N).p_value

    return np.array([[p_value(one, look) for look in looks] for one in by_seed])


def compared(seeds: int, spread: float, runs: int, effect: float = 0.0) -> Iterator[list[Comparison]]:
    """Simulate reports: the comparisons of each that have a verdict.

    effect: of both arms in the first measure, which opens the second one, in its standard errors; 0 = none anywhere.
    """
    random = np.random.default_rng([seeds, int(spread), int(effect)])
    shape = (runs, len(MEASURES))
    # The questions' luck is the same under every seed.
    models = {
        model: random.normal(0, ERROR / np.sqrt(2), (*shape, 1))
        + random.normal(0, spread * ERROR / np.sqrt(2), (*shape, seeds))
        for model in ROLES
    }
    shift = effect * ERROR * max(1.0, spread)
    for run in range(runs):
        entries = [
            _entry(arm, reference, measure, (models[arm] - models[reference])[run, place] + shift * (place == 0))
            for arm, reference in PAIRS
            for place, measure in enumerate(MEASURES)
        ]
        decided = settled(Findings({}, Comparisons(tuple(entries), LEVEL, 2, 0, MEASURES), ROLES)).entries
        yield [one for one in decided if one.verdict != INCONCLUSIVE]


def _entry(arm: str, reference: str, measure: str, values: Array) -> Comparison:
    benchmark, metric = measure.split(".")
    found = asdict(estimate_over_seeds(values, values.mean() + DRAWN, informative=N, n=N))
    others: dict[str, Any] = found | {"p_holm": found["p_value"], "seeds": len(values), "verdict": INCONCLUSIVE}
    return Comparison(arm, reference, benchmark, metric, **others, primary=True)


def judged(seeds: int, spread: float, runs: int) -> Iterator[int]:
    """Simulate reports of win rates without an effect: how many of each have a verdict."""
    random = np.random.default_rng([seeds, int(spread)])
    noise = {model: random.normal(0, spread * RATE_ERROR / np.sqrt(2), (runs, seeds)) for model in ROLES}
    luck = {pair: random.normal(0, RATE_ERROR, runs) for pair in PAIRS}
    empty = Findings({}, Comparisons((), LEVEL, 2, 0, ("win_rate",)), ROLES)
    for run in range(runs):
        rates = {
            (arm, reference): 50 + luck[arm, reference][run] + (noise[arm] - noise[reference])[run] for arm, reference in PAIRS
        }
        whole = {f"{arm}-vs-{reference}": _judged(arm, reference, found) for (arm, reference), found in rates.items()}
        folders = {"judged": {pair: [str(seed) for seed in range(seeds)] for pair in whole}}
        verdicts = judged_verdicts(replace(empty, win_rates=whole, folders=folders))
        assert len(verdicts) == len(PAIRS)
        yield sum(one.verdict != INCONCLUSIVE for one in verdicts)


def _judged(arm: str, reference: str, rates: Array) -> dict[str, Any]:
    contents = [
        {
            **{"length_controlled_win_rate": rate, "n": N, "n_valid": N, "longer": 0.5},
            **{"length_controlled_low": rate - 1.96 * RATE_ERROR, "length_controlled_high": rate + 1.96 * RATE_ERROR},
        }
        for rate in rates.tolist()
    ]
    win_rates = {"overall": average(contents, LEVEL)}
    return {"candidate": arm, "reference": reference, "benchmarks": ["chat"], "win_rates": win_rates}


def measure(seeds: int, spread: float, runs: int) -> dict[str, float]:
    """Measure the shares of runs with a false finding: of one comparison ten times as many, as they cost less."""
    return {
        "training seeds": seeds,
        "deviation between seeds": spread,
        "p below 0.05, one comparison": float(np.mean(p_values(seeds, spread, [seeds], 10 * runs) < 1 - LEVEL)),
        "a verdict, 8 comparisons": float(np.mean([bool(told) for told in compared(seeds, spread, runs)])),
        "a verdict, 4 win rates": float(np.mean([bool(told) for told in judged(seeds, spread, runs)])),
    }


def markdown(measured: Sequence[Mapping[str, float]]) -> list[str]:
    """Write the table of docs/results.md."""
    head = [f"| {' | '.join(measured[0])} |", "|" + "---|" * len(measured[0])]
    rows = [[*row.values()] for row in measured]
    lines = [[*(f"{value:g}" for value in values[:2]), *(f"{value:.4f}" for value in values[2:])] for values in rows]
    return head + [f"| {' | '.join(line)} |" for line in lines]


def main() -> None:
    """Simulate, print the table, and write it to bench/results/null_table.json."""
    from common import report

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3000, help="simulated reports for each line")
    runs = parser.parse_args().runs
    measured = [measure(seeds, spread, runs) for seeds in SEEDS for spread in SPREADS]
    print(*markdown(measured), sep="\n")
    ratios = {what: (max(row[what] for row in measured), f"<= {MOST_FALSE}") for what in list(measured[0])[2:]}
    report("null_table", measured, {f"most of {what}": found for what, found in ratios.items()}, runs=runs)


if __name__ == "__main__":
    main()
