"""What a training states about its rows: how many were dropped, truncated, or end in no end of turn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ual_ray.errors import UserError
from ual_ray.train import tokenize as tokens
from ual_ray.train.step import _line

METRICS = {
    **{"steps": 9, "train_rows": 128, "dropped_rows": 0, "truncated_rows": 0, "endless_rows": 0},
    **{"last": {"step": 9.0, "nll": 1.5}, "exported": {"step": 9.0}, "median_tokens_per_second": 1000.0},
}


def summary(**counts: Any) -> dict[str, Any]:
    return {name: 0 for name in tokens.COUNTED} | {"dropped": []} | counts


def test_truncated_rows_are_counted_over_all_blocks_and_stated(tmp_path: Path) -> None:
    blocks = [summary(train_rows=100, truncated_rows=97), summary(train_rows=28, validation_rows=7, truncated_rows=27)]
    counts = tokens._count(iter(blocks), tmp_path / "dropped.txt")
    assert (counts["train_rows"], counts["validation_rows"], counts["truncated_rows"], counts["dropped_rows"]) == (
        128,
        7,
        124,
        0,
    )
    text = _line(METRICS | counts)
    assert "128 rows; 0 rows dropped; 124 truncated at train.max_length, without their end of turn; training NLL" in text


def test_whole_rows_are_not_called_truncated() -> None:
    assert "truncated" not in _line(METRICS) and "WARNING" not in _line(METRICS)
    assert "WARNING: the chat template ends a reply without a special token" in _line(METRICS | {"endless_rows": 128})


def test_a_token_without_an_embedding_in_any_block_ends_the_step_before_training(tmp_path: Path) -> None:
    outside = [{"id": "a", "reason": tokens.NO_EMBEDDING, "error": "token 700 is outside of the model's vocabulary"}]
    with pytest.raises(UserError, match="(?s)the tokenizer is larger than the model's embedding.*1 rows: token 700"):
        tokens._count(iter([summary(train_rows=1), summary(dropped=outside)]), tmp_path / "dropped.txt")
