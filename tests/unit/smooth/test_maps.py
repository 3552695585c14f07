"""F: uncertainty -> alpha. Values by hand, mean_matched against bisection, and the controls' promises."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from map_cases import CONTROLS, MAPS, NAN, Spec, assign, ninths, scores, with_holes

from ual_ray.config import ArmConfig
from ual_ray.errors import UserError
from ual_ray.smooth.maps import Rows, assign_alpha, describe
from ual_ray.smooth.weights import assign_weights


def reachable(uncertainty: list[float], cap: float) -> float:
    return cap * sum(value > 0 for value in uncertainty) / len(uncertainty)


# --- by hand ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "uncertainty", "expected"),
    [
        ({"map": "linear", "alpha_min": 0.1, "alpha_max": 0.3}, [0, 0.25, 1], [0.1, 0.15, 0.3]),
        ({"map": "minmax", "alpha_min": 0.1, "alpha_max": 0.3}, [0.4, 0.5, 0.8], [0.1, 0.15, 0.3]),
        ({"map": "minmax", "alpha_min": 0.1, "alpha_max": 0.3}, [0.7, 0.7], [0.2, 0.2]),
        ({"map": "rank", "alpha_min": 0.0, "alpha_max": 0.3}, [0.9, 0.1, 0.11, 0.5], [0.3, 0.0, 0.1, 0.2]),
        ({"map": "rank", "alpha_min": 0.0, "alpha_max": 0.4}, [0.5, 0.2, 0.5, 0.9, 0.5], [0.2, 0.0, 0.2, 0.4, 0.2]),
        ({"map": "rank", "alpha_min": 0.0, "alpha_max": 0.4}, [0.2, 0.2, 0.8], [0.1, 0.1, 0.4]),
        ({"map": "rank", "alpha_min": 0.1, "alpha_max": 0.3}, [0.6], [0.2]),
        ({"map": "mean_matched", "alpha_mean": 0.1}, [0.2, 0.4, 0.6], [0.05, 0.1, 0.15]),
        # Unclipped, the last would be 0.4 * 4 / 2 = 0.8: it is held at 0.5, and the rest share 1.6 - 0.5 in proportion.
        ({"map": "mean_matched", "alpha_mean": 0.4, "alpha_cap": 0.5}, [0.2, 0.4, 0.4, 1.0], [0.22, 0.44, 0.44, 0.5]),
        ({"map": "mean_matched", "alpha_mean": 0.2, "alpha_cap": 0.4}, [0.0, 0.0, 0.3, 0.9], [0.0, 0.0, 0.4, 0.4]),
        ({"map": "mean_matched", "alpha_mean": 0.0}, [0.0, 0.5], [0.0, 0.0]),
        ({"map": "none"}, [0.1, 0.9], [0.0, 0.0]),
        ({"map": "constant", "alpha_mean": 0.07}, [0.1, 0.9], [0.07, 0.07]),
        ({"map": "inverted", "base": "linear", "alpha_max": 0.5}, [0.2, 0.6, 0.4], [0.3, 0.1, 0.2]),
    ],
)
def test_by_hand(spec: Spec, uncertainty: list[float], expected: list[float]) -> None:
    np.testing.assert_allclose(assign_alpha(uncertainty, spec), expected, atol=1e-12)


# --- mean_matched ----------------------------------------------------------------------------------------------------


def matched(uncertainty: np.ndarray, mean: float, cap: float) -> np.ndarray:
    return assign_alpha(uncertainty, {"map": "mean_matched", "alpha_mean": mean, "alpha_cap": cap})


def bisected(uncertainty: np.ndarray, mean: float, cap: float) -> np.ndarray:
    """Search the scale at which the clipped mean is right."""
    low, high = 0.0, 1.0
    while np.minimum(high * uncertainty, cap).mean() < mean * (1 - 1e-12) and high < 1e12:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.minimum(middle * uncertainty, cap).mean() < mean else (low, middle)
    return np.minimum(high * uncertainty, cap)


@pytest.mark.slow
@given(uncertainty=scores, cap=st.floats(0.01, 0.99), share=st.floats(0, 1))
def test_mean_matched_is_what_bisection_finds(uncertainty: list[float], cap: float, share: float) -> None:
    mean = share * reachable(uncertainty, cap)
    values = np.array(uncertainty)
    np.testing.assert_allclose(matched(values, mean, cap), bisected(values, mean, cap), atol=1e-7)


@given(uncertainty=scores, cap=st.floats(0.01, 0.99), share=st.floats(0, 1))
def test_mean_matched_keeps_its_promises(uncertainty: list[float], cap: float, share: float) -> None:
    mean = share * reachable(uncertainty, cap)
    alpha = assign(uncertainty, map="mean_matched", alpha_mean=mean, alpha_cap=cap)
    assert alpha.mean() == pytest.approx(mean, abs=1e-12)
    assert ((alpha >= 0) & (alpha <= cap)).all()
    order = np.argsort(uncertainty, kind="stable")
    assert (np.diff(alpha[order]) >= 0).all()


@given(uncertainty=scores, cap=st.floats(0.01, 0.9), beyond=st.floats(1e-6, 1))
def test_a_mean_that_cannot_be_reached_is_refused(uncertainty: list[float], cap: float, beyond: float) -> None:
    limit = reachable(uncertainty, cap)
    mean = limit + beyond * (cap - limit)
    assume(mean > limit + 1e-9)
    with pytest.raises(UserError, match="cannot reach alpha_mean") as error:
        assign(uncertainty, map="mean_matched", alpha_mean=mean, alpha_cap=cap)
    (told,) = re.findall(r"reachable (0\.\d{4})", str(error.value))
    assert float(told) == pytest.approx(limit, abs=0.51e-4)  # a limit between two of four digits may be rounded either way
    assert "map: rank" in str(error.value)


def test_the_highest_reachable_mean_is_reached() -> None:
    alpha = assign([0.1] * 7 + [0.0] * 3, map="mean_matched", alpha_mean=0.28, alpha_cap=0.4)
    np.testing.assert_allclose(alpha, [0.4] * 7 + [0.0] * 3)


@pytest.mark.parametrize("cap", [0.1, 0.3, 0.4, 0.7])
def test_the_highest_reachable_mean_is_reached_whatever_the_rounding(cap: float) -> None:
    for rows in range(1, 200):
        uncertainty = np.linspace(0.1, 1, rows) ** 3
        np.testing.assert_allclose(matched(uncertainty, cap, cap), cap)


def test_all_certain_rows_cannot_be_smoothed() -> None:
    with pytest.raises(UserError, match="cannot reach"):
        assign([0.0, 0.0], map="mean_matched")


# --- every map and control -------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", MAPS)
@given(uncertainty=scores)
def test_maps_never_fall_and_treat_equals_alike(name: str, uncertainty: list[float]) -> None:
    mean = reachable(uncertainty, 0.4) / 2
    alpha = assign(uncertainty, map=name, alpha_mean=mean, alpha_cap=0.4, alpha_min=0.05, alpha_max=0.25)
    values = np.array(uncertainty)
    higher = values[:, None] > values[None, :]
    equal = values[:, None] == values[None, :]
    difference = alpha[:, None] - alpha[None, :]
    assert (difference[higher] >= -1e-15).all()
    assert (np.abs(difference[equal]) <= 1e-15).all()


@pytest.mark.parametrize("name", ["linear", "minmax", "rank"])
@given(uncertainty=scores)
def test_alpha_stays_between_alpha_min_and_alpha_max(name: str, uncertainty: list[float]) -> None:
    alpha = assign(uncertainty, map=name, alpha_min=0.05, alpha_max=0.25)
    assert ((alpha >= 0.05 - 1e-15) & (alpha <= 0.25 + 1e-15)).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", MAPS + CONTROLS)
@given(uncertainty=with_holes)
def test_as_many_alphas_as_rows_and_all_in_range(name: str, uncertainty: list[float]) -> None:
    assume(not np.isnan(uncertainty).all())
    alpha = assign(uncertainty, map=name)
    assert alpha.shape == (len(uncertainty),)
    assert ((alpha >= 0) & (alpha < 1)).all()


@pytest.mark.parametrize("name", MAPS + CONTROLS)
def test_no_rows_no_alphas(name: str) -> None:
    assert assign([], map=name).shape == (0,)


def test_the_input_is_left_alone() -> None:
    values = np.array([0.3, NAN, 0.9])
    for name in MAPS + CONTROLS:
        assign_alpha(values, name)
    np.testing.assert_array_equal(values, [0.3, NAN, 0.9])


# --- controls --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("base", MAPS)
@given(uncertainty=st.lists(st.floats(0.01, 1), min_size=1, max_size=30), seed=st.integers(0, 2**31))
def test_shuffled_hands_out_the_same_alphas(base: str, uncertainty: list[float], seed: int) -> None:
    alpha = assign(uncertainty, map=base)
    shuffled = assign(uncertainty, seed, map="shuffled", base=base)
    np.testing.assert_array_equal(np.sort(shuffled), np.sort(alpha))
    np.testing.assert_array_equal(shuffled, assign(uncertainty, seed, map="shuffled", base=base))


def test_shuffled_depends_on_the_seed_and_breaks_the_tie_to_uncertainty() -> None:
    uncertainty = np.linspace(0.01, 1, 500)
    orders = [assign_alpha(uncertainty, "shuffled", seed) for seed in range(3)]
    assert not np.array_equal(orders[0], orders[1])
    assert not np.array_equal(orders[1], orders[2])
    for order in orders:
        assert abs(np.corrcoef(uncertainty, order)[0, 1]) < 0.2  # more than four standard errors


def test_only_shuffled_depends_on_the_seed() -> None:
    uncertainty = np.linspace(0.01, 1, 50)
    for name in [*MAPS, "none", "constant", "per_source_constant", "inverted"]:
        np.testing.assert_array_equal(assign_alpha(uncertainty, name, 0), assign_alpha(uncertainty, name, 1))


@pytest.mark.slow
@pytest.mark.parametrize("base", MAPS)
@given(uncertainty=st.lists(st.one_of(ninths, st.floats(0.01, 1)), min_size=1, max_size=30))
def test_inverted_hands_the_same_alphas_out_backwards(base: str, uncertainty: list[float]) -> None:
    """Also among rows that mean_matched clips at the cap: they differ in uncertainty, though not in alpha."""
    alpha = assign(uncertainty, map=base, alpha_mean=0.3)
    inverted = assign(uncertainty, map="inverted", base=base, alpha_mean=0.3)
    np.testing.assert_array_equal(np.sort(inverted), np.sort(alpha))
    values = np.array(uncertainty)
    higher = values[:, None] > values[None, :]
    assert ((inverted[:, None] - inverted[None, :])[higher] <= 0).all()


def test_inverted_takes_rows_of_one_uncertainty_in_random_order() -> None:
    """Ratings have few values; in the order of the rows, which may be that of their sources, the first ones got the most."""
    uncertainty = np.array([0.0] * 40 + [1.0] * 10)
    places = [np.flatnonzero(assign_alpha(uncertainty, {"map": "inverted", "base": "linear"}, seed) > 0) for seed in range(200)]
    assert all(len(found) == 10 and found.max() < 40 for found in places)
    assert np.bincount(np.concatenate(places), minlength=40).min() > 20, "each of the 40 about 50 times of 200"


def test_inverted_of_clipped_rows_by_hand() -> None:
    """The base holds the rows of .9 and .8 at the cap; the .9 row must still get the least."""
    spec = {"base": "mean_matched", "alpha_mean": 0.3, "alpha_cap": 0.4}
    np.testing.assert_allclose(assign([0.9, 0.8, 0.1, 0.3], map="mean_matched", **spec), [0.4, 0.4, 0.1, 0.3])
    np.testing.assert_allclose(assign([0.9, 0.8, 0.1, 0.3], map="inverted", **spec), [0.1, 0.3, 0.4, 0.4])


# --- lengths and sources ---------------------------------------------------------------------------------------------

lengths_of = st.lists(st.tuples(st.floats(0.05, 1), st.integers(1, 9)), min_size=2, max_size=20)


def dolly_like() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Make uncertainties that grow with the length (correlation 0.4 with its logarithm) and are higher in one source."""
    random = np.random.default_rng(5)
    log_length = random.normal(5, 1, 2000)
    source = np.where(random.random(2000) < 0.5, "chat", "maths")
    score = 0.4 * (log_length - 5) + np.sqrt(1 - 0.16) * random.normal(size=2000) + 2.0 * (source == "chat")
    return 1 / (1 + np.exp(-score)), np.exp(log_length), source


