"""The keys of `ual experiment known_truth`: made-up data whose truth is known."""

from __future__ import annotations

from pydantic import model_validator

from ual_ray.config.section import Section, Share, key

# Symbols of a context. Each position has symbols of its own, so that no context is another one in a different order.
POSITIONS = 3


class KnownTruthConfig(Section):
    """`ual experiment known_truth`: its data, its training, and what is repeated."""

    contexts: int = key(4096, ge=64, affects="weights", description="number of contexts; half of them are trained on")
    answers: int = key(
        64,
        ge=16,
        affects="weights",
        description="number of different answers, and size of the vocabulary, which the symbols of contexts share",
    )
    alpha_mean: float = key(0.1, ge=0, lt=1, affects="weights", description="mean alpha of every arm that smooths")
    hidden_size: int = key(
        64, ge=16, multiple_of=8, affects="weights", description="hidden size of the model, a random Llama of two layers"
    )
    epochs: int = key(10, ge=1, affects="weights", description="number of passes over the training contexts")
    batch_size: int = key(64, ge=1, affects="weights", description="contexts per optimizer step")
    learning_rate: float = key(3e-3, gt=0, affects="weights", description="peak learning rate (AdamW)")
    corruptions: tuple[Share, ...] = key(
        (0.0, 0.25, 0.5, 1.0),
        min_length=1,
        affects="",
        description="shares of training contexts whose uncertainty is permuted among them, in [0, 1]; a table per share",
    )
    seeds: tuple[int, ...] = key(
        (0, 1, 2, 3, 4),
        min_length=1,
        affects="",
        description="seeds, the unit of inference: each draws its own truth, labels, initial weights and data order",
    )

    @property
    def symbols(self) -> int:
        """Number of symbols per position: the fewest that make so many different contexts."""
        return next(count for count in range(1, self.contexts + 1) if count**POSITIONS >= self.contexts)

    @model_validator(mode="after")
    def _check(self) -> KnownTruthConfig:
        if self.symbols * POSITIONS > self.answers:
            raise ValueError(
                f"contexts = {self.contexts} needs {POSITIONS} x {self.symbols} symbols, above answers = {self.answers}"
            )
        if not all(0 <= share <= 1 for share in self.corruptions):
            raise ValueError(f"corruptions = {list(self.corruptions)} must be in [0, 1]")
        if min(self.seeds) < 0 or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds = {list(self.seeds)} must be different, and 0 or more")
        return self
