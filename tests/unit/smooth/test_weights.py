"""Weights of rows: hand-computed values, a mean of 1 per token, and rejected input."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ual_ray.config import ArmConfig
from ual_ray.config.registry import WEIGHTS
from ual_ray.errors import UserError
from ual_ray.smooth.maps import Rows
from ual_ray.smooth.weights import assign_weights

NAN = float("nan")


def weigh(uncertainty: list[float], lengths: list[float] | None = None, **arm: Any) -> list[float]:
    return assign_weights(Rows.of(np.array(uncertainty), lengths), ArmConfig.model_validate(arm)).tolist()


@pytest.mark.parametrize(
    ("arm", "uncertainty", "lengths", "expected"),
    [
        ({}, [0.1, 0.9], None, [1, 1]),
        ({"weight": "certainty"}, [0.2, 0.6], None, [0.8 / 0.6, 0.4 / 0.6]),
        # (0.8 * 1 + 0.4 * 3) / 4 = 0.5
        ({"weight": "certainty"}, [0.2, 0.6], [1, 3], [1.6, 0.8]),
        ({"weight": "certainty"}, [0.2, NAN, 0.6], None, [0.8 / 0.6, 1, 0.4 / 0.6]),
        ({"weight": "filter", "filter_share": 0.25}, [0.4, 0.9, 0.1, 0.2], None, [1, 0, 1, 1]),
        ({"weight": "filter", "filter_share": 0.5}, [0.4, 0.9, 0.1, 0.2], None, [0, 0, 1, 1]),
        # The row without a score is not trained on, whatever it would weigh.
        ({"weight": "filter", "filter_share": 0.25, "missing": "exclude"}, [0.4, 0.9, 0.1, 0.2, NAN], None, [1, 0, 1, 1, 0]),
        # As uncertain as the last one kept.
        ({"weight": "filter", "filter_share": 0.5}, [0.5, 0.9, 0.5, 0.5], None, [1, 0, 1, 1]),
        # l = 1, 2, 3; tau = 2: exp(-0.5), exp(-1), exp(-1.5), by their mean
        (
            {"weight": "flow"},
            [1 - np.exp(-1), 1 - np.exp(-2), 1 - np.exp(-3)],
            None,
            (np.exp([-0.5, -1, -1.5]) / np.exp([-0.5, -1, -1.5]).mean()).tolist(),
        ),
    ],
)
def test_weights_by_hand(arm: dict[str, Any], uncertainty: list[float], lengths: Any, expected: list[float]) -> None:
    assert weigh(uncertainty, lengths, **arm) == pytest.approx(expected)


@given(
    st.sampled_from(list(WEIGHTS)),
    st.lists(st.tuples(st.one_of(st.floats(0, 0.99), st.just(NAN)), st.integers(1, 500)), min_size=1, max_size=30),
)
def test_kept_rows_have_a_mean_of_one_per_token_and_follow_certainty(name: str, rows: list[tuple[float, int]]) -> None:
    uncertainty, lengths = (np.array(values, dtype=float) for values in zip(*rows, strict=True))
    if name != "none" and np.isnan(uncertainty).all():
        with pytest.raises(UserError, match="no row has an uncertainty"):
            weigh(uncertainty.tolist(), lengths.tolist(), weight=name)
        return
    known = np.sort(uncertainty[~np.isnan(uncertainty)])
    if name == "filter" and known[int(0.8 * (len(known) - 1))] == known[-1]:
        with pytest.raises(UserError, match="leaves none"):
            weigh(uncertainty.tolist(), lengths.tolist(), weight=name)
        return
    weights = np.array(weigh(uncertainty.tolist(), lengths.tolist(), weight=name))
    kept = weights > 0
    assert np.average(weights[kept], weights=lengths[kept]) == pytest.approx(1)
    scored = ~np.isnan(uncertainty)
    order = np.argsort(uncertainty[scored])
    assert (np.diff(weights[scored][order]) <= 1e-9).all()


@pytest.mark.parametrize("uncertainty", [[0.5, 0.5, 0.5, 0.1], [0.2]])
def test_a_filter_that_leaves_nothing_out_is_refused(uncertainty: list[float]) -> None:
    """It would be plain training under another name."""
    with pytest.raises(UserError, match=r"leaves none of \d rows? out.*\n.*filter_share 0.5"):
        weigh(uncertainty, weight="filter", filter_share=0.5)


def test_rows_that_are_all_certainly_wrong_have_no_weight() -> None:
    with pytest.raises(UserError, match="every row the weight 0"):
        weigh([1.0, 1.0], weight="certainty")
