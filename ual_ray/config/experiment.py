"""The keys of `ual experiment CONFIG`, what is repeated over one elicitation, and of `ual experiment known_truth`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ual_ray.config.files import ARTIFACTS_FOLDER, SPOOL_FOLDER
from ual_ray.config.names import FILE_NAME, is_file_name
from ual_ray.config.section import Section, Share, key

# All rows, where no scenarios are named.
ALL_ROWS = "all"
# Folders of an experiment next to those of its scenarios.
ELICIT_FOLDER, ANSWERS_FOLDER = "elicit", "answers"
# torch takes no larger one.
LARGEST_SEED = 2**64 - 1
# In the folder of a scenario: the trials of learning_rates.
TRIALS_FILE = "learning_rates.json"
# Symbols of a context. Each position has symbols of its own, so that no context is another one in a different order.
POSITIONS = 3


class ExperimentConfig(Section):
    """Arms x seeds x scenarios; the arms, the data and everything else are those of the other sections."""

    seeds: tuple[int, ...] = key(
        (0, 1, 2),
        min_length=1,
        affects="",
        description="training seeds, the unit of inference: each trains every arm once; a verdict needs 3 or more. `seed` "
        "stays that of elicitation, splits and evaluation",
    )
    learning_rates: tuple[float, ...] = key(
        (),
        affects="",
        description="learning rates to try with the first seed, the same ones for every arm; all seeds of an arm train with "
        "its best by validation NLL after temperature scaling. Empty = train.learning_rate",
    )
    parallel: Literal["auto"] | Annotated[int, Field(ge=1)] = key(
        "auto",
        affects="",
        description="number of trainings side by side, each of train.num_workers workers with a model of its own; auto = as "
        "many as the free CPUs, GPUs and, for CPU workers, memory of the cluster hold when the command joins it",
    )
    scenarios: dict[str, tuple[str, ...]] = key(
        default_factory=lambda: {ALL_ROWS: ()},
        min_length=1,
        affects="",
        description="sources of rows to train and measure on, by scenario, such as {open_ended: [dolly], mixed: []}; an "
        "empty list = all sources",
    )

    primary: dict[str, tuple[str, ...]] = key(
        default_factory=dict,
        affects="",
        description="measures that decide, as report.primary, by scenario, such as {open_ended: [win_rate, "
        "held_out.nll_adjusted]}; those of report.primary for a scenario without an entry",
    )

    @model_validator(mode="after")
    def _check(self) -> ExperimentConfig:
        if min(self.seeds) < 0 or max(self.seeds) > LARGEST_SEED or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds = {list(self.seeds)} must be different, and from 0 to 2^64 - 1")
        if any(rate <= 0 for rate in self.learning_rates) or len(set(self.learning_rates)) < len(self.learning_rates):
            raise ValueError(f"learning_rates = {list(self.learning_rates)} must be different, and above 0")
        if unknown := sorted(set(self.primary) - set(self.scenarios)):
            raise ValueError(f"primary: there is no scenario {', '.join(unknown)}; expected {', '.join(self.scenarios)}")
        for name in self.scenarios:
            if not is_file_name(name):
                raise ValueError(f"scenarios: '{name}' must be {FILE_NAME}")
            if name in (ELICIT_FOLDER, ANSWERS_FOLDER, ARTIFACTS_FOLDER, SPOOL_FOLDER):
                raise ValueError(f"scenarios: '{name}' is the name of another folder of an experiment; take another name")
        return self


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
