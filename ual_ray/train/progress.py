"""Training progress, and when to validate, save and stop. Pure but for stops, and the same on every rank.

Early checkpoints and stops are agreed between ranks by votes that are reduced with each step's sums.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ual_ray.config import TrainConfig
from ual_ray.run.folder import HERE, Folder

STOP_FILE = "stop"
# Number of a rank's votes in a step.
VOTES = 2
# Seconds between checks for a node about to be preempted: each check is a round trip of every rank.
PREEMPTION_INTERVAL = 5.0


@dataclass(frozen=True)
class Progress:
    """The part of a checkpoint that is not tensors.

    step: optimizer steps done. With the plan's digest it is the data cursor; it also determines the learning rate and the
    random numbers, as every step seeds its generators by (seed, step, rank). samples, tokens: seen so far, tokens without
    padding. best_loss: lowest smoothed validation loss so far, in nats per token, measured at best_step;
    validations_since_best: number of validations since then. lora_scale: what adapters' products are multiplied by; None
    without adapters, and in checkpoints of earlier versions. skipped_in_a_row: the last steps, if their updates were skipped.
    """

    plan: str
    seed: int
    step: int = 0
    samples: int = 0
    tokens: int = 0
    best_loss: float | None = None
    best_step: int | None = None
    validations_since_best: int = 0
    lora_scale: float | None = None
    skipped_in_a_row: int = 0

    def stepped(self, samples: int, tokens: int, *, skipped: bool = False) -> Progress:
        """Count one more optimizer step, whose update may have been skipped, and its samples and tokens."""
        in_a_row, samples, tokens = self.skipped_in_a_row + 1 if skipped else 0, self.samples + samples, self.tokens + tokens
        return replace(self, step=self.step + 1, samples=samples, tokens=tokens, skipped_in_a_row=in_a_row)

    def validated(self, loss: float) -> Progress:
        """Record a validation after the last step; a non-finite loss is never the best."""
        if math.isfinite(loss) and (self.best_loss is None or loss < self.best_loss):
            return replace(self, best_loss=loss, best_step=self.step, validations_since_best=0)
        return replace(self, validations_since_best=self.validations_since_best + 1)

    def over(self, config: TrainConfig, steps: int) -> bool:
        """Whether training ends: all steps are done, or `patience` validations in a row brought no improvement."""
        stale = config.early_stopping is not None and self.validations_since_best >= config.early_stopping
        return stale or self.step >= steps

    def validation_due(self, config: TrainConfig, steps: int, *, ends_epoch: bool) -> bool:
        """Whether to validate after the last step, which `ends_epoch` or not."""
        due = self.step % config.validate_every == 0 if config.validate_every else ends_epoch
        return due or self.step >= steps

    def checkpoint_due(self, config: TrainConfig, steps: int) -> bool:
        """Whether to save after the last step: periodically, at the end, and at a new best validation."""
        regular = config.checkpoint_every is not None and self.step % config.checkpoint_every == 0
        return regular or self.over(config, steps) or self.best_step == self.step


class Interruptions:
    """Detects the stop file that the driver writes when it is told to end, and nodes that are about to be preempted."""

    def __init__(self, folder: Path, preempted: Callable[[], bool], *, votes: bool, output: Folder = HERE) -> None:
        """Take the folder of the stop file, a preemption check that all ranks must call together, and whether this rank votes.

        Only one rank votes, as clocks and views of a folder differ between ranks; all read the result.
        """
        self._stop_file, self._preempted, self._votes, self._output = folder / STOP_FILE, preempted, votes, output
        self._looked = time.monotonic()
        self._saved = False

    def votes(self) -> tuple[float, float]:
        """Return this rank's votes: to stop, and to check for preemption."""
        if not self._votes:
            return 0.0, 0.0
        return float(self._output.call(Path.exists, self._stop_file)), float(
            time.monotonic() - self._looked > PREEMPTION_INTERVAL
        )

    def decide(self, votes: Sequence[float]) -> tuple[bool, bool]:
        """Decide from the summed votes whether to stop, and whether to save (once) before a node is preempted."""
        stop, ask = (vote > 0 for vote in votes)
        if not ask or self._saved:
            return stop, False
        self._looked = time.monotonic()
        self._saved = self._preempted()
        return stop, self._saved
