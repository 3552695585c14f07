"""A temperature and a smoothing floor, fitted on validation tokens: what a fair likelihood leaves out of every model.

Training on smoothed labels puts about eps / K under each of the K probabilities. The adjusted probabilities are

    p'(v) = f(v)^(1/T) / sum over u of f(u)^(1/T),   f(v) = max(p(v) - eps / K, FLOOR_SHARE p(v)),

with p the model's softmax at temperature 1: first the floor is removed, then the temperature is applied, then p' is normalised.
f keeps the order of the probabilities, so top-1 accuracy does not change, and eps = 0 is temperature scaling alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from ual_ray.calibrate.metrics import HIGHEST_TEMPERATURE, LOWEST_TEMPERATURE

# A probability below the floor keeps this share of itself: a rare label costs log 1000 / T nats more, not infinitely many.
FLOOR_SHARE = 0.001
HIGHEST_FLOOR = 0.5
# The floors that are tried before the best one is refined between its neighbours.
FLOORS = (0.003, 0.01, 0.03, 0.1, 0.2, 0.35, HIGHEST_FLOOR)
# Of log eps.
TOLERANCE = 0.03
# Validation tokens, evenly spaced, that the two numbers are fitted to.
MAX_TOKENS = 1024
# Logits that one operation works on: they stay in the processor's cache.
BLOCK = 2**16
NEWTON_STEPS = 4


@dataclass(frozen=True)
class Adjustment:
    """A temperature in [0.05, 20] and a floor eps in [0, 0.5]; the default changes nothing."""

    temperature: float = 1.0
    floor: float = 0.0


@dataclass(frozen=True)
class _Point:
    """The mean NLL at a floor and an inverse temperature b, with its first two derivatives by b."""

    floor: float
    inverse: float
    nll: float
    slope: float
    curvature: float

    def next_inverse(self) -> float:
        """Newton's step towards the lowest NLL, which is convex in b; at most by a factor of two."""
        step = self.inverse - self.slope / self.curvature if self.curvature > 0 else self.inverse
        step = min(max(step, self.inverse / 2), self.inverse * 2)
        return min(max(step, 1 / HIGHEST_TEMPERATURE), 1 / LOWEST_TEMPERATURE)

    def lowest_nll(self) -> float:
        """The NLL expected after that step."""
        step = self.next_inverse() - self.inverse
        return self.nll + step * self.slope + step**2 * self.curvature / 2


def remove_floor(logits: Tensor, floor: float) -> Tensor:
    """Return log f of logits [n, K], see the module; the logits themselves, which softmax reads alike, where floor is 0."""
    if floor == 0:
        return logits
    log_p = torch.log_softmax(logits, dim=1)
    share = torch.exp(-log_p).mul_(-floor / logits.shape[1]).add_(1)
    return share.clamp_(min=FLOOR_SHARE).log_().add_(log_p)


@torch.inference_mode()
def fit_adjustment(chunks: Sequence[tuple[Tensor, Tensor]], temperature: float) -> Adjustment:
    """Find temperature and floor of the lowest mean NLL of labels [n] given logits [n, K], both in chunks.

    temperature: the one of the lowest NLL without a floor; the result is never worse on these labels. About twenty passes over
    the logits: the NLL at a floor is that after Newton's step in 1 / T from the best temperature of the floor before.
    """
    tried = [_evaluate(chunks, 0.0, 1 / temperature)]

    def attempt(floor: float) -> float:
        nearest = min(tried, key=lambda point: abs(point.floor - floor))
        tried.append(_evaluate(chunks, floor, nearest.next_inverse()))
        return tried[-1].lowest_nll()

    expected = {floor: attempt(floor) for floor in FLOORS}
    best = FLOORS.index(min(expected, key=lambda floor: expected[floor]))
    low, high = FLOORS[max(best - 1, 0)] / (10 if best == 0 else 1), FLOORS[min(best + 1, len(FLOORS) - 1)]
    refined = minimize_scalar(
        lambda log_floor: attempt(math.exp(log_floor)),
        bounds=(math.log(low), math.log(high)),
        method="bounded",
        options={"xatol": TOLERANCE, "maxiter": 8},
    )
    point = min(tried, key=lambda point: abs(point.floor - math.exp(refined.x)))
    for _ in range(NEWTON_STEPS):
        step = point.next_inverse()
        if abs(step / point.inverse - 1) < 1e-4:
            break
        point = _evaluate(chunks, point.floor, step)
        tried.append(point)
    chosen = min(tried, key=lambda point: point.nll)
    return Adjustment(1 / chosen.inverse, chosen.floor)


def _evaluate(chunks: Sequence[tuple[Tensor, Tensor]], floor: float, inverse: float) -> _Point:
    sums, tokens = torch.zeros(3, dtype=torch.float64), 0
    for logits, labels in chunks:
        size = len(logits) if logits.is_cuda else max(1, BLOCK // logits.shape[1])
        for block, chosen in zip(logits.split(size), labels.split(size), strict=True):
            sums += _derivatives(remove_floor(block, floor), chosen, inverse)
        tokens += len(labels)
    return _Point(floor, inverse, *(sums / tokens).tolist())


def _derivatives(logits: Tensor, labels: Tensor, inverse: float) -> Tensor:
    """Sum over tokens the NLL of softmax(b z), the mean of z minus the label's, and the variance of z: float64 of [3]."""
    logits = logits - logits.amax(1, keepdim=True)
    at_label = logits.gather(1, labels[:, None]).squeeze(1)
    weights = torch.exp(inverse * logits)
    total = weights.sum(1)
    weighted = weights.mul_(logits)
    mean = weighted.sum(1) / total
    square = torch.linalg.vecdot(weighted, logits) / total
    parts = (total.log() - inverse * at_label, mean - at_label, square - mean.square())
    return torch.stack([part.double().sum() for part in parts]).cpu()
