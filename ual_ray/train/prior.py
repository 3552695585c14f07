"""What labels are smoothed towards, a distribution over the vocabulary: uniform, unigram, or from a file.

UAL (arXiv 2406.04854) smooths towards the uniform distribution, which gives every token, however absurd, the same share. The
frequencies of the training responses cost the loss no more (see `loss.smoothed_linear_cross_entropy`).
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ual_ray.config import TrainConfig
from ual_ray.errors import UserError
from ual_ray.train.loss_inputs import PRIOR_TOLERANCE
from ual_ray.train.token_store import TokenStore


def make_prior(config: TrainConfig, store: TokenStore, vocabulary: int) -> Tensor | None:
    """Return train.prior as float32 of [vocabulary]; None for the uniform one, and for one per token (base).

    store: the training rows.

    Raises UserError for a file that does not hold one probability per entry of the vocabulary.
    """
    if config.prior in ("uniform", "base"):
        return None
    if config.prior_file is not None:
        values = read_prior(Path(config.prior_file))
        if len(values) != vocabulary:
            raise UserError(
                "train.prior_file does not fit the model",
                got=f"{len(values)} probabilities in {config.prior_file}",
                expected=f"{vocabulary}, the entries of the model's vocabulary",
                fix="write the file for this model, or set train.prior=uniform",
            )
    else:
        values = store.label_counts(vocabulary).astype(np.float64)
    return torch.from_numpy(values / values.sum()).float()


def read_prior(path: Path) -> np.ndarray:
    """Read a .npy file of probabilities. Raises UserError when it cannot be read or holds no distribution."""
    what = "train.prior_file cannot be used"
    fix = "write it with numpy.save: one probability per entry of the vocabulary"
    try:
        values = np.load(path, allow_pickle=False).astype(np.float64)
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(what, got=f"{path}: {error}", expected="a .npy file", fix=fix) from error
    if values.ndim != 1 or not np.isfinite(values).all() or (values < 0).any():
        raise UserError(what, got=f"shape {values.shape} in {path}", expected="[vocabulary], all values 0 or above", fix=fix)
    if abs(values.sum() - 1) > PRIOR_TOLERANCE:
        raise UserError(what, got=f"a sum of {values.sum():.6g} in {path}", expected="1", fix=fix)
    return values
