"""What a run of the pipeline needs around its stages: step runner, cache, output folder, Ray cluster, terminal, progress."""

from typing import Literal, get_args

# The stages that can be re-run, in their order.
StageName = Literal["elicit", "smooth", "train", "evaluate", "calibrate", "judge"]
STAGES: tuple[StageName, ...] = get_args(StageName)
