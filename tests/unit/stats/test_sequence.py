"""p-values of several arms, each with an order of tests: hand-computed, against Holm, and by simulation of false verdicts."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ual_ray.stats.bootstrap import holm
from ual_ray.stats.primary import holm_in_order

P_VALUES = st.floats(0, 1)
CHAINS = st.lists(st.lists(st.lists(P_VALUES, min_size=1, max_size=3), min_size=1, max_size=3), min_size=1, max_size=4)


def plain(chains: list[list[list[float]]]) -> list[list[list[float]]]:
    return [[step.tolist() for step in chain] for chain in holm_in_order(chains)]


@given(st.lists(P_VALUES, min_size=1, max_size=6))
def test_one_p_value_per_arm_is_holm(p_values: list[float]) -> None:
    found = [chain[0][0] for chain in holm_in_order([[[p]] for p in p_values])]
    np.testing.assert_allclose(found, holm(p_values))


def test_one_arm_is_a_fixed_sequence_without_a_penalty() -> None:
    assert plain([[[0.01], [0.04], [0.03]]]) == [[[0.01], [0.04], [0.04]]]
    assert plain([[[0.2], [0.001]]]) == [[[0.2], [0.2]]], "what comes later is no more significant than what came before"
    assert plain([[[0.03, 0.01], [0.001]]]) == [[[0.03, 0.02], [0.03]]], "Holm within a step"
    assert holm_in_order([]) == []


def test_an_arm_that_is_significant_to_its_end_leaves_its_share_to_the_others() -> None:
    assert plain([[[0.01], [0.02]], [[0.04], [0.3]]]) == [[[0.02], [0.04]], [[0.04], [0.3]]]
    assert plain([[[0.01], [0.03]], [[0.04], [0.3]]]) == [[[0.02], [0.06]], [[0.06], [0.3]]]


def brute(chains: list[list[list[float]]], level: float) -> list[list[list[bool]]]:
    """Test as the words of the docstring say, share by share."""
    rejected = [[[False] * len(step) for step in chain] for chain in chains]
    open_chains = set(range(len(chains)))
    changed = True
    while changed:
        changed = False
        for place in sorted(open_chains):
            share = level / len(open_chains)
            for step, done in zip(chains[place], rejected[place], strict=True):
                left = [at for at in range(len(step)) if not done[at]]
                while left and min(step[at] for at in left) * len(left) <= share:
                    best = min(left, key=step.__getitem__)
                    done[best] = changed = True
                    left.remove(best)
                if left:
                    break
            else:
                open_chains.remove(place)
                changed = True
                break
    return rejected


@given(CHAINS)
def test_the_adjusted_p_values_are_those_of_the_procedure(chains: list[list[list[float]]]) -> None:
    level = 0.05123
    adjusted = holm_in_order(chains)
    if any(abs(float(p) - level) < 1e-9 for chain in adjusted for step in chain for p in step):
        return
    assert [[(step <= level).tolist() for step in chain] for chain in adjusted] == brute(chains, level)


# One arm of true effects alone has no false verdict to find.
@pytest.mark.parametrize(
    ("arms", "effects"), [pair for pair in product([1, 2, 5], ["none", "first step", "one arm"]) if pair != (1, "one arm")]
)
@pytest.mark.parametrize("shared", [0.0, 0.8])
@pytest.mark.slow
def test_any_false_verdict_in_the_family_is_as_rare_as_the_level_says(arms: int, effects: str, shared: float) -> None:
    """Three steps per arm, the last of two references. shared: correlation of all tests, such as by a common reference."""
    random, runs = np.random.default_rng([arms, len(effects), int(10 * shared)]), 1000
    sizes = (1, 1, 2)
    common, own = random.normal(size=(runs, 1, 1)), random.normal(size=(runs, arms, sum(sizes)))
    scores = np.sqrt(shared) * common + np.sqrt(1 - shared) * own
    true = np.zeros((arms, sum(sizes)), dtype=bool)
    if effects == "first step":
        true[:, 0] = True
    elif effects == "one arm":
        true[0] = True
    p_values = 2 * stats.norm.sf(np.abs(scores + 6.0 * true))
    false = 0
    # An adjusted p-value is no smaller (tested above): the other runs have no false verdict.
    for one in p_values[(p_values[:, ~true] <= 0.05).any(axis=1)]:
        adjusted = holm_in_order([[arm[:1], arm[1:2], arm[2:]] for arm in one])
        rejected = np.array([np.concatenate(chain) <= 0.05 for chain in adjusted])
        false += bool((rejected & ~true).any())
    assert false / runs <= 0.06
