"""F where scores are missing: imputed, a default, or excluded rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from map_cases import CONTROLS, MAPS, NAN, Spec, assign, with_holes

from ual_ray.errors import UserError
from ual_ray.smooth.maps import assign_alpha

HOLES = [0.2, NAN, 0.6, NAN, 0.7]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"map": "linear", "alpha_max": 0.5}, [0.1, 0.25, 0.3, 0.25, 0.35]),  # impute: their mean is 0.5
        ({"map": "minmax", "alpha_max": 0.5}, [0.0, 0.3, 0.4, 0.3, 0.5]),
        ({"map": "rank", "alpha_max": 0.4}, [0.0, 0.15, 0.3, 0.15, 0.4]),
        ({"map": "mean_matched", "alpha_mean": 0.1}, [0.04, 0.1, 0.12, 0.1, 0.14]),
        ({"map": "linear", "alpha_max": 0.5, "missing": "default"}, [0.1, 0.0, 0.3, 0.0, 0.35]),
        ({"map": "linear", "alpha_max": 0.5, "missing": "default", "missing_alpha": 0.9}, [0.1, 0.9, 0.3, 0.9, 0.35]),
        ({"map": "linear", "alpha_max": 0.5, "missing": "exclude"}, [0.1, NAN, 0.3, NAN, 0.35]),
        ({"map": "inverted", "base": "linear", "alpha_max": 0.5, "missing": "exclude"}, [0.35, NAN, 0.3, NAN, 0.1]),
        ({"map": "none", "missing": "exclude"}, [0.0, NAN, 0.0, NAN, 0.0]),
        ({"map": "none", "missing": "impute"}, [0.0] * 5),
        ({"map": "constant", "missing": "exclude"}, [0.1, NAN, 0.1, NAN, 0.1]),
        ({"map": "constant", "missing": "impute"}, [0.1] * 5),
    ],
)
def test_rows_without_a_score(spec: Spec, expected: list[float]) -> None:
    np.testing.assert_allclose(assign_alpha(HOLES, spec), expected, atol=1e-12)


@pytest.mark.parametrize("name", ["minmax", "rank"])
def test_equal_scores_are_equal_to_the_imputed_one(name: str) -> None:
    """In floating point the mean of three scores of 0.1 is above 0.1."""
    np.testing.assert_allclose(assign([0.1, 0.1, 0.1, NAN], map=name, alpha_max=0.4), [0.2] * 4, atol=1e-12)


def test_none_counts_as_missing() -> None:
    np.testing.assert_array_equal(assign([0.2, None, 0.6], map="rank"), assign([0.2, NAN, 0.6], map="rank"))  # type: ignore[list-item]


@pytest.mark.slow
@pytest.mark.parametrize("missing", ["default", "exclude"])
@given(uncertainty=with_holes, seed=st.integers(0, 99))
def test_scored_rows_are_mapped_as_if_alone(missing: str, uncertainty: list[float], seed: int) -> None:
    values = np.array(uncertainty)
    holes = np.isnan(values)
    assume(not holes.all())
    for name in [*MAPS, "shuffled", "shuffled_within", "per_source_constant", "inverted"]:
        alpha = assign(uncertainty, seed, map=name, missing=missing, missing_alpha=0.03)
        np.testing.assert_array_equal(alpha[~holes], assign_alpha(values[~holes], {"map": name}, seed))
        assert (np.isnan(alpha[holes]) if missing == "exclude" else alpha[holes] == 0.03).all()


@pytest.mark.parametrize("missing", ["impute", "default", "exclude"])
def test_a_constant_of_another_base_is_its_mean_over_the_rows_that_it_scores(missing: str) -> None:
    uncertainty, lengths = [0.2, NAN, 0.9, 0.4], np.array([1.0, 2.0, 3.0, 4.0])
    spec = {"base": "rank", "missing": missing, "missing_alpha": 0.03}
    base, found = (assign_alpha(uncertainty, {"map": name, **spec}, lengths=lengths) for name in ("rank", "constant"))
    np.testing.assert_array_equal(np.isnan(found), np.isnan(base))
    there = ~np.isnan(base)
    assert np.average(found[there], weights=lengths[there]) == pytest.approx(np.average(base[there], weights=lengths[there]))
    with pytest.raises(UserError, match="(?s)no row has an uncertainty, which base: rank reads.*base: mean_matched"):
        assign([NAN, NAN], map="constant", base="rank")


@pytest.mark.parametrize("name", MAPS + CONTROLS)
def test_every_arm_excludes_the_same_rows(name: str) -> None:
    np.testing.assert_array_equal(np.isnan(assign(HOLES, map=name, missing="exclude")), np.isnan(HOLES))


@pytest.mark.parametrize("name", [*MAPS, "shuffled", "shuffled_within", "per_source_constant", "inverted"])
def test_nothing_but_missing_scores_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="(?s)no row has an uncertainty.*2 rows"):
        assign([NAN, NAN], map=name)


@pytest.mark.parametrize(("name", "expected"), [("none", 0.0), ("constant", 0.1)])
def test_arms_that_need_no_score_do_without(name: str, expected: float) -> None:
    np.testing.assert_array_equal(assign([NAN, NAN], map=name), [expected] * 2)
