"""What the training curves say about the regime of a run."""

from __future__ import annotations

import pytest

from ual_ray.report.findings import Findings, regime_of
from ual_ray.stats.comparison import Comparisons, Role
from ual_ray.stats.metrics import MetricValue

NONE = Comparisons((), 0.95, 1, 0)


def findings(*curves: list[list[float]], role: Role = "sft") -> Findings:
    metrics = {"plain": [MetricValue("b", "nll", "overall", 1.0, None, 1)]}
    return Findings(metrics, NONE, {"plain": role}, validation={"plain": [*curves]})


@pytest.mark.parametrize(
    ("curve", "words"),
    [
        ([[0, 2.0], [4, 1.5], [8, 1.4]], "plain had not begun to overfit: its validation NLL was lowest at the last step (8)."),
        ([[0, 2.0], [4, 1.5], [8, 1.6]], "lowest at step 4 (1.500) and 1.600 at the last step (8)."),
        ([[0, 2.0], [4, 1.5], [8, 1.5]], "plain overfitted: its validation NLL was lowest at step 4"),
    ],
)
def test_the_regime_is_read_from_the_arm_without_smoothing(curve: list[list[float]], words: str) -> None:
    assert words in (regime_of(findings(curve)) or "")


FALLING, RISING = [[0, 2.0], [4, 1.6], [8, 1.4]], [[0, 2.0], [4, 1.5], [8, 1.6]]


@pytest.mark.parametrize(
    ("curves", "words"),
    [
        ([FALLING, FALLING], "not begun to overfit in any of 2 training seeds: its validation NLL was lowest at the last step"),
        (
            [FALLING, RISING, RISING],
            "plain overfitted in 2 of 3 training seeds: its validation NLL was lowest at step 4 to 8 (1.467) and 1.533 at the "
            "last step (8), means over the seeds. Until then, smoothing costs raw NLL",
        ),
        ([RISING, RISING], "plain overfitted in 2 of 2 training seeds: its validation NLL was lowest at step 4 (1.500)"),
        ([RISING, [[8, 1.4]]], "plain overfitted: "),
    ],
)
def test_the_regime_is_that_of_all_training_seeds(curves: list[list[list[float]]], words: str) -> None:
    assert words in (regime_of(findings(*curves)) or "")


def test_there_is_no_regime_without_such_an_arm_or_without_two_validations() -> None:
    assert regime_of(findings([[0, 2.0], [8, 1.4]], role="control")) is None
    assert regime_of(findings([[8, 1.4]])) is None
    assert regime_of(findings([])) is None
    assert regime_of(findings()) is None
