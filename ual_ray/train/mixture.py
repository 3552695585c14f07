"""Which samples an epoch draws where `train.mixture` weights the data's sources. Pure.

An epoch has as many samples as the training split. Each source gets its share of them, and gives them from one random order
after another of its own samples, going on in the next epoch where the last one ended: however a source is weighted, its samples
come equally often, up to one.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from ual_ray.errors import UserError
from ual_ray.formatting import plural

KEY = "train.mixture"


class Mixture:
    """The samples drawn in each epoch; the same for every number of ranks, and a function of seed and epoch alone."""

    def __init__(self, weights: Mapping[str, float], sources: pa.Array | None, seed: int) -> None:
        """Take the weights, all above 0, and the source of every sample, a text.

        Raises UserError when the weights are not of exactly the sources that there are, or one is too small for any sample.
        """
        encoded = pa.array([], pa.string()) if sources is None else sources.fill_null("")
        encoded = encoded.dictionary_encode()
        found = encoded.dictionary.to_pylist()
        check_names(weights, sorted(found))
        self.names = sorted(found)
        codes = encoded.indices.to_numpy()
        self._seed, self.own = seed, [np.flatnonzero(codes == found.index(name)) for name in self.names]
        self.quotas = quotas([weights[name] for name in self.names], len(codes))
        if never := [name for name, quota in zip(self.names, self.quotas, strict=True) if not quota]:
            raise UserError(
                f"{KEY}: a weight is too small",
                got=f"{', '.join(never)}: none of the {plural(len(codes), 'sample')} of an epoch",
                fix="raise it, or leave these rows out of the data",
            )

    def epoch(self, number: int) -> np.ndarray:
        """Return the samples of an epoch, counted from 0: int64 of [samples], one drawn twice is there twice."""
        return np.concatenate([self._drawn(code, number) for code in range(len(self.names))])

    def _drawn(self, code: int, epoch: int) -> np.ndarray:
        own, quota = self.own[code], self.quotas[code]
        first, end = epoch * quota, (epoch + 1) * quota
        passes = range(first // len(own), -(-end // len(own)))
        orders = [np.random.default_rng([self._seed, code, number]).permutation(own) for number in passes]
        start = first - passes.start * len(own)
        return np.concatenate(orders)[start : start + quota]


def quotas(weights: Sequence[float], count: int) -> list[int]:
    """Divide a number of samples by weights, all above 0; what rounding leaves over goes to the largest remainders."""
    exact = np.asarray(weights, dtype=np.float64) / np.sum(weights) * count
    whole = np.floor(exact).astype(np.int64)
    whole[np.argsort(whole - exact, kind="stable")[: count - int(whole.sum())]] += 1
    return [int(number) for number in whole]


def check_names(
    weights: Mapping[str, float], names: Sequence[str], *, complete: bool = True, rows: str = "the training rows"
) -> None:
    """Raise UserError unless the weights are of these sources of training `rows`. complete: there are no others."""
    unknown, missing = sorted(set(weights) - {*names}) if complete else [], sorted({*names} - set(weights))
    if unknown or missing:
        raise UserError(
            f"{KEY} does not have the sources of {rows}",
            got="; ".join(
                [*(f"no row to train on is of {name!r}" for name in unknown), *(f"no weight for {name!r}" for name in missing)]
            ),
            expected=f"a weight for each of: {', '.join(names) or 'none, as the rows have no column `source`'}"
            f"{'' if complete else ', and of others that later rows may have'}",
            fix="`ual preview` shows the rows' sources: the column `source`, or else the name of the file",
        )
