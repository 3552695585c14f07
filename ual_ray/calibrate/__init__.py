"""Stage 4b: calibration and clustering of a model's tokens and answers."""
