"""What a run of the pipeline needs around its stages: step runner, cache, output folder, Ray cluster, terminal, progress."""

# The stages that can be re-run, in their order.
STAGES = ("elicit", "smooth", "train", "evaluate", "calibrate", "judge")
