"""No effect, no verdict: simulated through all that a verdict goes through, for comparisons and for win rates."""

from __future__ import annotations

import pytest
from bench_scripts import script

null = script("null_table")
RUNS = 400


@pytest.mark.parametrize("effect", [0.0, 30.0])
@pytest.mark.parametrize("spread", [3.0, 10.0])
@pytest.mark.parametrize("seeds", null.SEEDS)
@pytest.mark.slow
def test_any_false_verdict_is_as_rare_as_the_level(seeds: int, spread: float, effect: float) -> None:
    false = found = 0
    for told in null.compared(seeds, spread, RUNS, effect):
        real = [one for one in told if effect and one.metric == "exact_match_strict"]
        found += len(real) == len(null.PAIRS)
        false += len(told) > len(real)
    assert false / RUNS <= null.MOST_FALSE
    if seeds == 2:
        assert false == found == 0, "two seeds never have a verdict"
    elif effect and seeds > 3:
        assert found / RUNS > 0.9, "or nothing was tested"


@pytest.mark.parametrize("spread", [3.0, 10.0])
@pytest.mark.parametrize("seeds", null.SEEDS)
@pytest.mark.slow
def test_any_false_verdict_of_win_rates_is_as_rare_as_the_level(seeds: int, spread: float) -> None:
    false = sum(told > 0 for told in null.judged(seeds, spread, RUNS))
    assert false / RUNS <= (null.MOST_FALSE if seeds > 2 else 0.0)