@given(rows=lengths_of, share=st.floats(0.05, 1))
def test_a_row_counts_as_often_as_it_is_long(rows: list[tuple[float, int]], share: float) -> None:
    uncertainty, lengths = (np.array(column) for column in zip(*rows, strict=True))
    spec = {"map": "mean_matched", "alpha_mean": 0.3 * share, "alpha_cap": 0.3}
    weighted = assign_alpha(uncertainty, spec, lengths=lengths)
    np.testing.assert_allclose(np.repeat(weighted, lengths), assign_alpha(np.repeat(uncertainty, lengths), spec), atol=1e-12)


@pytest.mark.parametrize("weight", ["none", "certainty", "filter", "flow"])
@pytest.mark.parametrize("base", MAPS)
def test_every_control_smooths_as_much_per_token_as_its_base(base: str, weight: str) -> None:
    """Per token as it counts in the loss: a row of weight 2 smooths twice as much as one of weight 1."""
    uncertainty, lengths, sources = dolly_like()
    weights = assign_weights(Rows.of(uncertainty, lengths), ArmConfig.model_validate({"weight": weight}))

    def mean(name: str) -> float:
        alpha = assign_alpha(uncertainty, {"map": name, "base": base}, 3, lengths, sources, weights)
        kept = weights > 0
        np.testing.assert_array_equal(np.isnan(alpha), ~kept)
        assert ((alpha[kept] >= 0) & (alpha[kept] < 1)).all()
        return float(np.average(alpha[kept], weights=(lengths * weights)[kept]))

    for name in ("shuffled", "shuffled_within", "per_source_constant", "inverted", "constant"):
        assert mean(name) == pytest.approx(mean(base), rel=1e-9), name
    if base == "mean_matched":
        assert mean(base) == pytest.approx(mean("constant")) == pytest.approx(0.1)
        by_row = assign_alpha(uncertainty, "shuffled", 3)
        assert np.average(by_row, weights=lengths) < 0.95 * np.average(assign_alpha(uncertainty, base), weights=lengths), (
            "without lengths the arms differ in how much they smooth"
        )


