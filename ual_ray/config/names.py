"""Names that the configuration knows: models, arms, estimators, maps, formats and benchmarks."""

from __future__ import annotations

from typing import Literal

DEMO = "demo"
# What arms are compared with besides each other: the model before training, and the answers that a file brings along.
BASE = "base"
REFERENCE_ANSWERS = "reference"

EstimatorName = Literal["verbalized", "p_true", "nll", "nll_sum", "self_consistency", "semantic_entropy"]
ENSEMBLE = "ensemble"
UncertaintyName = Literal[EstimatorName, "ensemble"]
FormatName = Literal["auto", "alpaca", "sharegpt", "messages", "prompt_completion", "gsm8k", "metamath", "alpaca_eval"]
MapName = Literal["linear", "minmax", "mean_matched", "rank", "none", "constant", "shuffled", "inverted"]
BenchmarkName = Literal["held_out", "gsm8k", "math", "multiple_choice", "open_ended"]
DtypeName = Literal["auto", "bfloat16", "float16", "float32"]
ReadingName = Literal["logprobs", "sampled"]
BaseMapName = Literal["linear", "minmax", "mean_matched", "rank"]
