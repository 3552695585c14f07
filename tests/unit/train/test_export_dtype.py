"""The precision of exported weights follows that of evaluation, unless it is set."""

from __future__ import annotations

import pytest

from ual_ray.config.keys import affecting
from ual_ray.config.load import load
from ual_ray.train.export_dtype import with_export_dtype


@pytest.mark.parametrize(
    ("evaluated", "asked", "exported"),
    [
        ("float32", "auto", "float32"),
        ("bfloat16", "auto", "bfloat16"),
        ("float16", "auto", "float32"),
        ("auto", "auto", "float32"),
        ("float32", "bfloat16", "bfloat16"),
        ("bfloat16", "float32", "float32"),
    ],
)
def test_weights_are_rounded_only_as_evaluation_rounds_them(evaluated: str, asked: str, exported: str) -> None:
    config = load(None, [f"evaluate.dtype={evaluated}", f"train.export_dtype={asked}"])
    assert affecting(with_export_dtype(config).train, "weights")["export_dtype"] == exported
