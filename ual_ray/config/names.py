"""Names that the configuration knows: models, arms, and the names of everything that a registry holds."""

from typing import TYPE_CHECKING, Literal, TypeAlias

from ual_ray.config.registry import BASE_MAPS, BENCHMARKS, ENGINES, ESTIMATORS, FORMATS, LOSSES, MAPS, WEIGHTS

DEMO = "demo"
# What arms are compared with, in addition to each other: the model before training, and the answers that a file contains.
BASE = "base"
REFERENCE_ANSWERS = "reference"
# The arms and benchmarks that defaults and reports refer to.
SFT, UAL, SHUFFLED, CONSTANT = "sft", "ual", "shuffled", "constant"
HELD_OUT, GSM8K = "held_out", "gsm8k"
# What figures over all benchmarks, or over all sources of one, are called in place of one's name.
OVERALL = "overall"
# The map of plain fine-tuning, what every other one has to beat.
NO_SMOOTHING = "none"

ENSEMBLE = "ensemble"
# The estimator that does best in the self-check.
AUTO = "auto"
DtypeName = Literal["auto", "bfloat16", "float16", "float32"]
ReadingName = Literal["logprobs", "sampled"]
# What labels are smoothed towards.
PriorName = Literal["uniform", "unigram", "file", "base"]

if TYPE_CHECKING:
    EstimatorName: TypeAlias = str
    UncertaintyName: TypeAlias = str
    SelectedName: TypeAlias = str
    FormatName: TypeAlias = str
    MapName: TypeAlias = str
    BaseMapName: TypeAlias = str
    BenchmarkName: TypeAlias = str
    EngineName: TypeAlias = str
    WeightName: TypeAlias = str
    LossName: TypeAlias = str
else:
    EstimatorName = Literal[tuple(ESTIMATORS)]
    UncertaintyName = Literal[(*ESTIMATORS, ENSEMBLE)]
    SelectedName = Literal[(*ESTIMATORS, ENSEMBLE, AUTO)]
    FormatName = Literal[("auto", *FORMATS)]
    MapName = Literal[tuple(MAPS)]
    BaseMapName = Literal[tuple(BASE_MAPS)]
    BenchmarkName = Literal[tuple(BENCHMARKS)]
    EngineName = Literal[tuple(ENGINES)]
    WeightName = Literal[tuple(WEIGHTS)]
    LossName = Literal[tuple(LOSSES)]


# File systems take 255 bytes; names of pairs and of registered models hold more than the name.
LONGEST_NAME = 100
FILE_NAME = f"at most {LONGEST_NAME} bytes of letters, digits, '-' or '_'"
# In the name of a pair of models: no arm has it between dashes, or two pairs could have one name.
VERSUS = "vs"


def is_file_name(name: str) -> bool:
    """Tell whether a name of the configuration can name a folder; FILE_NAME is the rule in words."""
    return len(name.encode(errors="replace")) <= LONGEST_NAME and name.replace("-", "").replace("_", "").isalnum()
