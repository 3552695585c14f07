"""A world whose truth is known: contexts, the exact distribution of their answers, and one sampled label each. Pure."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax, xlogy

from ual_ray.config.experiment import POSITIONS

Numbers = NDArray[np.float64]
Integers = NDArray[np.int64]

LABEL_NOISE = 0.3
# Features from which the order of the answers follows; fewer are easier to learn.
FEATURES = 32
TRAIN_SHARE, VALIDATION_SHARE = 0.5, 0.125
# Each use of randomness has a stream of its own: worlds of different corruption differ in nothing else.
WORLD_STREAM, CORRUPTION_STREAM = 1, 2


@dataclass(frozen=True)
class World:
    """N contexts in random order, with K answers.

    contexts: [N, POSITIONS] tokens; truth: [N, K], rows sum to 1; labels: [N], sampled from the truth; strata: [N], numbers
    of the kinds in `strata(K)`. The first `train` contexts are trained on, those up to `validation` fit temperatures, the
    others are the test.
    """

    contexts: Integers
    truth: Numbers
    labels: Integers
    strata: Integers
    train: int
    validation: int


def strata(answers: int) -> dict[str, Numbers]:
    """Define the kinds of contexts: the probabilities of all answers, from the likeliest to the least likely."""

    def alike(count: int) -> Numbers:
        return np.where(np.arange(answers) < count, 1 / count, 0.0)

    ranks = np.arange(1, answers + 1)
    unequal = np.where(ranks <= 8, 1 / ranks, 0.0)
    return {
        "deterministic": alike(1),
        "label noise": (1 - LABEL_NOISE) * alike(1) + LABEL_NOISE / answers,
        "4 alike": alike(4),
        "16 alike": alike(16),
        "8 unequal": unequal / unequal.sum(),
    }


def draw_world(contexts: int, symbols: int, answers: int, seed: int) -> World:
    """Draw a world: `contexts` of the `symbols`^POSITIONS combinations.

    The first symbol decides the stratum, and all symbols together, through a random network, the order of the answers; so
    both can be learnt from some contexts for others.
    """
    random = np.random.default_rng([seed, WORLD_STREAM])
    chosen = random.permutation(symbols**POSITIONS)[:contexts]
    places = np.stack(np.unravel_index(chosen, (symbols,) * POSITIONS), axis=1)
    embeddings = random.normal(size=(POSITIONS, symbols, FEATURES)) / np.sqrt(POSITIONS)
    features = np.tanh(sum(embeddings[position][places[:, position]] for position in range(POSITIONS)))
    order = np.argsort(-features @ random.normal(size=(FEATURES, answers)), axis=1)
    kinds = np.stack([*strata(answers).values()])
    stratum = places[:, 0] % len(kinds)
    truth = np.zeros((contexts, answers))
    np.put_along_axis(truth, order, kinds[stratum], axis=1)
    below = np.cumsum(truth, axis=1) <= random.random((contexts, 1)) * truth.sum(axis=1, keepdims=True)
    train = round(TRAIN_SHARE * contexts)
    return World(
        contexts=places + symbols * np.arange(POSITIONS),
        truth=truth,
        labels=below.sum(axis=1),
        strata=stratum,
        train=train,
        validation=train + round(VALIDATION_SHARE * contexts),
    )


def oracle_uncertainty(truth: Numbers) -> Numbers:
    """Entropy over that of the uniform distribution, in [0, 1]: 0 = one answer is certain. truth: [N, K]."""
    return np.clip(-xlogy(truth, truth).sum(axis=1) / np.log(truth.shape[1]), 0, 1)


def corrupt(uncertainty: Numbers, share: float, seed: int) -> Numbers:
    """Permute the values of a random `share` of the rows, in [0, 1], among each other."""
    random = np.random.default_rng([seed, CORRUPTION_STREAM])
    chosen = random.permutation(len(uncertainty))[: round(share * len(uncertainty))]
    corrupted = uncertainty.copy()
    corrupted[chosen] = uncertainty[random.permutation(chosen)]
    return corrupted


def divergence(truth: Numbers, logits: Numbers, temperature: float = 1.0) -> Numbers:
    """KL(truth || softmax(logits / temperature)) of every row, in nats, 0 or more, lower is better. Both are [N, K]."""
    return (xlogy(truth, truth) - truth * log_softmax(logits / temperature, axis=1)).sum(axis=1)


def regret(truth: Numbers, logits: Numbers) -> Numbers:
    """By how much the model's likeliest answer is less probable than the best one, [N] in [0, 1], lower is better."""
    return truth.max(axis=1) - np.take_along_axis(truth, logits.argmax(axis=1)[:, None], axis=1)[:, 0]
