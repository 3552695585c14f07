"""What a training's workers are given and return; without torch, as Ray Train's controller passes both on."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ual_ray.config import TrainConfig

CHECKPOINTS = "checkpoints"
NON_FINITE_FILE = "non_finite_ids.txt"


@dataclass(frozen=True)
class TrainingJob:
    """A worker's inputs; paths are on storage that all nodes share, or the driver's. `lineage` goes into the model card.

    arm: Parquet of the alphas and weights of the rows to train on; None = the rendered rows have their own. first: local path
    of another training's checkpoint to start from. sources: Parquet of the rows' sources, with train.mixture.
    system_metrics: whether the use of the ranks' nodes is logged.
    """

    train: TrainConfig
    model: str
    tokens: str
    folder: str
    seed: int
    arm: str | None = None
    trust_remote_code: bool = False
    lineage: Mapping[str, str] = field(default_factory=dict)
    first: str | None = None
    sources: str | None = None
    system_metrics: bool = False


@dataclass(frozen=True)
class Outcome:
    """How training ended, the same on every rank. Errors that a retry cannot fix are returned, so that Ray does not retry.

    exported: the step whose weights were exported, if training is finished.
    """

    ending: Literal["finished", "stopped", "non_finite"]
    step: int
    message: str = ""
    exported: int | None = None
