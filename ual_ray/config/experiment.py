"""The keys of `ual experiment CONFIG`: what is repeated over one elicitation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ual_ray.config.names import FILE_NAME, is_file_name
from ual_ray.config.paths import ARTIFACTS_FOLDER, SPOOL_FOLDER
from ual_ray.config.section import Section, key

# All rows, where no scenarios are named.
ALL_ROWS = "all"
# Folders of an experiment next to those of its scenarios.
ELICIT_FOLDER, ANSWERS_FOLDER = "elicit", "answers"
# torch takes no larger one.
LARGEST_SEED = 2**64 - 1
# In the folder of a scenario: the trials of learning_rates.
TRIALS_FILE = "learning_rates.json"


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
