"""What the inspection of scored rows warns of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scored_rows import SCORE, inspected, labels_of, many, row

from ual_ray.inspect.summary import warnings_of

NOISE = np.random.default_rng(4).normal(0, 0.3, 200)
EVERY = np.arange(200)


@pytest.mark.parametrize(
    ("columns", "warning"),
    [
        ({}, None),
        ({"response_length": (SCORE * 1000).astype(int)}, "uncertainty follows response length (Spearman 1.00): consider"),
        ({"response_length": (-SCORE * 1000).astype(int)}, "uncertainty falls with response length (Spearman -1.00)"),
        (
            {"uncertainty_verbalized_error": np.where(EVERY < 80, 0.5, SCORE)},
            "40% of the rows share one value of verbalized_error (0.500)",
        ),
        ({"retest_verbalized_error": SCORE + NOISE}, "of the spread of verbalized_error"),
        ({"uncertainty_nll": np.abs(NOISE)}, "weakly correlated estimators: verbalized_error and nll (Spearman "),
        ({"uncertainty_nll": 1 - SCORE}, "negatively correlated estimators: verbalized_error and nll (Spearman -1.00)"),
        ({"uncertainty_nll": 0.5 + 0.01 * SCORE}, "nll hardly varies (standard deviation 0.003, 1% of its mean), nor does"),
        (
            {"uncertainty_nll": np.where(SCORE > 0.5, 1 - SCORE / 1e6, SCORE / 1e6)},
            "100% of the values of nll lie at the edges",
        ),
        ({"mass_nll": np.where(EVERY < 101, 0.25, 0.9)}, "the choices of nll together have 25% of the probability"),
        ({"truncated": EVERY < 20}, "10% of rows were truncated"),
        ({"elicitor": np.where(EVERY < 20, "x", "y")}, "2 elicitors scored these rows"),
        ({"prompt_hash": np.where(EVERY < 20, "x", "y")}, "2 versions of the prompts"),
        ({"uncertainty_nll": np.where(EVERY < 20, np.nan, SCORE)}, "nll could be read from 90% of the replies only"),
    ],
)
def test_each_warning(tmp_path: Path, columns: dict[str, Any], warning: str | None) -> None:
    found = inspected(tmp_path, many(**columns)).warnings
    if warning is None:
        assert found == []
    else:
        assert [text for text in found if warning in text], found


def test_replies_that_were_cut(tmp_path: Path) -> None:
    rows = [each | {"finish_nll": ["stop", "length" if at % 2 else None]} for at, each in enumerate(many())]
    found = inspected(tmp_path, rows)
    assert found.scores["nll"].cut == 0.25 and found.scores["verbalized_error"].cut is None
    assert found.warnings == ["25% of the replies of nll were cut at their maximum length and do not count"]


def test_a_warning_says_a_rows_want_of_a_score(tmp_path: Path) -> None:
    rows = many()
    lost = [each | row(each["id"], None, error="overlong: long") | {"uncertainty_nll": None} for each in rows[:24]]
    found = inspected(tmp_path, [*lost, *rows[24:]])
    assert found.warnings == ["12% of rows have no score (overlong 24)"]


@pytest.mark.parametrize(
    ("wrong", "warning"),
    [
        (SCORE > 0.5, None),
        (SCORE < 0.5, "AUROC 0.00 of verbalized_error: worse than chance"),
        (EVERY % 2 == 0, "of verbalized_error: no better than chance"),
        (EVERY < 4, "only 4 labelled responses are wrong: AUROC and PRR are imprecise"),
        (EVERY > 3, "only 4 labelled responses are good: AUROC and PRR are imprecise"),
    ],
)
def test_warnings_of_quality(tmp_path: Path, wrong: np.ndarray, warning: str | None) -> None:
    rows = many()
    labels = labels_of(tmp_path, {each["id"]: int(not bad) for each, bad in zip(rows, wrong, strict=True)})
    found = inspected(tmp_path, rows, labels=labels).warnings
    assert (found == []) if warning is None else [text for text in found if warning in text], found


def test_few_labels_are_not_called_chance(tmp_path: Path) -> None:
    rows = many()
    found = inspected(tmp_path, rows, labels=labels_of(tmp_path, {each["id"]: 1 for each in rows} | {"0001": 0}))
    assert found.labelled is not None
    rough = replace(found.quality["verbalized_error"], auroc=0.7, auroc_low=0.45, auroc_high=0.9)
    texts = warnings_of(replace(found, quality={**found.quality, "verbalized_error": rough}))
    assert "AUROC 0.70 of verbalized_error: too few labels to tell from chance" in texts


def test_one_wrong_row_is_not_called_worse_than_chance(tmp_path: Path) -> None:
    """The wrong one of 8 rows is the least uncertain, as in one of 8 scores by chance; its bootstrap error is 0."""
    rows = sorted(many(), key=lambda each: each["uncertainty"])
    found = inspected(tmp_path, rows, labels=labels_of(tmp_path, {each["id"]: int(at > 0) for at, each in enumerate(rows[:8])}))
    assert not [text for text in found.warnings if "worse than chance" in text], found.warnings


def test_labels_that_fit_few_rows(tmp_path: Path) -> None:
    rows = many()
    labels = labels_of(tmp_path, {"0001": 1, "0002": 0} | {f"other-{n}": 1 for n in range(9)})
    assert "the 11 labels fit 2 rows only" in inspected(tmp_path, rows, labels=labels).warnings