def test_shuffled_within_leaves_sources_and_long_rows_as_uncertain_as_they_are() -> None:
    uncertainty, lengths, sources = dolly_like()
    base, within, anywhere = (
        assign_alpha(uncertainty, {"map": name, "base": "rank"}, 1, lengths, sources)
        for name in ("rank", "shuffled_within", "shuffled")
    )
    chat = sources == "chat"
    gap = base[chat].mean() - base[~chat].mean()
    assert within[chat].mean() - within[~chat].mean() == pytest.approx(gap, rel=0.02)
    assert abs(anywhere[chat].mean() - anywhere[~chat].mean()) < 0.1 * gap
    for own in (chat, ~chat):
        assert np.corrcoef(np.log(lengths[own]), within[own])[0, 1] > 0.25
        longest = own & (lengths > np.quantile(lengths[own], 0.75))
        assert abs(np.corrcoef(uncertainty[longest], within[longest])[0, 1]) < 0.2, "within a stratum nothing is left of it"


def test_shuffled_within_by_hand() -> None:
    """Four rows of each length in each of two sources: every stratum holds rows of one source and one length."""
    lengths = np.tile(np.repeat([1.0, 2, 3, 4], 4), 2)
    sources = np.repeat(["a", "b"], 16)
    uncertainty = np.random.default_rng(0).random(32)
    base = assign_alpha(uncertainty, "linear", 0, np.ones(32), sources)
    mixed = assign_alpha(uncertainty, {"map": "shuffled_within", "base": "linear"}, 0, lengths, sources)
    for source in "ab":
        for length in (1, 2, 3, 4):
            own = (lengths == length) & (sources == source)
            np.testing.assert_allclose(np.sort(mixed[own]), np.sort(base[own]), rtol=1e-9)
    assert not np.allclose(mixed, base)


