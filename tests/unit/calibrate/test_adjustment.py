"""The adjustment by temperature and floor: against its definition, brute force, and a known mixture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax

from ual_ray.calibrate.adjustment import FLOOR_SHARE, HIGHEST_FLOOR, Adjustment, fit_adjustment, remove_floor
from ual_ray.calibrate.metrics import fit_temperature

TOKENS, CLASSES = 4000, 50


def nll_of(logits: np.ndarray, labels: np.ndarray, temperature: float, floor: float) -> float:
    """Compute the mean NLL by the definition."""
    p = softmax(logits, axis=1)
    f = np.maximum(p - floor / logits.shape[1], FLOOR_SHARE * p)
    return float(-log_softmax(np.log(f) / temperature, axis=1)[np.arange(len(labels)), labels].mean())


def fitted(logits: np.ndarray, labels: np.ndarray) -> Adjustment:
    chunks = [
        (torch.from_numpy(logits[part]).float(), torch.from_numpy(labels[part])) for part in (slice(700), slice(700, None))
    ]
    return fit_adjustment(chunks, fit_temperature(logits, labels))


def drawn(scale: float, seed: int = 0, tokens: int = TOKENS) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels drawn from their softmax."""
    random = np.random.default_rng(seed)
    logits = scale * random.normal(size=(tokens, CLASSES))
    return logits, (logits + random.gumbel(size=logits.shape)).argmax(axis=1)


def test_removing_a_floor_is_the_definition_and_keeps_the_order() -> None:
    logits = torch.from_numpy(drawn(4.0)[0]).double()
    p = torch.softmax(logits, dim=1)
    f = torch.maximum(p - 0.2 / CLASSES, FLOOR_SHARE * p)
    torch.testing.assert_close(remove_floor(logits, 0.2), f.log())
    assert torch.equal(remove_floor(logits, 0.2).argsort(dim=1), logits.argsort(dim=1))
    assert torch.equal(remove_floor(logits, 0.0), logits)
    barred = torch.tensor([[0.0, 1.0, -200.0]])
    assert torch.isfinite(remove_floor(barred, 0.1)).all(), "1 / p overflows, its logarithm does not"


@pytest.mark.slow
@pytest.mark.parametrize("mixed", [0.02, 0.1, 0.3])
def test_a_known_mixture_is_undone(mixed: float) -> None:
    logits, labels = drawn(4.0)
    p = softmax(logits, axis=1)
    smoothed = np.log((1 - mixed) * p + mixed / CLASSES)
    found = fitted(smoothed, labels)
    assert found.floor == pytest.approx(mixed, rel=0.05)
    assert found.temperature == pytest.approx(1, abs=0.03)
    own = nll_of(logits, labels, 1, 0)
    adjusted = nll_of(smoothed, labels, found.temperature, found.floor)
    scaled = nll_of(smoothed, labels, fit_temperature(smoothed, labels), 0)
    assert adjusted == pytest.approx(own, abs=0.005)
    assert adjusted - own < (scaled - own) / 3


@pytest.mark.slow
@pytest.mark.parametrize(("scale", "mixed", "stretch"), [(4.0, 0.1, 1.5), (2.0, 0.0, 3.0), (3.0, 0.25, 0.7), (0.5, 0.0, 1.0)])
def test_the_fit_is_that_of_brute_force_and_never_worse_than_a_temperature(scale: float, mixed: float, stretch: float) -> None:
    logits, labels = drawn(scale, seed=1, tokens=1000)  # both minimise over the same labels
    logits = stretch * np.log((1 - mixed) * softmax(logits, axis=1) + mixed / CLASSES)
    found = fitted(logits, labels)
    value = nll_of(logits, labels, found.temperature, found.floor)
    temperature = fit_temperature(logits, labels)
    floors = [0.0, *np.geomspace(1e-3, HIGHEST_FLOOR, 15)]
    grid = min(nll_of(logits, labels, temperature * t, eps) for t in np.geomspace(0.5, 2, 21) for eps in floors)
    assert value <= nll_of(logits, labels, temperature, 0) + 1e-6
    assert value <= grid + 1e-4


def test_calibrated_labels_need_no_floor() -> None:
    logits, labels = drawn(2.0)
    found = fitted(logits, labels)
    assert nll_of(logits, labels, 1, 0) - nll_of(logits, labels, found.temperature, found.floor) < 0.001


def test_without_a_gain_the_temperature_alone_is_kept() -> None:
    logits, labels = drawn(2.0)
    labels = logits.argmin(axis=1)
    found = fitted(logits, labels)
    assert found.floor == 0
    assert found.temperature == pytest.approx(fit_temperature(logits, labels))
