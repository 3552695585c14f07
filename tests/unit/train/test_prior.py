"""Priors: hand-computed unigram counts, valid files, and rejected files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ual_ray import columns as col
from ual_ray.config import TrainConfig
from ual_ray.errors import UserError
from ual_ray.train.loss_inputs import make_prior
from ual_ray.train.token_store import TokenStore


def store() -> TokenStore:
    rows = [
        {col.ID: "a", col.SPLIT: col.TRAIN, col.INPUT_IDS: [1, 2, 3], col.LABELS: [-100, 2, 3]},
        # Nothing predicts the first token of a row, whatever its label is.
        {col.ID: "b", col.SPLIT: col.TRAIN, col.INPUT_IDS: [5, 2, 2], col.LABELS: [5, 2, 2]},
        {col.ID: "c", col.SPLIT: col.VALIDATION, col.INPUT_IDS: [1, 4, 4], col.LABELS: [-100, 4, 4]},
    ]
    full = [{col.ALPHA: 0.1, col.TARGET_TOKENS: 2, **row} for row in rows]
    return TokenStore(pa.Table.from_pylist(full, col.TOKENS), col.TRAIN)


def test_unigram_counts_the_targets_of_training_rows() -> None:
    prior = make_prior(TrainConfig(prior="unigram"), store(), 6)
    assert prior is not None
    assert prior.tolist() == [0, 0, 0.75, 0.25, 0, 0]


def test_uniform_is_the_default_of_the_loss() -> None:
    assert make_prior(TrainConfig(), store(), 6) is None


def test_a_file_is_read(tmp_path: Path) -> None:
    np.save(tmp_path / "prior.npy", [0.5, 0.25, 0.25])
    config = TrainConfig(prior="file", prior_file=str(tmp_path / "prior.npy"))
    prior = make_prior(config, store(), 3)
    assert prior is not None
    assert prior.tolist() == [0.5, 0.25, 0.25]
    with pytest.raises(UserError, match="3 probabilities.*\n.*expected: 4"):
        make_prior(config, store(), 4)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([0.5, 0.6], "a sum of 1.1"),
        ([1.5, -0.5], "all values 0 or above"),
        ([[0.5], [0.5]], "shape"),
        (["a", "b"], "could not convert"),
        ([float("nan"), 1.0], "all values 0 or above"),
    ],
)
def test_what_is_no_distribution_is_refused(content: Any, message: str, tmp_path: Path) -> None:
    np.save(tmp_path / "prior.npy", content)
    with pytest.raises(UserError, match=message):
        make_prior(TrainConfig(prior="file", prior_file=str(tmp_path / "prior.npy")), store(), 2)


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "prior.npy").write_text("0.5 0.5")
    for name in ("prior.npy", "absent.npy"):
        with pytest.raises(UserError, match="prior_file cannot be used"):
            make_prior(TrainConfig(prior="file", prior_file=str(tmp_path / name)), store(), 2)


def test_the_mean_alpha_is_per_target_token() -> None:
    rows = [
        {col.ID: name, col.SPLIT: col.TRAIN, col.ALPHA: alpha, col.TARGET_TOKENS: n, col.INPUT_IDS: [1], col.LABELS: [1]}
        for name, alpha, n in (("a", 0.1, 3), ("b", 0.5, 1))
    ]
    assert TokenStore(pa.Table.from_pylist(rows, col.TOKENS), col.TRAIN).mean_alpha() == pytest.approx(0.2)
    assert TokenStore(pa.Table.from_pylist(rows, col.TOKENS), col.VALIDATION).mean_alpha() == 0