def test_per_source_constant_by_hand() -> None:
    spec = {"map": "per_source_constant", "base": "linear", "alpha_max": 0.5}
    alpha = assign_alpha([0.2, 0.6, 0.8, 0.4], spec, lengths=[1, 3, 1, 1], sources=["a", "a", "b", "b"])
    np.testing.assert_allclose(alpha, [0.25, 0.25, 0.3, 0.3])


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [-0.01, 1.0001, 9.0, float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["linear", "none"])
def test_values_outside_the_range_are_shown(bad: float, name: str) -> None:
    with pytest.raises(UserError, match=rf"(?s)outside \[0, 1\].*{bad}"):
        assign([0.5, NAN, bad], map=name)
    with pytest.raises(UserError, match=rf"got: {bad} in 2 of 9 rows\n"):
        assign([0.5] * 6 + [NAN, bad, bad], map=name)


def test_a_matrix_is_refused() -> None:
    with pytest.raises(UserError, match=r"one-dimensional(?s:.*)\(2, 1\)"):
        assign_alpha(np.zeros((2, 1)), "none")


def test_a_spec_may_be_a_name_a_mapping_or_a_section() -> None:
    for spec in ["rank", {"map": "rank"}, ArmConfig(map="rank")]:
        np.testing.assert_allclose(assign_alpha([0.1, 0.9], spec), [0.0, 0.2])


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("sigmoid", "'mean_matched'"),
        ({"map": "sigmoid"}, "'mean_matched'"),
        ({"map": "linear", "alpha_max": 1.5}, "alpha_max"),
        ({"map": "linear", "alpha_min": 0.3}, "must not be above alpha_max"),
        ({"map": "linear", "alpha_mxa": 0.3}, "alpha_max"),
    ],
)
def test_a_bad_spec_is_refused(spec: Spec | str, says: str) -> None:
    with pytest.raises(UserError) as error:
        assign_alpha([0.5], spec)
    assert says in str(error.value)
    assert "pydantic" not in str(error.value)


# --- describe --------------------------------------------------------------------------------------------------------


def test_describe() -> None:
    assert describe(np.array([0.0, 0.1, NAN, 0.2, 0.3, 0.4])) == pytest.approx(
        {
            **{"rows": 6, "excluded": 1, "mean": 0.2, "mean_by_length": 0.2, "std": 0.02**0.5},
            **{"min": 0.0, "q25": 0.1, "median": 0.2, "q75": 0.3, "max": 0.4},
        }
    )


def test_describe_by_length() -> None:
    found = describe(np.array([0.1, NAN, 0.4]), np.array([3.0, 50.0, 1.0]))
    assert (found["mean"], found["mean_by_length"]) == pytest.approx((0.25, 0.175))


def test_describe_nothing() -> None:
    assert describe(np.array([NAN, NAN])) == {"rows": 2, "excluded": 2}
    assert describe(np.array([])) == {"rows": 0, "excluded": 0}
