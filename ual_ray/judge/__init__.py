"""Stage 4c: pairwise comparison of open-ended answers by a judge model."""
