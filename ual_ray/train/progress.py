"""Training progress, and when to validate, save and stop. Pure, and the same on every rank."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ual_ray.config import TrainConfig


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
