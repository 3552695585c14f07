"""How many rows an elicitation will score, before it has read them."""

from __future__ import annotations

import pytest

from ual_ray.config.load import load
from ual_ray.data.peek import DataPeek
from ual_ray.elicit.stage import expected_rows


@pytest.mark.parametrize(
    ("splits", "total", "expected"),
    [("[train]", 1000, 700), ("[train,test]", 1000, 900), ("[validation]", 3, 1), ("[train]", None, None)],
)
def test_how_many_rows_are_expected(splits: str, total: int | None, expected: int | None) -> None:
    assert expected_rows(load(None, [f"elicit.splits={splits}"]), DataPeek("alpaca", [], total, [], False)) == expected
